# shellcheck shell=bash
# Stages 2 to 6 of a recipe that adapts a general recogniser to several accents: base model, accent recogniser,
# adaptations, decoding, scoring. A recipe sources this after path.sh; its own stage 1 makes in $data_dir the $tables
# (.tsv), and calls make_manifests and make_tokens. It sets
#
#   data_dir exp_dir results  where things are
#   systems                   adaptations to compare: names of conf/NAME.yaml
#   general                   the accent of the general domain
#   normaliser                name of the text normaliser
#   nj                        processes that check audio
#   training                  options for all training runs

: "${nj:?}" "${data_dir:?}" "${exp_dir:?}" "${results:?}" "${systems:?}" "${general:?}" "${normaliser:?}" "${training=}"

tables="train_general train_accents dev_general dev_accents test"

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
  stage "Train the base recogniser on the general accent" outputs "$exp_dir/base/final"
  train base --data.manifests+ "$data_dir/train_general.jsonl.gz" --valid.manifests+ "$data_dir/dev_general.jsonl.gz" \
    --tokens "$data_dir/tokens" --normaliser "$normaliser"
}

stage_3() {
  stage "Train the accent recogniser" outputs "$exp_dir/accent/final"
  train accent --init_encoder "$exp_dir/base/final" --data.manifests+ "$data_dir/train_general.jsonl.gz" --data.manifests+ "$data_dir/train_accents.jsonl.gz" \
    --valid.manifests+ "$data_dir/dev_general.jsonl.gz" --valid.manifests+ "$data_dir/dev_accents.jsonl.gz"
}

stage_4() {
  stage "Adapt to the accents"
  local system
  for system in $systems; do adapt "$system"; done
}

adapt() { # adapt NAME: full fine-tuning, or experts on the frozen base, as conf/NAME.yaml says
  local routed=()
  case $1 in full* | lora*) ;; *) routed=(--adaptation.domain_classifier "$exp_dir/accent/final") ;; esac
  echo "- $1"
  train "$1" --init "$exp_dir/base/final" "${routed[@]}" --data.manifests+ "$data_dir/train_accents.jsonl.gz" \
    --valid.manifests+ "$data_dir/dev_accents.jsonl.gz"
}

train() { # train NAME OPTIONS: conf/NAME.yaml makes exp/NAME
  local options
  read -ra options <<<"$training"
  python3 -m moe_asr.bin.train --config "conf/$1.yaml" --exp_dir "$exp_dir/$1" --on_change restart "${@:2}" "${options[@]}"
}

stage_5() {
  stage "Decode the test set"
  local system model
  for system in base $systems; do
    model=(--model "$exp_dir/$system/final")
    if [ -f "$exp_dir/$system/final/adaptation.yaml" ]; then
      model=(--model "$exp_dir/base/final" --adaptation "$exp_dir/$system/final")
    fi
    python3 -m moe_asr.bin.decode "${model[@]}" --manifest "$data_dir/test.jsonl.gz" --out_dir "$exp_dir/$system/test" \
      --on_change restart
  done
}

stage_6() {
  stage "Score" outputs "$results"
  local system rows=()
  for system in base $systems; do
    python3 -m moe_asr.bin.score --decode_dir "$exp_dir/$system/test" --normaliser "$normaliser" >"$exp_dir/$system/test/table.txt"
    rows+=(--systems+ "$(sed -n 's/^# *name: *//p' "conf/$system.yaml")=$exp_dir/$system/test")
  done
  python3 -m moe_asr.bin.results "${rows[@]}" --general "$general" --normaliser "$normaliser" --output "$results"
}
