# shellcheck shell=bash
# How training and decoding run. Empty: here and now, one after the other. On a cluster: slurm.sh submits them and waits,
# those of all systems at once; conf/slurm.conf holds options for sbatch. These are meant for one GPU of 80 GB a job with
# --size large; 32 GB should do for medium, 8 to 12 for small (none of it tried):
#
#   train_cmd="slurm.sh --gpu 1 --num-threads 8 --mem 64G --time 48:00:00"
#   decode_cmd="slurm.sh --gpu 1 --num-threads 4 --mem 64G --time 12:00:00"

: "${train_cmd:=}"  # base, accent recogniser, systems
: "${decode_cmd:=}" # decoding
