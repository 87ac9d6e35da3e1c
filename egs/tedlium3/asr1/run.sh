#!/usr/bin/env bash
# A 4-bit Whisper or Conformer adapted to sixteen speakers of TED-LIUM 3 whom it has not heard: one LoRA each (PQM), and
# mixtures of LoRA experts (SAML). Needs a GPU and a download of 51 GB; --mini true runs all of it on a generated
# miniature in seconds, which shows that it works and nothing else.

model=whisper                   # the base: whisper is taken over, conformer is trained here
whisper=openai/whisper-base.en  # the Whisper checkpoint: a name on the Hugging Face hub, or a folder
mini=false                      # a generated miniature of corpus, models and training
corpus_dir=                     # folder that holds TEDLIUM_release-3/; downloaded where empty
mirror=https://www.openslr.org/resources # of OpenSLR, for the download
max_train=0                     # talks for the base, the initial and the pre-trained experts; 0 takes all others
librispeech_dir=                # exp/MODEL of egs/librispeech to take base and pre-trained experts from, as SAML's authors do
nj=4                            # processes that check data, and jobs that the speakers are divided among
data_dir=data                   # tables, manifests and tokens
exp_dir=exp                     # models, hypotheses and scores
training=                       # options of all training runs, such as --training="--train.max_epochs 1"
decoding=                       # options of all decodes; by default a beam of 20, with CTC where there is CTC
systems="pqm saml_random saml"  # what to compare with the base: names of files in conf/
prune="2 4 6 8"                 # numbers of experts to leave out of the adapted ones; needs the system saml
results=                        # the table to write; by default RESULTS.md in the model's folder in exp-dir

. "$(dirname "$0")/path.sh"
normaliser=english order=random conf=conf tokens="--kind bpe --vocab_size 500" finetune=false beam=20
download=false targets=conf/target_speakers.txt experts=10 base_dir=$librispeech_dir
if [ "$mini" = true ]; then
  [ -z "$corpus_dir" ] || option_error "--mini true makes a corpus of its own: leave out --corpus-dir"
  conf=conf/mini tokens="--kind char" finetune=true beam=2 targets=conf/mini_target_speakers.txt experts=2
  corpus_dir=$data_dir/corpus whisper=$data_dir/tiny_whisper
  [ -n "${option_set[prune]-}" ] || prune=1
elif [ -z "$corpus_dir" ]; then
  corpus_dir=downloads download=true
fi
. "$MOE_ASR_ROOT/utils/speakers.sh"

stage_1() {
  stage "Download TED-LIUM 3, or make a miniature of it" outputs "$corpus_dir/TEDLIUM_release-3/legacy/dev/stm"
  if [ "$mini" = true ]; then
    python3 local/miniature.py --out_dir "$corpus_dir" --num_jobs "$nj"
    python3 local/tiny_whisper.py --out_dir "$whisper"
  elif [ "$download" = true ]; then
    python3 local/download.py --out_dir "$corpus_dir" --mirror "$mirror"
  fi
}

stage_2() {
  stage "Make manifests, and divide the speech of each speaker" \
    inputs "$corpus_dir/TEDLIUM_release-3/legacy/dev/stm" outputs "${prepared[@]}"
  python3 local/prepare.py --corpus_dir "$corpus_dir" --targets "$targets" --out_dir "$data_dir" \
    --init_speakers "$experts" --max_train "$max_train"
  make_manifests
  divide_speakers "$data_dir/init.txt" "$targets"
}

run_stages
