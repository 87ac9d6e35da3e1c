#!/usr/bin/env bash
# Real recordings of Mandarin with the accents of many provinces (Common Voice, CC0), and a recogniser of a speech encoder,
# a projector and a small language model. The general domain is the Mandarin of the north; the projector is adapted to
# six groups of the south and east: full fine-tuning, LoRA, mixtures of LoRA experts, HDMoLE.

corpus_dir=       # folder that holds zh-CN/ in the layout of Common Voice
model_dir=        # folder that holds whisper-tiny.en/, in the files of transformers; from the hub where empty
encoder=whisper   # what becomes the speech encoder: whisper (tiny.en, trained on) or conformer (from scratch)
text="--words 100000" # options of local/pinyin.py for the training text: words of a dictionary beside the transcripts
nj=2              # processes that check data
data_dir=data     # tables, manifests and tokens
exp_dir=exp       # models, hypotheses and scores
training=         # options of all training runs but the language model's, such as --training="--train.max_epochs 1"
lm_training=      # options of the training run of the language model
starting=         # options of local/start_projector.py
decoding="--search.kind greedy" # options of all decodes
systems=          # what to compare with the base: names of files in conf/; by default the whole table
results=RESULTS.md # the table to write

. "$(dirname "$0")/path.sh"
[ -n "$corpus_dir" ] || option_error "give --corpus-dir, the folder that holds zh-CN/ (Common Voice, unpacked)"
[[ $encoder =~ ^(whisper|conformer)$ ]] || option_error "--encoder takes whisper or conformer, not '$encoder'"
general=Northern normaliser=mandarin metric=cer prompt="<speech>=" encoder_conf=$encoder
import_options="--projector.stride 2"
if [ "$encoder" = whisper ]; then
  encoder_init=${model_dir:+$model_dir/whisper-tiny.en} encoder_init=${encoder_init:-openai/whisper-tiny.en}
  import_options="--projector.stride 5" # so there are 10 frames a second, as the language model has learned to read
fi
systems=${systems:-full lora top1 top2 dense adamole hdmole hdmole_without_global hdmole_without_local hdmole_fixed hdmole_oracle hdmole_base}
. "$MOE_ASR_ROOT/utils/speech_llm.sh"
accent_init=$exp_dir/$encoder_conf/final # what it hears, so does the accent recogniser
cached=(--encoder_cache "$exp_dir/encoder_states") # which would take most of the time

stage_1() {
  stage "Make manifests, units of sound and text to train a language model on" inputs "$corpus_dir/zh-CN/train.tsv" \
    outputs "${prepared[@]}"
  local options
  read -ra options <<<"$text"
  python3 local/prepare.py --corpus_dir "$corpus_dir/zh-CN" --out_dir "$data_dir" --general "$general"
  python3 local/pinyin.py --table "$data_dir/train_text.tsv" --out_table "$data_dir/train_units.tsv" \
    --out_pairs "$data_dir/train_pairs.jsonl" --out_confusions "$data_dir/confusions.json" "${options[@]}"
  python3 local/pinyin.py --table "$data_dir/dev_text.tsv" --out_table "$data_dir/dev_units.tsv" \
    --out_pairs "$data_dir/dev_pairs.jsonl"
  make_manifests
  make_units
}

start_projector() { # start_projector FROM TO: by the syllables that the encoder's CTC output hears, whatever was said
  local options
  read -ra options <<<"$starting"
  python3 local/start_projector.py --units "$exp_dir/$encoder_conf/final" --init "$1" \
    --manifests+ "$data_dir/train_general.jsonl.gz" --manifests+ "$data_dir/train_accents.jsonl.gz" \
    --valid "$data_dir/dev_general.jsonl.gz" --out_dir "$2" "${cached[@]}" "${options[@]}"
}

run_stages
