# shellcheck shell=bash
# For scripts that SLURM runs. They submit with --requeue and --signal=B:USR1@90: a minute and a half before the time
# limit (or with `scancel --batch --signal=USR1 JOB`, at any time) the command gets SIGUSR1. Training and decoding then
# save and end with 138, and the job is queued again; the same command goes on from there.

run_requeued() { # run_requeued COMMAND...
  local code job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
  "$@" &
  trap 'kill -TERM $! 2>/dev/null' TERM # of scancel, scontrol requeue and preemption, which queues the job again itself
  trap 'kill -USR1 $! 2>/dev/null' USR1
  wait $!
  code=$?
  while kill -0 $! 2>/dev/null; do # a signal ended the wait, not the command
    wait $!
    code=$?
  done
  if [ $code = 138 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then
    echo "stopped and saved; queued again"
    trap - TERM USR1
    scontrol requeue "${job:-$SLURM_JOB_ID}" && sleep 600 # SLURM ends this script
  fi
  return $code
}
