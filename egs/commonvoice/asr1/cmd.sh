# shellcheck shell=bash
# How training and decoding run. Empty: here and now, with a progress bar. On a cluster: slurm.sh submits them and waits.

: "${train_cmd:=}"  # such as "slurm.sh --gpu 1 --mem 16G --time 4:00:00"
: "${decode_cmd:=}" # such as "slurm.sh --gpu 1 --mem 8G"
