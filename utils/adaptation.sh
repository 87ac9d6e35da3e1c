# shellcheck shell=bash
# Stages 2 to 6 of a recipe that adapts a general recogniser to several accents: base model, accent recogniser,
# adaptations, decoding, scoring. A recipe sources this after path.sh; its own stage 1 makes in $data_dir the $tables
# (.tsv), and calls make_manifests and make_tokens. It sets
#
#   data_dir exp_dir results  where things are
#   systems                   adaptations to compare: names of conf/NAME.yaml, whose first line names the table's row
#   general                   the accent of the general domain
#   normaliser                name of the text normaliser
#   quantise                  nf4: the base is in 4 bits when experts are trained on it and decoded with it; none: not
#   nj                        processes that check audio
#   training                  options for all training runs
#   train_cmd decode_cmd      job back ends, in cmd.sh; empty runs jobs here

: "${nj:?}" "${data_dir:?}" "${exp_dir:?}" "${results:?}" "${systems:?}" "${general:?}" "${normaliser:?}" "${training=}"
: "${train_cmd=}" "${decode_cmd=}" "${quantise:=none}"

[[ $quantise =~ ^(none|nf4)$ ]] || option_error "--quantise takes none or nf4, not '$quantise'"
base=$exp_dir/base/final
[ "$quantise" = none ] || base=$exp_dir/base-$quantise

tables="train_general train_accents dev_general dev_accents test"
prepared=("$data_dir"/{train_general,train_accents,dev_general,dev_accents,test}.jsonl.gz "$data_dir/tokens") # of stage 1

make_manifests() {
  local table
  for table in $tables; do
    python3 -m moe_asr.bin.prepare --table "$data_dir/$table.tsv" --manifest "$data_dir/$table.jsonl.gz" \
      --normaliser "$normaliser" --check.num_jobs "$nj"
  done
}

make_tokens() { # make_tokens OPTIONS: the token set of the base recogniser
  python3 -m moe_asr.bin.tokens --manifests+ "$data_dir/train_general.jsonl.gz" --out_dir "$data_dir/tokens" "$@"
}

stage_2() {
  local made=("$exp_dir/base/final")
  [ "$quantise" = none ] || made+=("$base")
  stage "Train the base recogniser on the general accent" outputs "${made[@]}"
  train base --tokens "$data_dir/tokens" --normaliser "$normaliser" \
    --data.manifests+ "$data_dir/train_general.jsonl.gz" --valid.manifests+ "$data_dir/dev_general.jsonl.gz"
  if [ "$quantise" = nf4 ]; then
    python3 -m moe_asr.bin.quantise --model "$exp_dir/base/final" --out_dir "$base"
  fi
}

stage_3() {
  stage "Train the accent recogniser" outputs "$exp_dir/accent/final"
  train accent --init_encoder "$exp_dir/base/final" \
    --data.manifests+ "$data_dir/train_general.jsonl.gz" --data.manifests+ "$data_dir/train_accents.jsonl.gz" \
    --valid.manifests+ "$data_dir/dev_general.jsonl.gz" --valid.manifests+ "$data_dir/dev_accents.jsonl.gz"
}

stage_4() {
  local system folders
  read -ra folders <<<"$systems"
  folders=("${folders[@]/#/$exp_dir/}")
  stage "Adapt to the accents" outputs "${folders[@]/%//final}"
  for system in $systems; do adapt "$system"; done
}

adapt() { # adapt NAME: full fine-tuning, or experts on the frozen base, as conf/NAME.yaml says
  local routed=() from=$base
  [ -f "conf/$1.yaml" ] || { echo "error: no system '$1': there is no conf/$1.yaml" >&2 && exit 1; }
  if grep -q 'route: \(hierarchical\|given\)' "conf/$1.yaml" && ! grep -q 'num_experts: 1$' "conf/$1.yaml"; then
    routed=(--adaptation.domain_classifier "$exp_dir/accent/final")
  fi
  grep -q '^adaptation:' "conf/$1.yaml" || from=$exp_dir/base/final # what is in 4 bits cannot be trained itself
  echo "- $1"
  train "$1" --init "$from" "${routed[@]}" \
    --data.manifests+ "$data_dir/train_accents.jsonl.gz" --valid.manifests+ "$data_dir/dev_accents.jsonl.gz"
}

train() { # train NAME OPTIONS: conf/NAME.yaml makes exp/NAME
  local options
  read -ra options <<<"$training"
  job "$train_cmd" "$exp_dir/log/train-$1.log" python3 -m moe_asr.bin.train --config "conf/$1.yaml" \
    --exp_dir "$exp_dir/$1" --on_change restart "${@:2}" "${options[@]}"
}

stage_5() {
  local system model folders
  read -ra folders <<<"base $systems"
  folders=("${folders[@]/#/$exp_dir/}")
  stage "Decode the test set" outputs "${folders[@]/%//test/system.json}"
  for system in base $systems; do
    model=(--model "$exp_dir/$system/final")
    [ "$system" != base ] || model=(--model "$base")
    if [ -f "$exp_dir/$system/final/adaptation.yaml" ]; then
      model=(--model "$base" --adaptation "$exp_dir/$system/final")
    fi
    job "$decode_cmd" "$exp_dir/log/decode-$system.log" python3 -m moe_asr.bin.decode "${model[@]}" \
      --manifest "$data_dir/test.jsonl.gz" --out_dir "$exp_dir/$system/test" --on_change restart
  done
}

stage_6() {
  stage "Score" outputs "$results"
  local system folder name rows=()
  for system in base $systems; do
    folder=$exp_dir/$system/test
    python3 -m moe_asr.bin.score --decode_dir "$folder" >"$folder/table.txt"
    name=$(sed -n 's/^# name: //p' "conf/$system.yaml")
    rows+=(--systems+ "${name:-$system}=$folder")
  done
  python3 -m moe_asr.bin.results "${rows[@]}" --general "$general" --output "$results"
}

job() { # job BACK-END LOG COMMAND...: by a job back end such as slurm.sh, or here where there is none
  local back_end
  read -ra back_end <<<"$1"
  if [ ${#back_end[@]} = 0 ]; then "${@:3}"; else "${back_end[@]}" "${@:2}"; fi
}
