#!/usr/bin/env bash
# Mandarin and its sub-dialects (KeSpeech) on top of general Mandarin (AISHELL-1): a speech encoder, a projector and a
# large language model; the projector is adapted by full fine-tuning, LoRA, mixtures of LoRA experts and HDMoLE.
#
# KeSpeech is free for research under a licence that you must accept yourself: apply for it as
# https://github.com/KeSpeech/KeSpeech says, and put its Audio/ and Tasks/ into DIR/KeSpeech; then --corpus-dir DIR.
# AISHELL-1 (16 GB, Apache-2.0) is downloaded from OpenSLR unless it is in DIR/aishell. All this needs GPUs;
# --mini true runs every stage on a generated miniature in minutes, which shows that they work and nothing else.

size=medium          # models and memory: large, medium or small, which are option files in conf/
mini=false           # a generated miniature of corpora, models and training
corpus_dir=          # folder that holds KeSpeech/ (Audio/, Tasks/), and aishell/ (data_aishell/) if you have it
mirror=https://www.openslr.org/resources # of OpenSLR, for the download
encoder=             # the speech encoder: a name on the Hugging Face hub, or a folder; as the size says where empty
lm=                  # the language model, likewise
prompt=              # what the language model reads, with <speech> where the speech goes; by default a chat of Qwen's
import_options=      # options of bin/import_speech_llm, besides those two
quantise=none        # nf4: the language model is in 4 bits
nj=4                 # processes that check data
data_dir=data        # tables and manifests
exp_dir=exp          # models, hypotheses and scores
miniature=           # options of local/miniature.py, such as --miniature="--train 40"
training=            # options of all training runs but the language model's, such as --training="--train.max_epochs 1"
lm_training=         # options of the training run of the miniature's language model
decoding=            # options of all decodes
metric=cer           # of the table; mer counts words of other scripts as words, and Chinese characters as cer does
systems=             # what to compare with the base: names of files in conf/; by default the whole table
results=             # the table to write; by default RESULTS.md in exp-dir

. "$(dirname "$0")/path.sh"
general=AISHELL-1 normaliser=mandarin conf=conf units=false download=false
if [ "$mini" = true ]; then
  [ -z "$corpus_dir" ] || option_error "--mini true makes corpora of its own: leave out --corpus-dir"
  conf=conf/mini units=true corpus_dir=$data_dir/corpus size=mini
elif [[ ! $size =~ ^(large|medium|small)$ ]]; then
  option_error "--size takes large, medium or small, not '$size'"
elif [ ! -d "$corpus_dir/KeSpeech/Tasks" ]; then
  option_error "no ${corpus_dir:-DIR}/KeSpeech/Tasks: its licence is for you to accept. Apply for it as \
https://github.com/KeSpeech/KeSpeech says, put its Audio/ and Tasks/ into DIR/KeSpeech and give --corpus-dir DIR; \
or see --mini true"
fi
read_defaults "conf/$size.conf"
aishell_dir=$corpus_dir/aishell
if [ "$mini" = false ] && [ ! -d "$aishell_dir/data_aishell" ]; then
  aishell_dir=downloads download=true
fi
results=${results:-$exp_dir/RESULTS.md}
systems=${systems:-full lora top1 top2 dense adamole hdmole hdmole_without_global hdmole_without_local hdmole_fixed hdmole_oracle}
prompt=${prompt:-$'<|im_start|>user\n<speech>\n请转写这段语音。<|im_end|>\n<|im_start|>assistant\n'}
ready_encoder=$encoder ready_lm=$lm
[ "$mini" = false ] || accent_init=$exp_dir/encoder/final
. "$MOE_ASR_ROOT/utils/speech_llm.sh"

stage_1() {
  stage "Make manifests; before that download AISHELL-1, or make miniatures" outputs "${prepared[@]}"
  local options
  if [ "$mini" = true ]; then
    read -ra options <<<"$miniature"
    python3 local/miniature.py --out_dir "$corpus_dir" --num_jobs "$nj" "${options[@]}"
  elif [ "$download" = true ]; then
    python3 local/download.py --out_dir "$aishell_dir" --mirror "$mirror"
  fi
  python3 local/prepare.py --kespeech "$corpus_dir/KeSpeech" --aishell "$aishell_dir" --out_dir "$data_dir" \
    --general "$general" --units "$units"
  make_manifests
  if [ "$units" = true ]; then make_units; fi
}

run_stages
