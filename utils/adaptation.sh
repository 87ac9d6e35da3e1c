# shellcheck shell=bash
# Stages 2 to 6 of a recipe that trains a recogniser on a general accent and adapts it to several others: base model,
# accent recogniser, adaptations, decoding, scoring. What a recipe sets and its stage 1 makes is in systems.sh; besides,
# stage 1 calls make_tokens, and it sets
#
#   quantise  nf4: the base is in 4 bits when experts are trained on it and decoded with it; none: not

[[ ${quantise:=none} =~ ^(none|nf4)$ ]] || option_error "--quantise takes none or nf4, not '$quantise'"
full_base=$exp_dir/base/final base=$exp_dir/base/final
[ "$quantise" = none ] || base=$exp_dir/base-$quantise
. "$MOE_ASR_ROOT/utils/systems.sh"
prepared+=("$data_dir/tokens")

make_tokens() { # make_tokens OPTIONS: the token set of the base recogniser
  python3 -m moe_asr.bin.tokens --manifests+ "$data_dir/train_general.jsonl.gz" --out_dir "$data_dir/tokens" "$@"
}

stage_2() {
  local made=("$full_base")
  [ "$quantise" = none ] || made+=("$base")
  stage "Train the base recogniser on the general accent" outputs "${made[@]}"
  train base --tokens "$data_dir/tokens" --normaliser "$normaliser" "${general_data[@]}"
  if [ "$quantise" = nf4 ]; then
    python3 -m moe_asr.bin.quantise --model "$full_base" --out_dir "$base"
  fi
}

stage_3() {
  stage "Train the accent recogniser" outputs "$exp_dir/accent/final"
  train accent --init_encoder "$full_base" "${general_data[@]}" "${accent_data[@]}"
}

stage_4() {
  local folders
  mapfile -t folders < <(trained)
  folders=("${folders[@]/#/$exp_dir/}")
  stage "Adapt to the accents" outputs "${folders[@]/%//final}"
  each "$train_cmd" adapt "$(trained)"
}

stage_5() {
  local folders
  read -ra folders <<<"base $systems"
  folders=("${folders[@]/#/$exp_dir/}")
  stage "Decode the test set" outputs "${folders[@]/%//test/system.json}"
  each "$decode_cmd" decode_system "base $systems"
}

stage_6() {
  stage "Score" outputs "$results"
  score_systems
}
