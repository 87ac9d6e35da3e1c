# shellcheck shell=bash
# Training runs and jobs of the shared stages: what systems.sh, speakers.sh and languages.sh have in common. It uses
#
#   exp_dir conf  where things are, and the folder of the configurations
#   training      options of all training runs
#   train_cmd     job back end; empty runs jobs here, one after the other
#   nj            jobs that an array is divided into

about() { sed -n "s/^# $2: //p" "$conf/$1.yaml"; } # about NAME KEY: the value of a comment in $conf/NAME.yaml

train() { # train NAME OPTIONS: $conf/NAME.yaml makes exp/NAME
  local options
  read_options "$1"
  job "$train_cmd" "$exp_dir/log/train-$1.log" python3 -m moe_asr.bin.train "${options[@]}" \
    --exp_dir "$exp_dir/$1" --on_change restart "${@:2}"
}

read_options() { # sets `options` to those of the training run $1 that do not depend on where things are
  read -ra options <<<"$training"
  options=(--config "$conf/$1.yaml" "${options[@]}")
  [ ! -f "${shared-}" ] || options=(--config "$shared" "${options[@]}") # first, so that the run's own win
}

job() { # job BACK-END LOG COMMAND...: by a job back end such as slurm.sh, or here where there is none
  local back_end
  read -ra back_end <<<"$1"
  if [ ${#back_end[@]} = 0 ]; then "${@:3}"; else "${back_end[@]}" "${@:2}"; fi
}

each() { # each BACK-END FUNCTION NAMES: the function for each name, all at once where there is a back end
  local name code=0 running=()
  for name in $3; do
    if [ -z "$1" ]; then
      "$2" "$name"
    else
      "$2" "$name" &
      running+=($!)
    fi
  done
  for name in "${running[@]}"; do wait "$name" || code=1; done
  return $code
}

array() { # array BACK-END LOG COMMAND...: jobs 1 to $nj at once, whose number takes the place of JOB
  local back_end
  read -ra back_end <<<"${1:-run.sh}"
  "${back_end[@]}" "JOB=1:$nj" "${@:2}"
}
