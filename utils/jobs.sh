# shellcheck shell=bash
# What the job back ends run.sh and slurm.sh have in common: Kaldi's contract
#
#   run.sh [options] [JOB=1:8] exp/log/x.JOB.log command argument ...
#
# runs the command once, or once for each JOB, with JOB replaced in the log's name and in every argument. Arguments
# reach the command as they are: there is no second round of shell (for a pipe, run `bash -c '...'`). The exit code is 0
# when all jobs succeeded, else 1 (138 where SIGUSR1 stopped the first), and then the failed jobs and the end of the first
# failed log are shown. Options:
#
#   --max-jobs-run N   at most N jobs at once
#   --num-threads N    threads per job   }
#   --mem 4G           memory per job    } used by slurm.sh alone,
#   --time 4:00:00     time limit        } accepted by both
#   --gpu N            GPUs per job      }
#   --config FILE      more options for sbatch, one a line; conf/slurm.conf by default }

parse_job() { # the command line, into job_*
  local option
  max_jobs_run='' num_threads=1 mem='' time='' gpu=0 config='' job_name='' job_first=1 job_last=1
  while [[ ${1-} == --* ]]; do
    case $1 in --max-jobs-run | --num-threads | --mem | --time | --gpu | --config) ;; *) job_usage "unknown option $1" ;; esac
    [ $# -gt 1 ] || job_usage "$1 needs a value"
    option=${1#--}
    printf -v "${option//-/_}" %s "$2"
    shift 2
  done
  [[ $max_jobs_run$num_threads$gpu =~ ^[0-9]+$ ]] || job_usage "--max-jobs-run, --num-threads and --gpu take numbers"
  if [[ ${1-} =~ ^([A-Za-z_]+)=([0-9]+)(:([0-9]+))?$ ]]; then
    job_name=${BASH_REMATCH[1]} job_first=${BASH_REMATCH[2]} job_last=${BASH_REMATCH[4]:-${BASH_REMATCH[2]}}
    shift
  fi
  ((job_first <= job_last)) || job_usage "no jobs in $job_first:$job_last"
  [ $# -gt 1 ] || job_usage "a log and a command are needed"
  job_log=$1 job_command=("${@:2}")
  [[ $job_first = "$job_last" || $job_log == *"$job_name"* ]] || job_usage "$job_name must occur in the name of the log"
  mkdir -p "$(dirname "$(log_of "$job_first")")"
}

job_usage() {
  echo "${0##*/}: $1 (usage: ${0##*/} [options] [JOB=1:N] LOG COMMAND ...)" >&2
  exit 2
}

log_of() { # the log of job $1
  if [ -n "$job_name" ]; then echo "${job_log//$job_name/$1}"; else echo "$job_log"; fi
}

run_job() { # runs job $1 here, into its log
  local command=("${job_command[@]}") log code begin=$SECONDS
  log=$(log_of "$1")
  [ -z "$job_name" ] || command=("${command[@]//$job_name/$1}")
  {
    printf '#%s\n# Running on %s\n# Started at %s\n#\n' "$(printf ' %q' "${command[@]}")" "$(hostname)" "$(date)"
    "${command[@]}" &
    trap 'kill $! 2>/dev/null' TERM
    trap 'kill -USR1 $! 2>/dev/null' USR1 # of SLURM before a time limit: training and decoding save, and end with 138
    wait $!
    code=$?
    while kill -0 $! 2>/dev/null; do # a signal ended the wait; what it ends may still be saving
      wait $!
      code=$?
    done
    printf '# Accounting: time=%d threads=%s\n# Ended (code %d) at %s, elapsed time %d seconds\n' \
      $((SECONDS - begin)) "$num_threads" $code "$(date)" $((SECONDS - begin))
  } >"$log" 2>&1
  return $code
}

keep_log() { # moves the log $1 of a SLURM job that was queued again out of the way; another is of no more use
  if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ -f "$1" ]; then mv "$1" "$1.$SLURM_RESTART_COUNT"; else rm -f "$1"; fi
}

failed_jobs() { # prints the jobs whose log does not say that they ended well
  local job
  for ((job = job_first; job <= job_last; job++)); do
    tail -n 1 "$(log_of "$job")" 2>/dev/null | grep -q '^# Ended (code 0)' || echo "$job"
  done
}

report_jobs() { # exit code 1 and an account of it where jobs failed
  local failed log
  mapfile -t failed < <(failed_jobs)
  [ ${#failed[@]} -gt 0 ] || return 0
  log=$(log_of "${failed[0]}")
  echo "${0##*/}: ${#failed[@]} of $((job_last - job_first + 1)) jobs failed${job_name:+ (${failed[*]})}; end of $log:" >&2
  tail -n 12 "$log" 2>/dev/null | sed 's/^/  /' >&2
  [ -z "${MOE_ASR_FAILURE-}" ] || echo "(log: $log)" >>"$MOE_ASR_FAILURE"
  return 1
}
