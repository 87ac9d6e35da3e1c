#!/usr/bin/env bash
# Run by srun once for each rank of a training run: ranks.sh COMMAND ... It tells torch who is who (what torchrun does
# otherwise, but signals and exit codes are the command's own), and says where it runs.

set -u
: "${SLURM_PROCID:?ranks.sh is for srun}"
MASTER_ADDR=$(scontrol show hostnames "${SLURM_STEP_NODELIST:-$SLURM_JOB_NODELIST}" | head -n 1)
MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))} # one for each job that may share the node
export MASTER_ADDR MASTER_PORT RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
echo "rank $RANK of $WORLD_SIZE on $(hostname), GPU ${CUDA_VISIBLE_DEVICES:-none}, meeting at $MASTER_ADDR:$MASTER_PORT" \
  "(job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)))"
exec "$@"
