# shellcheck shell=bash
# Numbered stages that know whether they are done. A recipe defines functions and calls `run_stages` last:
#
#   stage_2() {
#     stage "Train the base model" inputs "$corpus_dir" outputs exp/base/final
#     python3 -m moe_asr.bin.train --config conf/base.yaml --optim.lr "$lr" --exp_dir exp/base
#   }
#
# A finished stage leaves a marker in $markers. It is skipped until one of these changes:
#   - its own text or that of a function of the recipe which it names;
#   - the value of any variable of the recipe that it names, except those listed in $neutral;
#   - files in conf/ and local/ that it names (a variable in the name stands for anything), and its `inputs`;
#   - its `outputs`, should somebody remove or change them: name what later stages read and do not write to;
#   - the stage before it ran again.
# Files under 1 MB are compared by content, others by size and time; folders by the sizes and times of their files.
# The moe_asr package is not looked at: after changing it, `--stage N` runs everything from N on. Training and decoding
# compare their own settings and inputs once more and keep what is up to date; remove its folder in $exp_dir to redo one.
#
# Every stage runs in a subshell and a process group of its own: what it sets does not leak into others (so they do
# the same whether it was skipped or not), errors stop it, and an interrupted run leaves neither process nor marker.

markers=$(realpath -m "${exp_dir:-exp}")/.done
neutral="nj" # variables that change how a stage runs but not what comes out; a recipe may add to it

stage() { # stage "Title" [inputs PATH ...] [outputs PATH ...]: the first command of a stage; leaves it when it is done
  local _into='' _word _state _changed='' _inputs=()
  stage_title=$1 stage_outputs=()
  for _word in "${@:2}"; do
    case $_into:$_word in
      *:inputs | *:outputs) _into=$_word ;;
      inputs:*) _inputs+=("$_word") ;;
      outputs:*) stage_outputs+=("$_word") ;;
      *) driver_error "stage_$stage_number: 'inputs' or 'outputs' must stand before '$_word'" ;;
    esac
  done
  _state=$(stage_state "${_inputs[@]}")
  if [ -z "$stage" ] && [ -f "$stage_marker" ]; then
    _changed=$(state_changes "$stage_marker" <(printf '%s\n' "$_state" && output_state))
    if [ -z "$_changed" ]; then
      echo "stage $stage_number: $stage_title: done already, nothing changed"
      exit 0
    fi
  fi
  rm -f "$stage_marker"
  printf '%s\n' "$_state" >"$stage_marker.tmp"
  echo "stage $stage_number: $stage_title${_changed:+ (again, changed: $_changed)}"
}

run_stages() { # runs the stages from --stage to --stop-stage, except those that are done; the end of the recipe
  recipe_variables=$(compgen -v | grep -vxF -f <(printf '%s\n' "$driver_variables") || :) # first: no locals yet
  recipe_functions=$(compgen -A function | grep -vxF -f <(printf '%s\n' "$driver_functions") || :)
  local stage_number stage_numbers stage_marker stage_before='' stage_code
  set +e
  (set -e && false; true)
  stage_code=$?
  set -e
  [ $stage_code != 0 ] || driver_error "run_stages must stand alone: in if, && and || bash would ignore errors in stages"
  mkdir -p "$markers"
  exec {_lock}>"$markers/lock" # inherited by all that a stage starts, so what outlives a killed driver is noticed
  flock -n "$_lock" || driver_error "another run of this recipe is at work here ($markers/lock is taken)"
  local stage_last
  stage_last=$(sed -n 's/^stage_\([0-9]*\)$/\1/p' <<<"$recipe_functions" | sort -n | tail -n 1)
  [ -z "$stage_last" ] || ((${stage:-0} <= stage_last)) || driver_error "there is no stage $stage; the last is $stage_last"
  trap 'interrupted 130' INT
  trap 'interrupted 143' TERM
  trap 'interrupted 129' HUP
  mapfile -t stage_numbers < <(sed -n 's/^stage_\([0-9]*\)$/\1/p' <<<"$recipe_functions" | sort -n)
  for stage_number in "${stage_numbers[@]}"; do
    stage_marker=$markers/stage$stage_number
    if ((stage_number >= ${stage:-0} && stage_number <= ${stop_stage:-stage_number})); then run_stage; fi
    stage_before=$stage_number
  done
  exit 0 # bash would go on at this place of run.sh, which may have been edited in the meantime
}

run_stage() { # runs stage $stage_number; its failure is the end
  local stage_code stage_started=$SECONDS
  export MOE_ASR_FAILURE=$markers/failure # where a stage and its jobs leave a word on what failed
  rm -f "$MOE_ASR_FAILURE"
  set -m # gives the stage a process group of its own
  set +e # this shell looks at the exit code itself
  (
    set +m -eE
    stage_level=$BASH_SUBSHELL
    trap '[ $BASH_SUBSHELL != "$stage_level" ] || echo "at line $LINENO: $BASH_COMMAND" >>"$MOE_ASR_FAILURE"' ERR
    "stage_$stage_number"
    finish_stage
  ) &
  wait $! 2>/dev/null
  stage_code=$?
  set +m -e
  if [ $stage_code = 0 ] && [ -f "$stage_marker" ]; then return; fi
  rm -f "$stage_marker.tmp"
  printf 'stage %s: failed after %s with exit code %s %s\n' "$stage_number" "$(clock $((SECONDS - stage_started)))" \
    "$stage_code" "$(paste -sd ' ' "$MOE_ASR_FAILURE" 2>/dev/null)" >&2
  exit 1
}

finish_stage() { # writes the marker, after the last command of a stage
  [ -n "${stage_title-}" ] || driver_error "stage_$stage_number must begin with: stage \"Title\""
  cd "$recipe_folder" # the stage may have left it
  output_state >>"$stage_marker.tmp"
  printf 'finished\t%s %s\n' "$(date +%FT%T.%N)" "$BASHPID" >>"$stage_marker.tmp"
  mv "$stage_marker.tmp" "$stage_marker"
  echo "stage $stage_number: done in $(clock $((SECONDS - stage_started)))"
}

interrupted() { # interrupted CODE: ends all processes of the stage, then this script
  local tenths
  trap '' INT TERM HUP
  disown -a # no message from bash about its end
  kill -TERM -- "-$!" 2>/dev/null
  for ((tenths = 0; tenths < 300; tenths++)); do # training saves its state before it goes
    kill -0 -- "-$!" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL -- "-$!" 2>/dev/null
  rm -f "$stage_marker.tmp"
  printf '\nstage %s: interrupted; to go on: %s\n' "$stage_number" "$(continue_command)" >&2
  exit "$1"
}

continue_command() { # the command given, from this stage on where it named a first stage
  local word skip='' words=()
  for word in "${recipe_command[@]}"; do
    case $skip:$word in yes:*) skip='' ;; :--stage) skip=yes ;; :--stage=*) ;; *) words+=("$(printf %q "$word")") ;; esac
  done
  echo "${words[*]}${stage:+ --stage $stage_number}"
}

# What a stage depends on: lines `name<TAB>state`. (Locals with a _ cannot hide a variable of the recipe.)

stage_state() { # its inputs are the arguments
  local _text _name _value _files
  _text=$(stage_text)
  printf 'its code\t%s\n' "$(sha256sum <<<"$_text")"
  for _name in $recipe_variables "${option_names[@]}"; do
    if names "$_text" "$_name" && ! names "$neutral stage stop_stage" "$_name"; then
      _value=$(declare -p "$_name") _value=${_value#*=} _value=${_value//$'\n'/\\n}
      printf '%s\t%s\n' "$_name" "${_value//$'\t'/\\t}"
    fi
  done
  mapfile -t _files < <(grep -oE '\b(conf|local)/[A-Za-z0-9_./${}*@-]+' <<<"${_text//\"/}" |
    sed -E 's/\$\{[^}]*\}|\$[A-Za-z0-9_@*]+/*/g' | while read -r _name; do compgen -G "$_name"; done | sort -u)
  fingerprint "${_files[@]}" "$@"
  [ -z "$stage_before" ] || printf 'stage %s\t%s\n' "$stage_before" "$(cat "$markers/stage$stage_before" 2>&1 | sha256sum)"
}

output_state() { fingerprint "${stage_outputs[@]}" | sed 's/^/output /'; }

stage_text() { # prints the stage's function and, in turn, the functions of the recipe it names
  local text name added=yes
  text=$(declare -f "stage_$stage_number")
  while [ "$added" ]; do
    added=
    for name in $recipe_functions; do
      if names "$text" "$name" && [[ $'\n'$text != *$'\n'"$name ()"* ]]; then
        text+=$'\n'$(declare -f "$name") added=yes
      fi
    done
  done
  printf '%s\n' "$text"
}

names() { [[ $1 =~ (^|[^A-Za-z0-9_])$2([^A-Za-z0-9_]|$) ]]; } # does text $1 hold the word $2?

fingerprint() { # of each file or folder
  local path
  for path in "$@"; do
    if [ -d "$path" ]; then
      printf '%s\t%s\n' "$path" "$(find -L "$path" -name __pycache__ -prune -o -type f -printf '%P %s %T@\n' |
        LC_ALL=C sort | sha256sum)"
    elif [ -f "$path" ] && [ "$(stat -L -c %s "$path")" -lt 1000000 ]; then
      printf '%s\t%s\n' "$path" "$(sha256sum <"$path")"
    elif [ -n "$path" ]; then
      printf '%s\t%s\n' "$path" "$(stat -L -c '%s %.9Y' "$path" 2>/dev/null || echo missing)"
    fi
  done
}

state_changes() { # what differs between the marker $1 and the state in file $2, with the values of variables
  awk -F '\t' '
    $1 == "finished" { next }
    FILENAME == ARGV[1] { old[$1] = $2; next }
    !($1 in old) || old[$1] != $2 { print $1 ($1 in old && $2 ~ /^"/ ? " " old[$1] " -> " $2 : "") }
    { delete old[$1] }
    END { for (name in old) print name }' "$1" "$2" | paste -sd , | sed 's/,/, /g'
}

clock() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

driver_error() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit 1
}

recipe_folder=$PWD
driver_functions=$(compgen -A function)
driver_variables=$(compgen -v)
