# shellcheck shell=bash
# Command-line options of a shell script. Source it after the variables that are the options:
#
#   nj=2          # jobs at once    <- one a line, in column 0, lower case; the comment is its help
#   resume=false  # go on           <- a default of true or false accepts nothing else
#   . parse_options.sh
#
# gives `--nj 4` or `--nj=4` (`exp_dir` is `--exp-dir`), `--config FILE` with lines `nj=4` (the command line wins) and
# `--help`. What is left over stays in "$@". Values are only ever assigned, never evaluated. A mistake is one line and
# exit code 2.

option_names=()        # all options, in the order of the script
declare -A option_help # name -> its comment
declare -A option_set  # name -> where its value came from, for options that were set

option_error() {
  printf '%s: %s (--help lists the options)\n' "${0##*/}" "$1" >&2
  exit 2
}

find_options() { # reads the variable lines of script $1, down to the first file it sources
  local line variable='^([a-z][a-z0-9_]*)=([^(]|$)' comment='[[:space:]]#[[:space:]]+([^#]*)$'
  while IFS= read -r line; do
    case $line in '. '* | 'source '*) break ;; esac
    [[ $line =~ $variable ]] || continue
    option_names+=("${BASH_REMATCH[1]}")
    [[ ! $line =~ $comment ]] || option_help[${option_names[-1]}]=${BASH_REMATCH[1]}
  done <"$1"
}

nearest_option() { # prints the option that shares most pairs of letters with $1, if there is one like it
  local name best='' most=1 shared i
  for name in "${option_names[@]}"; do
    shared=0
    for ((i = 0; i + 1 < ${#1}; i++)); do [[ $name != *"${1:i:2}"* ]] || ((shared += 2)); done
    if ((shared > most && shared + 1 >= ${#1})); then most=$shared best=$name; fi
  done
  [ -z "$best" ] || echo "; did you mean --${best//_/-}?"
}

set_option() { # set_option NAME VALUE ORIGIN (locals with a _ cannot hide an option)
  local _name=${1//-/_}
  [[ " ${option_names[*]} " == *" $_name "* ]] || option_error "unknown option $3$(nearest_option "$_name")"
  [[ ! ${!_name} =~ ^(true|false)$ || $2 =~ ^(true|false)$ ]] || option_error "$3 takes true or false, not '$2'"
  printf -v "$_name" %s "$2"
  option_set[$_name]=$3
}

read_option_file() {
  local line form="^([a-z][a-z0-9_]*)=(\"([^\"]*)\"|'([^']*)'|([^[:space:]\"'#]*))[[:space:]]*(#.*)?$"
  [ -f "$1" ] || option_error "no configuration file '$1'"
  while IFS= read -r line || [ -n "$line" ]; do
    [[ ! $line =~ ^[[:space:]]*(#.*)?$ ]] || continue
    [[ $line =~ $form ]] || option_error "$1: expected name=value or name=\"value\", not '$line'"
    set_option "${BASH_REMATCH[1]}" "${BASH_REMATCH[3]}${BASH_REMATCH[4]}${BASH_REMATCH[5]}" "${BASH_REMATCH[1]} in $1"
  done <"$1"
}

read_defaults() { # read_defaults FILE: as --config FILE, but what was given stays as it was given
  local _name
  local -A _given
  for _name in "${!option_set[@]}"; do _given[$_name]=${!_name}; done
  read_option_file "$1"
  for _name in "${!_given[@]}"; do printf -v "$_name" %s "${_given[$_name]}"; done
}

print_help() { # the script's first comment, its options, and the stages of a recipe
  local _name _files
  mapfile -t _files < <(sed -n "s|^\. \"\$MOE_ASR_ROOT/\(.*\)\"\$|${MOE_ASR_ROOT-}/\1|p" "$0") # shared stages
  sed -n '2,${/^#/!q;s/^# \{0,1\}//p;}' "$0"
  printf '\nUsage: %s [--option value] ...\n' "$0"
  for _name in "${option_names[@]}"; do
    printf '  --%-14s %s (default: %s)\n' "${_name//_/-}" "${option_help[$_name]-}" "${!_name:-none}"
  done
  printf '  --%-14s %s\n' config 'file of such options, a line name=value each'
  awk '/^stage_[0-9]+\(\)/ { split($1, part, /[_(]/); number = part[2] }
    number != "" && match($0, /stage "[^"]*"/) {
      if (!seen++) print "\nStages:"
      printf "  %2d  %s\n", number, substr($0, RSTART + 7, RLENGTH - 8); number = "" }' "$0" "${_files[@]}"
}

find_options "$0"
[ "${BASH_SOURCE[1]}" = "$0" ] || find_options "${BASH_SOURCE[1]}"
for ((_i = 1; _i <= $#; _i++)); do # files first, whatever their place, so that the command line wins
  _next=$((_i + 1))
  case ${!_i} in
    --config) ((_next > $#)) || read_option_file "${!_next}" ;;
    --config=*) _next=${!_i} && read_option_file "${_next#*=}" ;;
    --help | -h) print_help && exit 0 ;;
    --) break ;;
  esac
done
while [ $# -gt 0 ]; do
  case $1 in
    --) shift && break ;;
    --config=*) ;;
    --*=*) _next=${1%%=*} && set_option "${_next#--}" "${1#*=}" "$_next" ;;
    --*)
      [ $# -gt 1 ] && [[ $2 != --* ]] || option_error "$1 needs a value"
      [ "$1" = --config ] || set_option "${1#--}" "$2" "$1"
      shift
      ;;
    -?*) option_error "options begin with two dashes: '$1'" ;;
    *) break ;;
  esac
  shift
done
unset _i _next
