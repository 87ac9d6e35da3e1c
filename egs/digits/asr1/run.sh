#!/usr/bin/env bash
# Real recordings: spoken digits of six speakers with American, German, French and Greek accents (Free Spoken Digit
# Dataset, CC BY-SA 4.0), joined to digit strings. American is the general accent, the others are adapted to.

corpus_dir=                # folder that holds free_spoken_digit_dataset/; downloaded where empty
nj=2                       # processes that check data
data_dir=data              # speech, tables and manifests
exp_dir=exp                # models, hypotheses and scores
strings=                   # options of local/prepare.py, such as --strings="--general_train 100"
training=                  # options of all training runs, such as --training="--train.max_epochs 1"
systems="full lora hdmole" # what to compare with the base: names of files in conf/
quantise=none              # nf4: experts go on a base in 4 bits
results=RESULTS.md         # the table to write

. "$(dirname "$0")/path.sh"
general=american normaliser=english
. "$MOE_ASR_ROOT/utils/adaptation.sh"

stage_1() {
  stage "Join recorded digits to strings" inputs "$corpus_dir" outputs "${prepared[@]}"
  local options
  read -ra options <<<"$strings"
  python3 local/prepare.py --out_dir "$data_dir" ${corpus_dir:+--corpus_dir "$corpus_dir"} "${options[@]}"
  make_manifests
  make_tokens --kind char
}

run_stages
