# shellcheck shell=bash
# Stages 2 to 9 of a recipe that joins a speech encoder and a language model by a projector, trains that on a general
# domain and adapts it to several accents. What a recipe sets and its stage 1 makes is in systems.sh; besides it sets
#
#   ready_encoder    speech encoder: a folder, or a name on the Hugging Face hub; empty: trained here
#   encoder_conf     its configuration where it is trained here: $conf/NAME.yaml makes exp/NAME; where there is
#                    $conf/NAME_head.yaml too, that comes first
#   encoder_init     checkpoint of Whisper whose encoder that training starts from; empty: from scratch
#   ready_lm         language model, as the encoder; empty: trained here, as $conf/lm.yaml says
#   lm_training      options for its training run
#   accent_init      model folder whose encoder the accent recogniser starts with; empty: from scratch. Where states of the
#                    encoder are kept (cached in systems.sh), $conf/accent.yaml leaves it as it is (frozen)
#   prompt           what the language model reads, with <speech> where the speech goes
#   import_options   options of bin/import_speech_llm
#   quantise         nf4: the language model is in 4 bits; none: not
#
# An encoder that is trained here writes units of sound by CTC: then stage 1 makes train_units.tsv and dev_units.tsv, and
# calls make_units. A language model that is trained here reads such units, or longer ones: then stage 1 makes
# train_pairs.jsonl and dev_pairs.jsonl, and confusions.json if its noise has such a table.

: "${prompt:?}" "${ready_encoder=}" "${encoder_conf:=encoder}" "${encoder_init=}" "${ready_lm=}" "${lm_training=}"
: "${import_options=}" "${accent_init=}"
[[ ${quantise:=none} =~ ^(none|nf4)$ ]] || option_error "--quantise takes none or nf4, not '$quantise'"
for part in ready_encoder ready_lm; do
  [[ -z ${!part} || ! -d $OLDPWD/${!part} ]] || printf -v "$part" %s "$OLDPWD/${!part}" # as the caller sees it
  [[ ${!part} != [/.]* || -d ${!part} ]] || option_error "no folder ${!part}"
done
unset part
base=$exp_dir/base/final
. "$MOE_ASR_ROOT/utils/systems.sh"
unit_data=(--data.manifests+ "$data_dir/train_units.jsonl.gz" --valid.manifests+ "$data_dir/dev_units.jsonl.gz")
pair_data=(--data.files+ "$data_dir/train_pairs.jsonl" --valid.files+ "$data_dir/dev_pairs.jsonl")
[ -n "$ready_encoder" ] || prepared+=("$data_dir"/{train,dev}_units.jsonl.gz "$data_dir/units")
[ -n "$ready_lm" ] || prepared+=("$data_dir"/{train,dev}_pairs.jsonl)

make_units() { # manifests and tokens
  normaliser=none make_manifests "train_units dev_units"
  python3 -m moe_asr.bin.tokens --manifests+ "$data_dir/train_units.jsonl.gz" --out_dir "$data_dir/units" --kind word
}

stage_2() {
  local made=() init=()
  [ -n "$ready_encoder" ] || made=("$exp_dir/$encoder_conf/final" "$exp_dir/$encoder_conf/dev/scores.json")
  stage "Train the speech encoder, or take one over" outputs "${made[@]}"
  if [ -n "$ready_encoder" ]; then
    echo "taken over: $ready_encoder"
    return
  fi
  if [ -n "$encoder_init" ]; then
    python3 -m moe_asr.bin.import_whisper --source "$encoder_init" --tokens "$data_dir/units" --normaliser none \
      --out_dir "$exp_dir/imported_encoder"
    init=(--init_encoder "$exp_dir/imported_encoder")
  fi
  init=(--tokens "$data_dir/units" "${init[@]}")
  if [ -f "$conf/${encoder_conf}_head.yaml" ]; then # first what is new, with an encoder that stays as it is
    train "${encoder_conf}_head" "${init[@]}" "${unit_data[@]}"
    init=(--init "$exp_dir/${encoder_conf}_head/final")
  fi
  train "$encoder_conf" "${init[@]}" "${unit_data[@]}"
  job "$decode_cmd" "$exp_dir/log/decode-$encoder_conf.log" python3 -m moe_asr.bin.decode --on_change restart \
    --model "$exp_dir/$encoder_conf/final" --manifest "$data_dir/dev_units.jsonl.gz" --search.kind prefix_beam \
    --out_dir "$exp_dir/$encoder_conf/dev"
  echo "units on the development set, without a language model:"
  python3 -m moe_asr.bin.score --decode_dir "$exp_dir/$encoder_conf/dev" --metric wer
}

stage_3() {
  local made=() options
  read -ra options <<<"$lm_training"
  [ ! -f "$data_dir/confusions.json" ] ||
    pair_data+=(--data.noise.confusions "$data_dir/confusions.json" --valid.noise.confusions "$data_dir/confusions.json")
  [ -n "$ready_lm" ] || made=("$exp_dir/lm/final")
  stage "Train the language model on text, or take one over" outputs "${made[@]}"
  if [ -n "$ready_lm" ]; then
    echo "taken over: $ready_lm"
  else
    job "$train_cmd" "$exp_dir/log/train-lm.log" python3 -m moe_asr.bin.train_lm --config "$conf/lm.yaml" \
      --exp_dir "$exp_dir/lm" --prompt "$prompt" --on_change restart "${pair_data[@]}" "${options[@]}"
  fi
}

stage_4() {
  local options from=$exp_dir/init
  read -ra options <<<"$import_options"
  stage "Base: train the projector between them on the general domain" outputs "$base"
  python3 -m moe_asr.bin.import_speech_llm --encoder "${ready_encoder:-$exp_dir/$encoder_conf/final}" \
    --lm "${ready_lm:-$exp_dir/lm/final}" --prompt "$prompt" --normaliser "$normaliser" --out_dir "$from" "${options[@]}"
  if [ "$quantise" = nf4 ]; then
    python3 -m moe_asr.bin.quantise --model "$from" --out_dir "$from-nf4"
    from+=-nf4
  fi
  if declare -F start_projector >/dev/null; then # a recipe's own way to give the projector a start
    start_projector "$from" "$exp_dir/started"
    from=$exp_dir/started
  fi
  train base --init "$from" "${general_data[@]}" "${cached[@]}"
}

stage_5() {
  local init=()
  [ -z "$accent_init" ] || init=(--init_encoder "$accent_init" "${cached[@]}")
  stage "Train the accent recogniser, and see what it takes for what" outputs "$exp_dir/accent/final"
  train accent "${init[@]}" "${general_data[@]}" "${accent_data[@]}"
  python3 -m moe_asr.bin.classify --model "$exp_dir/accent/final" --manifest "$data_dir/test.jsonl.gz" \
    --out_dir "$exp_dir/accent/test"
  list_accents
}

stage_6() {
  local names
  names=$(started_from)
  stage "Train LoRAs of single accents, where experts start from them"
  [ -n "$names" ] || echo "no experts do"
  each "$train_cmd" train_single "$names"
}

stage_7() {
  local folders
  mapfile -t folders < <(trained)
  folders=("${folders[@]/#/$exp_dir/}")
  stage "Adapt to the accents" outputs "${folders[@]/%//final}"
  each "$train_cmd" adapt "$(trained)"
}

stage_8() {
  local folders
  read -ra folders <<<"base $systems"
  folders=("${folders[@]/#/$exp_dir/}")
  stage "Decode the test set" outputs "${folders[@]/%//test/system.json}"
  each "$decode_cmd" decode_system "base $systems"
}

stage_9() {
  stage "Score" outputs "$results"
  score_systems
}
