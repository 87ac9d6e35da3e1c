#!/usr/bin/env bash
# A multilingual Whisper customised to some languages (Common Voice, CC0; or MLS, FLEURS): a LoRA expert for each
# language, fused for each utterance or once and for all, or distilled into one student; beside full fine-tuning and one
# shared LoRA; decoded with the language told ("language-aware") and not told ("language-agnostic").
#
# Common Voice is downloaded by hand from https://commonvoice.mozilla.org/datasets: unpack each language into DIR/LANGUAGE
# and give --corpus-dir DIR. A large Whisper needs a GPU; --mini true runs every stage on a generated miniature.

mini=false           # a generated miniature of corpus, model and training
corpus=common_voice  # where the speech comes from: common_voice, mls or fleurs
corpus_dir=          # folder that holds the languages' folders, such as de/ with train.tsv and clips/ in it
languages="de el es fr ru tr" # codes of languages, as in Common Voice: de, zh-CN
base_languages=      # those that a base with tokens of its own knows; languages where empty. More can be added later
digits=              # languages whose speech is spoken digits instead: en, ar
digits_dir=          # folder that holds free_spoken_digit_dataset/ and arabic_digits/
select=              # options of local/prepare.py, such as --select="--max_train 1000"
model=openai/whisper-large-v3 # the Whisper, a name on the Hugging Face hub
model_dir=           # or a folder in the files of transformers
tokens=              # options of bin/tokens, such as --tokens="--kind char": own tokens, and the base is trained first
import_options=      # options of bin/import_whisper
warm_start=true      # experts that are added to others begin as the nearest of them
nj=4                 # processes that check data, and jobs that the languages are divided among
data_dir=data        # tables and manifests
exp_dir=exp          # models, hypotheses and scores
training=            # options of all training runs, such as --training="--train.max_epochs 1"
decoding=            # options of all decodes
systems="full lora experts fusion fusion_router fusion_along static_exact static_svd student student_all" # files in conf/
against=lora         # the system that others are compared with
results=             # the table to write; by default RESULTS.md in exp-dir

. "$(dirname "$0")/path.sh"
conf=conf
if [ "$mini" = true ]; then
  [ -z "$corpus_dir" ] || option_error "--mini true makes a corpus of its own: leave out --corpus-dir"
  [ -n "${option_set[languages]-}" ] || languages=${base_languages:-de el ru zh-CN}
  conf=conf/mini corpus_dir=$data_dir/corpus model_dir=$data_dir/tiny_whisper
  tokens=${tokens:---kind char} import_options=${import_options:---language_weight 1}
fi
[[ $corpus =~ ^(common_voice|mls|fleurs)$ ]] || option_error "--corpus takes common_voice, mls or fleurs, not '$corpus'"
[ -n "$corpus_dir" ] || option_error "give --corpus-dir, the folder that holds the languages' folders; or see --mini true"
[ -z "$digits" ] || [ -n "$digits_dir" ] || option_error "give --digits-dir, the folder that holds the spoken digits"
base_languages=${base_languages:-$languages} whisper=${model_dir:-$model} results=${results:-$exp_dir/RESULTS.md}
. "$MOE_ASR_ROOT/utils/languages.sh"
lists=()
for language in $base_languages; do [ "$mini" = true ] || lists+=("$corpus_dir/$language/train.tsv"); done
unset language

stage_1() {
  stage "Make manifests of each language; before that a miniature corpus" inputs "${lists[@]}" outputs "${prepared[@]}"
  local options language
  read -ra options <<<"$select"
  if [ "$mini" = true ]; then
    python3 local/miniature.py --out_dir "$corpus_dir" "${known[@]}" --num_jobs "$nj"
    python3 local/tiny_whisper.py --out_dir "$model_dir"
  fi
  for language in $base_languages; do
    if [[ " $digits " == *" $language "* ]]; then
      python3 local/prepare.py --corpus digits --corpus_dir "$digits_dir" --language "$language" \
        --out_dir "$data_dir/$language" "${options[@]}"
    else
      python3 local/prepare.py --corpus "$corpus" --corpus_dir "$corpus_dir" --language "$language" \
        --out_dir "$data_dir/$language" "${options[@]}"
    fi
  done
  make_manifests
}

run_stages
