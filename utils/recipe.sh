# shellcheck shell=bash
# All that the run.sh of a recipe needs. Its path.sh is the one line
#   . "$(dirname "${BASH_SOURCE[0]}")/../../../utils/recipe.sh"
# and its run.sh is: a comment saying what the recipe does, its options (see parse_options.sh), `. "$(dirname
# "$0")/path.sh"`, stages (see stages.sh), `run_stages`.
#
# From there on: errors stop the script; the working directory is the recipe's own; `python3` is one that can import
# moe_asr (tools/setup.sh makes it where there is none); utils/ is on PATH; cmd.sh was read.

set -euo pipefail
shopt -s inherit_errexit

stage=      # begin with this stage, done before or not
stop_stage= # stop after this stage

readonly recipe_command=("$0" "$@")
MOE_ASR_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$MOE_ASR_ROOT/utils/parse_options.sh"
[ $# = 0 ] || option_error "unexpected argument '$1'"
[[ $stage,$stop_stage =~ ^(0|[1-9][0-9]{0,2})?,(0|[1-9][0-9]{0,2})?$ ]] || option_error "--stage and --stop-stage take numbers"

for _name in "${!option_set[@]}"; do # the caller's relative paths, before we leave the caller's directory
  if [[ $_name == *_@(dir|file) && ${!_name} == [!/]* ]]; then printf -v "$_name" %s "$PWD/${!_name}"; fi
done
unset _name
cd "$(dirname "$0")"

json_list() { # json_list WORD ...: prints ["WORD","..."], whatever signs are in the words
  local word list=''
  for word in "$@"; do
    # shellcheck disable=SC1003 # the quotes are right: it is one backslash, and two
    word=${word//'\'/'\\'}
    list+=",\"${word//'"'/'\"'}\""
  done
  printf '[%s]\n' "${list#,}"
}

_bin=$("$MOE_ASR_ROOT/tools/setup.sh") || exit 1
PATH=${_bin:+$_bin:}$MOE_ASR_ROOT/utils:$PATH
export MOE_ASR_ROOT PATH
unset _bin
[ ! -f cmd.sh ] || . ./cmd.sh
. "$MOE_ASR_ROOT/utils/stages.sh"
