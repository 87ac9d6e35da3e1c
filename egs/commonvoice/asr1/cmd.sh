# shellcheck shell=bash
# How training and decoding run. Empty: here and now, the experts in --nj processes. On a cluster: slurm.sh submits them
# and waits, the experts as a job array of --nj jobs; conf/slurm.conf holds options for sbatch. For Whisper large, these
# are guesses:
#
#   train_cmd="slurm.sh --gpu 1 --num-threads 8 --mem 48G --time 24:00:00"
#   each_cmd="slurm.sh --gpu 1 --num-threads 8 --mem 48G --time 8:00:00"
#   decode_cmd="slurm.sh --gpu 1 --num-threads 4 --mem 32G --time 4:00:00"

: "${train_cmd:=}"  # systems on all languages together
: "${each_cmd:=}"   # the experts; train_cmd where it is empty
: "${decode_cmd:=}" # decoding
