# shellcheck shell=bash
# What recipes have in common that adapt one base to several accents and compare ways to do it: systems. The numbered
# stages are in adaptation.sh (a recogniser trained from scratch) and speech_llm.sh (a speech encoder and a language
# model joined by a projector); a recipe sources one of them after path.sh. Its own stage 1 makes in $data_dir the $tables
# (.tsv), and calls make_manifests. It sets
#
#   data_dir exp_dir results  where things are
#   conf                      folder of the configurations; by default conf
#   systems                   what to compare with the base: names of $conf/NAME.yaml
#   general                   the accent of the general domain
#   normaliser metric         name of the text normaliser; wer, cer or mer, by default wer
#   nj                        processes that check audio
#   training decoding         options for all training runs, and for all decodes
#   train_cmd decode_cmd      job back ends, in cmd.sh; empty runs jobs here, one after the other
#
# and, where no system changes a speech encoder that stays as it is, cached=(--encoder_cache FOLDER) after sourcing this.
# Who sources this sets $base, the model folder that experts go on, and, where a system that is trained as a whole
# starts from another, $full_base.
#
# A system's configuration holds the options of its training run, on top of those in $conf/systems.yaml where there is
# one. Comments of this form mean something:
#
#   # name: HDMoLE               its row in the table
#   # experts from: lora         each expert begins as a run of $conf/lora.yaml on the expert's own accent
#   # of: hdmole                 not trained: the file holds options of one more decode of that system

: "${nj:?}" "${data_dir:?}" "${exp_dir:?}" "${results:?}" "${systems:?}" "${general:?}" "${normaliser:?}" "${base:?}"
: "${conf:=conf}" "${metric:=wer}" "${training=}" "${decoding=}" "${train_cmd=}" "${decode_cmd=}" "${full_base:=$base}"

. "$MOE_ASR_ROOT/utils/runs.sh"
tables="train_general train_accents dev_general dev_accents test"
cached=()
prepared=("$data_dir"/{train_general,train_accents,dev_general,dev_accents,test}.jsonl.gz) # of stage 1
general_data=(--data.manifests+ "$data_dir/train_general.jsonl.gz" --valid.manifests+ "$data_dir/dev_general.jsonl.gz")
accent_data=(--data.manifests+ "$data_dir/train_accents.jsonl.gz" --valid.manifests+ "$data_dir/dev_accents.jsonl.gz")

for system in $systems; do
  [ -f "$conf/$system.yaml" ] || option_error "no system '$system': there is no $conf/$system.yaml"
  of=$(about "$system" of)
  [[ -z $of || " $systems " == *" $of "* ]] || option_error "the system $system needs the system $of: name it too"
done
unset system of

trained() { # prints the systems that training makes
  local system
  for system in $systems; do [ -n "$(about "$system" of)" ] || echo "$system"; done
}

started_from() { # prints the configurations of runs on single accents that systems start from
  local system
  for system in $systems; do about "$system" "experts from"; done | sort -u
}

make_manifests() { # make_manifests [TABLES]
  local table
  for table in ${1:-$tables}; do
    python3 -m moe_asr.bin.prepare --table "$data_dir/$table.tsv" --manifest "$data_dir/$table.jsonl.gz" \
      --normaliser "$normaliser" --check.num_jobs "$nj"
  done
}

train_single() { # train_single NAME: $conf/NAME.yaml makes exp/NAME/ACCENT for each accent, the general one among them
  local options shared=$conf/systems.yaml
  read_options "$1"
  echo "- $1"
  job "$train_cmd" "$exp_dir/log/train-$1.log" python3 -m moe_asr.bin.train_each "${options[@]}" \
    --exp_dir "$exp_dir/$1/{name}" --on_change restart --names "$data_dir/accents.txt" --data.accent "{name}" \
    --init "$base" "${general_data[@]}" "${accent_data[@]}" "${cached[@]}"
}

list_accents() { # of the training data, in the order of experts
  awk -F '\t' 'FNR == 1 { for (i = 1; i <= NF; i++) if ($i == "accent") column = i; next } { print $column }' \
    "$data_dir"/train_{general,accents}.tsv | LC_ALL=C sort -u >"$data_dir/accents.txt"
}

adapt() { # adapt NAME: full fine-tuning, or experts on the frozen base, as $conf/NAME.yaml says
  local options=(--init "$base") shared=$conf/systems.yaml experts accents general_of_base
  grep -q '^adaptation:' "$conf/$1.yaml" || options=(--init "$full_base") # what is in 4 bits cannot be trained itself
  if grep -q 'route: \(hierarchical\|given\)' "$conf/$1.yaml" && ! grep -q 'num_experts: 1$' "$conf/$1.yaml"; then
    options+=(--adaptation.domain_classifier "$exp_dir/accent/final")
  fi
  experts=$(about "$1" "experts from")
  if [ -n "$experts" ]; then
    general_of_base=
    ! grep -q 'base_domain:' "$conf/$1.yaml" || general_of_base=$general
    mapfile -t accents < <(grep -vxF -e "$general_of_base" "$data_dir/accents.txt")
    accents=("${accents[@]/#/"$exp_dir/$experts/"}")
    options+=(--adaptation.initial_experts "$(json_list "${accents[@]/%//final}")")
  fi
  echo "- $1"
  train "$1" "${options[@]}" "${accent_data[@]}" "${cached[@]}"
}

decode_system() { # decode_system NAME: the test set, with the base or with a system
  local options of=$1 model=(--model "$base")
  read -ra options <<<"$decoding"
  if [ "$1" != base ]; then
    of=$(about "$1" of)
    [ -z "$of" ] || options=(--config "$conf/$1.yaml" "${options[@]}")
    of=${of:-$1}
    if [ -f "$exp_dir/$of/final/adaptation.yaml" ]; then
      model+=(--adaptation "$exp_dir/$of/final")
    else
      model=(--model "$exp_dir/$of/final")
    fi
  fi
  job "$decode_cmd" "$exp_dir/log/decode-$1.log" python3 -m moe_asr.bin.decode "${options[@]}" "${model[@]}" \
    --manifest "$data_dir/test.jsonl.gz" --out_dir "$exp_dir/$1/test" --on_change restart "${cached[@]}"
}

score_systems() { # scores the decodes, and writes the table
  local system folder name rows=()
  for system in base $systems; do
    folder=$exp_dir/$system/test
    python3 -m moe_asr.bin.score --decode_dir "$folder" --metric "$metric" >"$folder/table.txt"
    name=$(about "$system" name)
    rows+=(--systems+ "${name:-$system}=$folder")
  done
  python3 -m moe_asr.bin.results "${rows[@]}" --general "$general" --metric "$metric" --output "$results"
}
