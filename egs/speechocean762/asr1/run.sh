#!/usr/bin/env bash
# A 4-bit Whisper adapted to sixty speakers of real recordings: Mandarin speakers of English, adults and children
# (speechocean762, OpenSLR 101), twenty sentences each. One LoRA each (PQM), and mixtures of LoRA experts (SAML).

corpus_dir=                    # folder that holds speechocean762/ (its text, wav.scp, WAVE/ ...)
model_dir=                     # folder that holds whisper-tiny.en/, in the files of transformers; from the hub where empty
nj=2                           # processes that check data, and jobs that the speakers are divided among
data_dir=data                  # tables, manifests and tokens
exp_dir=exp                    # models, hypotheses and scores
training=                      # options of all training runs, such as --training="--train.max_epochs 1"
adaptation=                    # options of all training runs of experts
decoding="--search.kind beam --search.beam 8" # options of all decodes
systems="pqm saml_random saml" # what to compare with the base: names of files in conf/
prune=                         # numbers of experts to leave out of the adapted ones; needs the system saml
results=RESULTS.md             # the table to write

. "$(dirname "$0")/path.sh"
[ -n "$corpus_dir" ] || option_error "give --corpus-dir, the folder that holds speechocean762/ (OpenSLR 101, unpacked)"
model=whisper whisper=${model_dir:+$model_dir/whisper-tiny.en} finetune=true conf=conf order=random normaliser=english
whisper=${whisper:-openai/whisper-tiny.en} tokens="--kind bpe --vocab_size 500"
import_options="--decoder_dropout 0.1 --label_smoothing 0.1"
. "$MOE_ASR_ROOT/utils/speakers.sh"

stage_1() {
  stage "Make manifests, and divide the speech of each speaker" inputs "$corpus_dir/speechocean762/test/text" \
    outputs "${prepared[@]}"
  python3 local/prepare.py --corpus_dir "$corpus_dir/speechocean762" --out_dir "$data_dir"
  make_manifests
  divide_speakers "$data_dir/init.txt" "$data_dir/target.txt"
}

run_stages
