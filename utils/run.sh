#!/usr/bin/env bash
# Runs jobs on this machine, all at once unless --max-jobs-run says less. Usage and options: jobs.sh.

set -u
. "$(dirname "$0")/jobs.sh"
parse_job "$@"

trap 'kill $(jobs -p) 2>/dev/null; wait; exit 130' INT TERM
trap 'kill -USR1 $(jobs -pr) 2>/dev/null' USR1
at_once=${max_jobs_run:-$((job_last - job_first + 1))}
running() { jobs -pr | wc -l; }
for ((job = job_first; job <= job_last; job++)); do
  while (($(running) >= at_once)); do wait -n 2>/dev/null; done
  keep_log "$(log_of "$job")"
  run_job "$job" &
done
while (($(running) > 0)); do wait 2>/dev/null; done # a signal ends one wait
report_jobs && exit 0
! tail -n 1 "$(log_of "$job_first")" | grep -q '^# Ended (code 138)' || exit 138 # stopped by SIGUSR1, and saved
exit 1
