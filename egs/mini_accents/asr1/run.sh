#!/usr/bin/env bash
# A recogniser trained on one accent of synthetic English learns five others: full fine-tuning, one LoRA and HDMoLE side
# by side. Needs no data and no GPU; takes minutes on two cores.

nj=2                       # processes that make and check data
data_dir=data              # speech, tables and manifests
exp_dir=exp                # models, hypotheses and scores
synthesis=                 # options of local/synthesise.py, such as --synthesis="--general_train 100"
training=                  # options of all training runs, such as --training="--train.max_epochs 1"
systems="full lora hdmole" # what to compare with the base: names of files in conf/
quantise=none              # nf4: experts go on a base in 4 bits
results=RESULTS.md         # the table to write

. "$(dirname "$0")/path.sh"
general=american normaliser=english
. "$MOE_ASR_ROOT/utils/adaptation.sh"

stage_1() {
  stage "Make speech, manifests and tokens" outputs "${prepared[@]}"
  local options
  read -ra options <<<"$synthesis"
  python3 local/synthesise.py --out_dir "$data_dir" --num_jobs "$nj" "${options[@]}"
  make_manifests
  make_tokens --kind bpe --vocab_size 120
}

run_stages
