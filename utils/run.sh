#!/usr/bin/env bash
# Runs jobs on this machine, all at once unless --max-jobs-run says less. Usage and options: jobs.sh.

set -u
. "$(dirname "$0")/jobs.sh"
parse_job "$@"

trap 'kill $(jobs -p) 2>/dev/null; wait; exit 130' INT TERM
at_once=${max_jobs_run:-$((job_last - job_first + 1))} running=0
for ((job = job_first; job <= job_last; job++)); do
  if ((running == at_once)); then
    wait -n 2>/dev/null
    ((running--))
  fi
  rm -f "$(log_of "$job")"
  run_job "$job" &
  ((++running))
done
wait 2>/dev/null
report_jobs
