# shellcheck shell=bash
# Stages 2 to 7 of a recipe that customises a multilingual Whisper to some languages: base, an expert for each language,
# systems on all languages together, static fusion, decoding with the language told and not told, scoring. A recipe
# sources this after path.sh. Its own stage 1 makes $data_dir/LANGUAGE/{train,dev,test}.jsonl.gz, by make_manifests. It sets
#
#   data_dir exp_dir results  where things are
#   languages                 codes, as in the data, each with an expert
#   base_languages            those that a base with tokens of its own is trained on; by default $languages. Languages
#                             that are to be added later belong here
#   whisper import_options    the checkpoint, and options of bin/import_whisper
#   tokens                    options of bin/tokens: the checkpoint gets tokens of our own and is trained; empty: neither
#   systems                   what to compare with the base: names of $conf/NAME.yaml
#   against                   the system that others are compared with
#   warm_start                true: experts that are added to others begin as the nearest of them
#   conf                      folder of the configurations; by default conf
#   nj                        processes that check audio, and jobs that the languages are divided among
#   training decoding         options for all training runs, and for all decodes
#   train_cmd each_cmd decode_cmd  job back ends, in cmd.sh: each_cmd for the array of experts, by default train_cmd
#
# Comments of this form in a configuration mean something:
#
#   # name: one shared LoRA    its row in the table
#   # rank: all                of the rank that the experts of all languages have together
#   # experts from: expert     all runs of $conf/expert.yaml side by side, one expert for each language
#   # teachers: expert         a student of these runs
#   # fuse: --rank 4           not trained: those runs as one adapter, by bin/adapter fuse with these options
#   # of: experts              not trained: the file's lines on decoding are for one more decode of that system
#   # told: --beta 0.8         options of decoding where the language is told; no: it is not decoded so
#   # detected: no             options where it is not told

: "${nj:?}" "${data_dir:?}" "${exp_dir:?}" "${results:?}" "${languages:?}" "${base_languages:=$languages}" "${systems:?}"
: "${whisper:?}" "${tokens=}" "${import_options=}" "${conf:=conf}" "${training=}" "${decoding=}" "${against=}"
: "${train_cmd=}" "${each_cmd=}" "${decode_cmd=}" "${warm_start:=false}"

languages=${languages//[$'\n\t']/ } base_languages=${base_languages//[$'\n\t']/ } # any white space separates

. "$MOE_ASR_ROOT/utils/runs.sh"
known=(--languages "[${base_languages// /, }]") # of the base; a stage that names it does not depend on $languages
base=$exp_dir/base/final domains=(--data.domain_key language --valid.domain_key language)
prepared=()
for language in $languages; do
  [[ " $base_languages " == *" $language "* ]] || option_error "language $language is none of --base-languages"
  [ "$(tr ' ' '\n' <<<"$languages" | grep -cFx -- "$language")" = 1 ] || option_error "language $language is named twice"
done
for language in $base_languages; do prepared+=("$data_dir/$language"/{train,dev,test}.jsonl.gz); done
for system in $systems; do
  [ -f "$conf/$system.yaml" ] || option_error "no system '$system': there is no $conf/$system.yaml"
  of=$(about "$system" of)
  [[ -z $of || " $systems " == *" $of "* ]] || option_error "the system $system needs the system $of: name it too"
done
unset system of language

normaliser_of() { case $1 in zh* | cmn*) echo mandarin ;; *) echo multilingual ;; esac; } # normaliser_of LANGUAGE

make_manifests() { # of the tables of all languages
  local language part
  for language in $base_languages; do
    for part in train dev test; do
      python3 -m moe_asr.bin.prepare --table "$data_dir/$language/$part.tsv" --check.num_jobs "$nj" \
        --manifest "$data_dir/$language/$part.jsonl.gz" --normaliser "$(normaliser_of "$language")"
    done
  done
}

speech_of() { # speech_of LANGUAGES: sets `speech` to the options for training on these together
  local language
  speech=()
  for language in $1; do
    speech+=(--data.manifests+ "$data_dir/$language/train.jsonl.gz" --valid.manifests+ "$data_dir/$language/dev.jsonl.gz")
  done
}

listed() { # listed BEFORE AFTER: a list in JSON of the languages, each between the two
  local words
  read -ra words <<<"$languages"
  words=("${words[@]/#/"$1"}")
  json_list "${words[@]/%/"$2"}"
}

trained() { # prints the systems that training makes
  local system
  for system in $systems; do [ -n "$(about "$system" of)$(about "$system" fuse)" ] || echo "$system"; done
}

fused() { # prints those that bin/adapter makes of the experts
  local system
  for system in $systems; do [ -z "$(about "$system" fuse)" ] || echo "$system"; done
}

experts() { # prints the configurations of experts that systems start from, fuse or learn from
  local system
  for system in $systems; do about "$system" "experts from" && about "$system" teachers; done | sort -u
}

stage_2() {
  local options from speech
  stage "Take over Whisper, with tokens of our own where they are asked for; then train it" outputs "$base"
  read -ra options <<<"$import_options"
  if [ -z "$tokens" ]; then
    python3 -m moe_asr.bin.import_whisper --source "$whisper" --normaliser multilingual --out_dir "$base" "${options[@]}"
    return
  fi
  make_tokens
  python3 -m moe_asr.bin.import_whisper --source "$whisper" --normaliser multilingual --tokens "$data_dir/tokens" \
    --out_dir "$exp_dir/imported" "${options[@]}"
  from=$exp_dir/imported
  speech_of "$base_languages"
  if [ -f "$conf/new_tokens.yaml" ]; then # first what is new alone
    train new_tokens --init "$from" "${speech[@]}"
    from=$exp_dir/new_tokens/final
  fi
  train base --init "$from" "${speech[@]}"
}

make_tokens() { # one set for all languages, with a token for each
  local options manifests=() language
  read -ra options <<<"$tokens"
  for language in $base_languages; do manifests+=(--manifests+ "$data_dir/$language/train.jsonl.gz"); done
  python3 -m moe_asr.bin.tokens "${manifests[@]}" --out_dir "$data_dir/tokens" "${known[@]}" "${options[@]}"
}

stage_3() {
  local names folders language
  names=$(experts)
  folders=()
  for language in $languages; do for name in $names; do folders+=("$exp_dir/$name/$language/final"); done; done
  stage "Train an expert for each language" outputs "${folders[@]}"
  for name in $names; do train_experts "$name"; done
}

train_experts() { # train_experts NAME: $conf/NAME.yaml makes exp/NAME/LANGUAGE for each language
  local options folder=$exp_dir/$1 language list=$data_dir/languages.txt
  read_options "$1"
  options+=(--on_change restart --init "$base" "${domains[@]}")
  [ "$warm_start" = false ] || find_starts "$1"
  for language in $languages; do [ -f "$folder/$language.start" ] || echo "$language"; done >"$list"
  echo "- $1"
  array "${each_cmd:-$train_cmd}" "$exp_dir/log/train-$1.JOB.log" python3 -m moe_asr.bin.train_each "${options[@]}" \
    --names "$list" --job JOB --num_jobs "$nj" --exp_dir "$folder/{name}" \
    --data.manifests+ "$data_dir/{name}/train.jsonl.gz" --valid.manifests+ "$data_dir/{name}/dev.jsonl.gz"
  for language in $languages; do
    [ -f "$folder/$language.start" ] || continue
    echo "- $1 of $language, from $(cat "$folder/$language.start")"
    job "$train_cmd" "$exp_dir/log/train-$1-$language.log" python3 -m moe_asr.bin.train "${options[@]}" \
      --adaptation null --init_adaptation "$(cat "$folder/$language.start")" --exp_dir "$folder/$language" \
      --data.manifests+ "$data_dir/$language/train.jsonl.gz" --valid.manifests+ "$data_dir/$language/dev.jsonl.gz"
  done
}

find_starts() { # find_starts NAME: for languages that were not among the first, LANGUAGE.start names the nearest expert
  local folder=$exp_dir/$1 language
  mkdir -p "$folder"
  # written before any of them is trained: who is interrupted begins the rest from zero too, as the first did
  [ -f "$folder/first.txt" ] || tr ' ' '\n' <<<"$languages" >"$folder/first.txt"
  for language in $languages; do [ ! -d "$folder/$language/final" ] || echo "$language"; done >"$folder/known.txt"
  [ -s "$folder/known.txt" ] || return 0
  for language in $languages; do
    if ! grep -qFx -- "$language" "$folder/first.txt" && [ ! -f "$folder/$language.start" ]; then
      python3 -m moe_asr.bin.nearest --model "$base" --adaptations "$folder/{name}/final" --names "$folder/known.txt" \
        --manifest "$data_dir/$language/train.jsonl.gz" --output "$folder/$language.start"
    fi
  done
}

stage_4() {
  local folders
  mapfile -t folders < <(trained)
  folders=("${folders[@]/#/$exp_dir/}")
  stage "Train on all languages together: fine-tuning, one LoRA, fusion, students" outputs "${folders[@]/%//final}"
  each "$train_cmd" adapt "$(trained)"
}

adapt() { # adapt NAME: on all languages, as $conf/NAME.yaml says
  local options=(--init "$base" "${domains[@]}") speech from teachers count rank alpha
  count=$(wc -w <<<"$languages")
  speech_of "$languages"
  from=$(about "$1" "experts from") teachers=$(about "$1" teachers)
  if [ "$(about "$1" rank)" = all ]; then
    rank=$((count * $(number_in expert rank)))
    alpha=$((count * $(number_in expert alpha))) # of the same scale, alpha / rank
    options+=(--adaptation.experts.rank "$rank" --adaptation.experts.alpha "$alpha")
  fi
  if [ -n "$from" ]; then
    options+=(--adaptation.experts.num_experts "$count" --adaptation.domains "$(listed '' '')"
      --adaptation.initial_experts "$(listed "$exp_dir/$from/" /final)")
  fi
  [ -z "$teachers" ] || options+=(--distillation.teachers "$exp_dir/$teachers/{language}/final")
  echo "- $1"
  train "$1" "${options[@]}" "${speech[@]}"
}

number_in() { sed -n "s/^ *$2: \\([0-9][0-9]*\\).*/\\1/p" "$conf/$1.yaml"; } # number_in NAME KEY

stage_5() {
  local system names folders
  mapfile -t names < <(fused)
  folders=("${names[@]/#/$exp_dir/}")
  stage "Fuse the experts into one adapter each" outputs "${folders[@]/%//final}"
  for system in "${names[@]}"; do fuse "$system"; done
}

fuse() { # fuse NAME: the experts as one adapter, as $conf/NAME.yaml says
  local options from language folders=()
  read -ra options <<<"$(about "$1" fuse)"
  from=$exp_dir/$(about "$1" "experts from")
  echo "- $1"
  for language in $languages; do folders+=("$from/$language/final"); done
  python3 -m moe_asr.bin.adapter fuse "${folders[@]}" --out_dir "$exp_dir/$1/final" "${options[@]}"
}

stage_6() {
  local system condition folders=()
  for system in base $systems; do
    for condition in told detected; do
      ! decoded "$system" $condition || folders+=("$exp_dir/decode/$system/$condition/system.json")
    done
  done
  stage "Decode the test sets, with the language told and not told" outputs "${folders[@]}"
  gather_test
  each "$decode_cmd" decode_system "base $systems"
}

decoded() { [ "$1" = base ] || [ "$(about "$1" "$2")" != no ]; } # decoded NAME told|detected

gather_test() { # one manifest of the test sets of all languages
  local language
  for language in $languages; do zcat "$data_dir/$language/test.jsonl.gz"; done | gzip -n >"$data_dir/test.jsonl.gz"
}

decode_system() { # decode_system NAME: with the base or with a system, under both conditions
  local condition
  for condition in told detected; do
    ! decoded "$1" $condition || decode_condition "$1" $condition
  done
}

decode_condition() { # decode_condition NAME told|detected
  local options own of model=(--model "$base")
  read -ra options <<<"$decoding"
  if [ "$1" != base ]; then
    read -ra own <<<"$(about "$1" "$2")"
    of=$(about "$1" of)
    of=$exp_dir/${of:-$1}/final
    if [ -f "$of/adaptation.yaml" ]; then model+=(--adaptation "$of"); else model=(--model "$of"); fi
    options+=("${own[@]}")
  fi
  [ "$2" = told ] || options+=(--language detect)
  job "$decode_cmd" "$exp_dir/log/decode-$1-$2.log" python3 -m moe_asr.bin.decode "${model[@]}" \
    --manifest "$data_dir/test.jsonl.gz" --out_dir "$exp_dir/decode/$1/$2" --on_change restart "${options[@]}"
}

stage_7() {
  local system name folder rows=()
  stage "Score" outputs "$results"
  for system in base $systems; do
    name=$(about "$system" name)
    [ "$system" != base ] || [ -n "$tokens" ] || name=zero-shot
    folder=$exp_dir/decode/$system
    if decoded "$system" told; then rows+=(--systems+ "${name:-$system}=$folder/told"); fi
    if decoded "$system" detected; then
      rows+=(--agnostic+ "${name:-$system}=$folder/detected")
      python3 -m moe_asr.bin.score --decode_dir "$folder/detected" --metric auto --set_name "$system" >"$folder/table.txt"
    fi
  done
  [ -z "$against" ] || rows+=(--against "$(about "$against" name)")
  python3 -m moe_asr.bin.results "${rows[@]}" --by language --output "$results"
}
