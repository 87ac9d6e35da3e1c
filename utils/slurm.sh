#!/usr/bin/env bash
# Runs jobs on a SLURM cluster, as one job array, and waits for them. Usage and options: jobs.sh.
# The file given with --config (conf/slurm.conf where there is one) holds options of sbatch, one a line, such as
#   --partition=long
# They win over what this script says. Before its time limit a job is asked to save, and is queued again: requeue.sh.

set -u
here=$(cd "$(dirname "$0")" && pwd)
. "$here/jobs.sh"
parse_job "$@"
command -v sbatch >/dev/null || job_usage "there is no sbatch here; is this a machine of a SLURM cluster?"

options=(--parsable --wait --requeue --signal=B:USR1@90 "--cpus-per-task=$num_threads" "--array=$job_first-$job_last${max_jobs_run:+%$max_jobs_run}")
[ -z "$mem" ] || options+=("--mem=$mem")
[ -z "$time" ] || options+=("--time=$time")
((gpu == 0)) || options+=("--gres=gpu:$gpu")
if [ -z "$config" ] && [ -f conf/slurm.conf ]; then config=conf/slurm.conf; fi
if [ -n "$config" ]; then
  [ -r "$config" ] || job_usage "no file '$config'"
  mapfile -t -O ${#options[@]} options < <(grep -v '^[[:space:]]*\(#\|$\)' "$config")
fi

# The script that each task runs: run.sh with the one job that is its own. Next to the logs, with what SLURM prints.
name=$(basename "${job_log%.log}") queue=$(dirname "$(log_of "$job_first")")/q
[ -z "$job_name" ] || name=${name//.$job_name/}
mkdir -p "$queue"
for ((job = job_first; job <= job_last; job++)); do rm -f "$(log_of "$job")"; done
{
  printf '#!/usr/bin/env bash\nunset MOE_ASR_FAILURE # failures are told here, not there\n'
  printf 'cd %q || exit 1\n. %q\n' "$PWD" "$here/requeue.sh"
  printf 'run_requeued %q --num-threads %q ' "$here/run.sh" "$num_threads"
  [ -z "$job_name" ] || printf '%s="$SLURM_ARRAY_TASK_ID"' "$job_name"
  printf ' %q' "$job_log" "${job_command[@]}"
  echo
} >"$queue/$name.sh"

sbatch "${options[@]}" --job-name="$name" --output="$queue/$name.%a.out" "$queue/$name.sh" >"$queue/$name.id" &
job_id() { cut -d ";" -f 1 "$queue/$name.id"; }
trap 'scancel "$(job_id)"; exit 130' INT TERM
wait $!
in_queue() { # whether SLURM has any of the jobs, or does not answer
  local said
  said=$(squeue --noheader "--jobs=$(job_id)" 2>&1)
  case $? in
    0) [ -n "$said" ] ;;
    127) return 1 ;; # no squeue here
    *) [[ $said != *"Invalid job id"* ]] ;;
  esac
}
# sbatch takes a job for ended that it looks at in the moment when that is queued again, squeue may not name it then, and a
# shared file system may show the ends of logs late: a job has failed that is not in the queue five times in a row.
missed=0
while [ -n "$(job_id)" ] && [ -n "$(failed_jobs)" ] && ((missed < 5)); do
  if in_queue; then missed=0; else ((missed += 1)); fi
  sleep 1 &
  wait $!
done
report_jobs && exit 0
echo "${0##*/}: what SLURM itself says is in $queue/$name.*.out" >&2
exit 1
