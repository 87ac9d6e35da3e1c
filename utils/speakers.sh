# shellcheck shell=bash
# Stages 3 to 10 of a recipe that adapts one 4-bit recogniser to speakers: tokens, base, quantisation, LoRAs of some
# speakers, pre-training of experts and routers that start from them, adaptation to each target speaker, decoding,
# scoring. A recipe sources this after path.sh. Its own stage 2 makes in $data_dir the $tables (.tsv), and calls
# make_manifests and divide_speakers. It sets
#
#   data_dir exp_dir results  where things are
#   model                     conformer (trained here) or whisper (taken over)
#   whisper finetune          the checkpoint; true gives it new tokens and trains it on the data of the base
#   import_options            options of bin/import_whisper
#   base_dir                  where another recipe put a base and pre-trained experts that this one is to take; empty: none
#   systems                   what to compare with the base in 32 and in 4 bits: names of conf/NAME.yaml
#   prune                     numbers of experts to leave out of the system saml, each one more row
#   conf                      folder of the configurations
#   tokens                    options of bin/tokens
#   order                     contiguous or random division of each target speaker's utterances
#   normaliser                name of the text normaliser
#   nj                        processes that check audio, and jobs that the speakers are divided among
#   training decoding         options for all training runs and for all decodes; the latter by default a search by $beam
#   adaptation                options for all training runs of experts
#   train_cmd decode_cmd      job back ends, in cmd.sh; empty runs jobs here
#   each_cmd                  the one for speakers; train_cmd where it is empty
#
# A configuration's first line names the table's row. One without `adaptation:` goes on with the pre-trained experts.

: "${nj:?}" "${data_dir:?}" "${exp_dir:?}" "${model:?}" "${systems:?}" "${conf:?}" "${tokens:?}" "${order:?}"
: "${normaliser:?}" "${whisper=}" "${finetune:=false}" "${import_options=}" "${training=}" "${adaptation=}"
: "${decoding=}" "${results=}" "${train_cmd=}" "${each_cmd=}" "${decode_cmd=}" "${base_dir=}" "${prune=}"

. "$MOE_ASR_ROOT/utils/runs.sh"
[[ $model =~ ^(whisper|conformer)$ ]] || option_error "--model takes whisper or conformer, not '$model'"
if [ -z "$decoding" ]; then
  decoding="--search.kind beam --search.beam ${beam:-20}"
  [ "$model" = whisper ] || decoding+=" --search.ctc_weight 0.3"
fi
[[ -z $whisper || ! -d $OLDPWD/$whisper ]] || whisper=$OLDPWD/$whisper # a folder, as the caller sees it
tables="train dev target"
prepared=("$data_dir"/{train,dev,init_train,init_dev,adapt_train,adapt_dev,adapt_test}.jsonl.gz)
model_exp=$exp_dir/$model base_dir=${base_dir:-$exp_dir/$model} # all that comes of one base

make_manifests() {
  local table
  for table in $tables; do
    python3 -m moe_asr.bin.prepare --table "$data_dir/$table.tsv" --manifest "$data_dir/$table.jsonl.gz" \
      --normaliser "$normaliser" --check.num_jobs "$nj"
  done
}

divide_speakers() { # divide_speakers INITIAL TARGET: lists of the speakers of the initial experts and of those to adapt to
  python3 -m moe_asr.bin.split_speakers --manifest "$data_dir/train.jsonl.gz" --speakers "$1" --order random \
    --parts+ init_train=0.8 --parts+ init_dev=0.2 --out_dir "$data_dir" --used init_speakers.txt
  python3 -m moe_asr.bin.split_speakers --manifest "$data_dir/target.jsonl.gz" --speakers "$2" --order "$order" \
    --parts+ adapt_train=0.4 --parts+ adapt_dev=0.2 --parts+ adapt_test=0.4 \
    --out_dir "$data_dir" --used adapt_speakers.txt
}

taken() { # are the base and the pre-trained experts those of another recipe?
  [ "$base_dir" != "$model_exp" ] && echo "taken from $base_dir"
}

base_data=(--data.manifests+ "$data_dir/train.jsonl.gz" --valid.manifests+ "$data_dir/dev.jsonl.gz")

stage_3() {
  local options
  read -ra options <<<"$tokens"
  stage "Make tokens and a lang folder" outputs "$data_dir/tokens" "$data_dir/lang"
  python3 -m moe_asr.bin.tokens --manifests+ "$data_dir/train.jsonl.gz" --out_dir "$data_dir/tokens" "${options[@]}"
  python3 -m moe_asr.bin.lang --manifests+ "$data_dir/train.jsonl.gz" --tokens "$data_dir/tokens" \
    --normaliser "$normaliser" --out_dir "$data_dir/lang"
}

stage_4() {
  local from options
  read -ra options <<<"$import_options"
  stage "Train the base recogniser, or take over Whisper" outputs "$base_dir/base/final"
  if taken; then return; fi
  if [ "$model" = conformer ]; then
    train_model conformer "$model_exp/base" --tokens "$data_dir/tokens" --normaliser "$normaliser" "${base_data[@]}"
  elif [ "$finetune" = true ]; then
    python3 -m moe_asr.bin.import_whisper --source "$whisper" --normaliser "$normaliser" \
      --tokens "$data_dir/tokens" --out_dir "$model_exp/imported" "${options[@]}"
    from=$model_exp/imported
    if [ -f "$conf/new_tokens.yaml" ]; then # first the new tokens alone, with an encoder that stays as it is
      train_model new_tokens "$model_exp/new_tokens" --init "$from" "${base_data[@]}"
      from=$model_exp/new_tokens/final
    fi
    train_model finetune "$model_exp/base" --init "$from" "${base_data[@]}"
  else
    python3 -m moe_asr.bin.import_whisper --source "$whisper" --normaliser "$normaliser" \
      --out_dir "$model_exp/base/final" "${options[@]}"
  fi
}

stage_5() {
  stage "Store the base in 4 bits" inputs "$base_dir/base/final" outputs "$base_dir/nf4"
  if taken; then return; fi
  python3 -m moe_asr.bin.quantise --model "$model_exp/base/final" --out_dir "$model_exp/nf4"
}

stage_6() {
  stage "Train LoRAs of some speakers, for the initial experts" inputs "$data_dir/init_speakers.txt" outputs "$base_dir/init"
  if taken; then return; fi
  train_each init "$data_dir/init_speakers.txt" init_train init_dev
}

stage_7() {
  stage "Pre-train the experts and their routers" inputs "$data_dir/init_speakers.txt" outputs "$base_dir/pretrain/final"
  if taken; then return; fi
  local initial
  mapfile -t initial <"$data_dir/init_speakers.txt"
  initial=("${initial[@]/#/"$model_exp/init/"}")
  train_model pretrain "$model_exp/pretrain" --init "$model_exp/nf4" "${base_data[@]}" \
    --adaptation.initial_experts "$(json_list "${initial[@]/%//final}")"
}

stage_8() {
  local system from folders
  read -ra folders <<<"$systems"
  stage "Adapt to each target speaker" inputs "$data_dir/adapt_speakers.txt" outputs "${folders[@]/#/$model_exp/}"
  for system in $systems; do
    [ -f "$conf/$system.yaml" ] || { echo "error: no system '$system': there is no $conf/$system.yaml" >&2 && exit 1; }
    from=()
    if ! grep -q '^adaptation:' "$conf/$system.yaml"; then from=(--init_adaptation "$base_dir/pretrain/final"); fi
    echo "- $system"
    train_each "$system" "$data_dir/adapt_speakers.txt" adapt_train adapt_dev "${from[@]}"
  done
}

train_each() { # train_each NAME SPEAKERS TRAIN DEV OPTIONS: $nj jobs make exp/MODEL/NAME/SPEAKER for each speaker
  local options
  read -ra options <<<"$training $adaptation"
  array "${each_cmd:-$train_cmd}" "$model_exp/log/train-$1.JOB.log" python3 -m moe_asr.bin.train_each \
    --config "$conf/$1.yaml" --names "$2" --job JOB --num_jobs "$nj" \
    --exp_dir "$model_exp/$1/{name}" --init "$base_dir/nf4" \
    --data.manifests+ "$data_dir/$3.jsonl.gz" --valid.manifests+ "$data_dir/$4.jsonl.gz" \
    --data.speaker "{name}" --valid.speaker "{name}" --on_change restart "${@:5}" "${options[@]}"
}

train_model() { # train_model NAME FOLDER OPTIONS: conf/NAME.yaml makes FOLDER
  local options
  read -ra options <<<"$training"
  job "$train_cmd" "$model_exp/log/train-$1.log" python3 -m moe_asr.bin.train --config "$conf/$1.yaml" \
    --exp_dir "$2" --on_change restart "${@:3}" "${options[@]}"
}

stage_9() {
  local system drop folders dropped
  read -ra folders <<<"fp32 nf4 $systems"
  read -ra dropped <<<"$prune"
  folders+=("${dropped[@]/#/saml-}")
  folders=("${folders[@]/#/$model_exp/decode/}")
  stage "Prune experts, and decode the test part of each target speaker" outputs "${folders[@]/%//system.json}"
  decode_speakers fp32 "$base_dir/base/final"
  decode_speakers nf4 "$base_dir/nf4"
  for system in $systems; do
    decode_speakers "$system" "$base_dir/nf4" --adaptation "$model_exp/$system/{speaker}/final"
  done
  for drop in $prune; do
    job "$decode_cmd" "$model_exp/log/prune-$drop.log" python3 -m moe_asr.bin.prune --model "$base_dir/nf4" \
      --drop "$drop" --manifest "$data_dir/adapt_dev.jsonl.gz" --adaptation "$model_exp/saml/{speaker}/final" \
      --out_dir "$model_exp/saml-$drop/{speaker}/final"
    decode_speakers "saml-$drop" "$base_dir/nf4" --adaptation "$model_exp/saml-$drop/{speaker}/final"
  done
}

decode_speakers() { # decode_speakers NAME MODEL OPTIONS
  local options
  read -ra options <<<"$decoding"
  job "$decode_cmd" "$model_exp/log/decode-$1.log" python3 -m moe_asr.bin.decode --model "$2" "${@:3}" \
    --manifest "$data_dir/adapt_test.jsonl.gz" --out_dir "$model_exp/decode/$1" --on_change restart "${options[@]}"
}

stage_10() {
  results=${results:-$model_exp/RESULTS.md}
  stage "Score" outputs "$results"
  local system name drop rows=()
  name_row fp32 "full precision"
  name_row nf4 "NF4"
  for system in $systems; do
    name=$(sed -n 's/^# name: //p' "$conf/$system.yaml")
    name_row "$system" "${name:-$system}"
  done
  for drop in $prune; do name_row "saml-$drop" "NF4 + SAML, pruned by $drop"; done
  python3 -m moe_asr.bin.results "${rows[@]}" --by speaker --output "$results"
}

name_row() { # name_row SYSTEM NAME: scores a decode, and gives it a row of the table
  local folder=$model_exp/decode/$1
  python3 -m moe_asr.bin.score --decode_dir "$folder" >"$folder/table.txt"
  rows+=(--systems+ "$2=$folder")
}
