# shellcheck shell=bash
# How training and decoding run. Empty: here and now, the speakers in --nj processes. On a cluster: slurm.sh submits them
# and waits, the speakers as a job array of --nj jobs; conf/slurm.conf holds options for sbatch. These suit one GPU of
# 40 GB for the Conformer's base, and any GPU of 16 GB for all else:
#
#   train_cmd="slurm.sh --gpu 1 --num-threads 8 --mem 48G --time 72:00:00"
#   each_cmd="slurm.sh --gpu 1 --num-threads 4 --mem 16G --time 4:00:00"
#   decode_cmd="slurm.sh --gpu 1 --num-threads 4 --mem 16G --time 4:00:00"

: "${train_cmd:=}"  # base and pre-training
: "${each_cmd:=}"   # the runs of single speakers; train_cmd where it is empty
: "${decode_cmd:=}" # decoding
