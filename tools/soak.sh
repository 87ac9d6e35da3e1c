#!/usr/bin/env bash
# Kills the miniature recipe with `kill -9`, again and again, at random moments of training and decoding, starts it again,
# and compares what it ends with to a run that was left in peace: adapters and recognised texts must be the same bytes. The
# first half of the kills goes into training, the other into decoding.
#
#   tools/soak.sh [--kills N] [--seed N] [--folder DIR]
#
# Prints a line for each kill and a tally; exit code 1 if anything differs. Takes about 10 s a kill on two free cores.

set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
kills=50 seed=1 folder=
while [ $# -gt 0 ]; do
  case $1 in
    --kills | --seed) [[ ${2-} =~ ^[0-9]+$ ]] || { echo "soak: $1 takes a number" >&2 && exit 2; } ;;
    --folder) [ -n "${2-}" ] || { echo "soak: --folder takes a folder" >&2 && exit 2; } ;;
    *) echo "usage: ${0##*/} [--kills N] [--seed N] [--folder DIR]" >&2 && exit 2 ;;
  esac
  printf -v "${1#--}" %s "$2"
  shift 2
done
run='' temporary=''
leave() { # nothing of it goes on when this ends
  [ -z "$run" ] || { ps -o pid= -s "$run" || :; } | xargs -r kill -KILL 2>/dev/null || :
  [ -z "$temporary" ] || rm -rf "$temporary"
}
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
[ -n "$folder" ] || folder=$(mktemp -d) temporary=$folder
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
RANDOM=$seed
export decoding="--max_duration 8" OMP_NUM_THREADS=1 # many small batches, so that there is much to be cut in two

recipe() { # recipe NAME: the miniature recipe, cut down, into $folder/NAME
  "$root/egs/mini_accents/asr1/run.sh" --data-dir "$folder/data" --exp-dir "$folder/$1" --results "$folder/$1.md" \
    --systems "lora hdmole" "--synthesis=--general_train 40 --general_dev 6 --accent_train 6 --accent_dev 3 --test 4" \
    "--training=--train.max_epochs 3 --train.save_every 2 --train.log_every 1 --train.tensorboard false --data.max_duration 12"
}

lines() { { cat "$folder"/killed/*/train.log "$folder"/killed/*/test/hyps.jsonl 2>/dev/null || :; } | wc -l; }

program() { # what the session $1 is at
  { ps -o args= -s "$1" || :; } | sed -n "s#.*moe_asr\.bin\.\([a-z_]*\) .*--\(exp\|out\)_dir $folder/killed/\([^ ]*\).*#\1 \3#p" | head -n 1
}

begin() { # a run that is done with stage 1, which makes the data; in the second half, one that is done with training
  rm -rf "$folder/killed"
  if ((done_kills * 2 < kills)); then
    mkdir -p "$folder/killed/.done"
    cp "$folder/calm/.done/stage1" "$folder/killed/.done/"
  else
    cp -r "$folder/calm" "$folder/killed"
    rm -rf "$folder"/killed/*/test "$folder"/killed/.done/stage[2-9]
  fi
}

compare() { # fails unless all that training and decoding made is the same
  local file code=0
  while IFS= read -r file; do
    cmp "$folder/calm/$file" "$folder/killed/$file" || code=1
  done < <(cd "$folder/calm" && find . -path '*/final/*.safetensors' -o -name hyps.jsonl -o -name 'recogs-*')
  return $code
}

finish() { # ... and compare
  recipe killed >"$folder/killed.log" 2>&1 || { tail -n 5 "$folder/killed.log" >&2 && exit 1; }
  ended
}

ended() { # a run has come to its end
  ((++rounds))
  compare && ((++same)) || echo "round $rounds differs"
}

echo "the undisturbed run"
recipe calm >"$folder/calm.log" 2>&1 || { tail -n 5 "$folder/calm.log" >&2 && exit 1; }
declare -A tally
done_kills=0 rounds=0 same=0 starts=0
begin
while ((done_kills < kills)); do
  ((++starts))
  setsid bash -c "$(declare -f recipe); root=$root folder=$folder; recipe killed" >"$folder/killed.log" 2>&1 &
  run=$!
  before=$(lines) wanted=$((RANDOM % 8)) tenths=$((RANDOM % 10)) # so much is written, and then a little more time passes
  ((RANDOM % 5 > 0)) || wanted=0 tenths=$((RANDOM % 80))         # or at any time, also while programs start
  while kill -0 $run 2>/dev/null && (($(lines) - before < wanted)); do sleep 0.1; done
  for ((; tenths > 0; tenths--)); do ! kill -0 $run 2>/dev/null || sleep 0.1; done
  if kill -0 $run 2>/dev/null; then
    at=$(program $run)
    mapfile -t victims < <(ps -o pid= -s "$run")
    kill -KILL "${victims[@]}" 2>/dev/null || :
    wait $run 2>/dev/null || :
    run=''
    ((++done_kills))
    tally[${at:-between programs}]=$((${tally[${at:-between programs}]-0} + 1))
    echo "kill $done_kills: ${at:-between programs}, after $(lines) lines"
    if ((done_kills == (kills + 1) / 2)); then # from now on it is decoding that is killed
      finish
      begin
    fi
  elif wait $run; then # it came to its end before
    run=''
    ended
    begin
  else
    tail -n 5 "$folder/killed.log" >&2
    echo "soak: the recipe failed after $done_kills kills" >&2
    exit 1
  fi
done
finish
echo "$done_kills kills:"
for at in "${!tally[@]}"; do echo "  ${tally[$at]} $at"; done | sort -rn
echo "$starts starts; $same of $rounds runs ended with the bytes of the undisturbed one"
((same == rounds))
