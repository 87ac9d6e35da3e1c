import pytest

from moe_asr.bin.lang import LangConfig, make_lang
from moe_asr.config import run_command
from moe_asr.data.lang import read_lang
from moe_asr.data.manifests import Utterance, write_manifest
from moe_asr.data.tokens import train_tokens

ARPA = "\\data\\\n\n\\1-grams:\n-1 <s> 0\n-1 </s>\n-0.5 ONE 0\n-0.7 SON\n-0.9 MIX\n\n\\end\\\n"


@pytest.fixture
def run(tmp_path):
    write_manifest(tmp_path / "a.jsonl", [Utterance(str(i), "/x", 1, 16000, t) for i, t in enumerate(["one", "so no"])])
    train_tokens(["one so no"], tmp_path / "tokens", "char")

    def run(*options):
        arguments = ["--manifests", [str(tmp_path / "a.jsonl")], "--tokens", tmp_path / "tokens"]
        arguments += ["--out_dir", tmp_path / "lang", *options]
        run_command(LangConfig, make_lang, [str(argument) for argument in arguments])
        return (tmp_path / "lang/words.txt").read_text().split()[2:-6:2]

    return run


@pytest.mark.parametrize("model", ["bigram", "none"])
def test_words_of_the_texts(run, tmp_path, capsys, model):
    assert run("--language_model", model) == ["no", "one", "so"]
    assert capsys.readouterr().out == f"{tmp_path}/lang: 3 words\n"
    assert read_lang(tmp_path / "lang").tokens[:3] == ["<blk>", "<unk>", "<sos/eos>"]


def test_words_of_an_arpa_file_are_added(run, tmp_path, capsys):
    (tmp_path / "lm.arpa").write_text(ARPA)
    assert run("--language_model", tmp_path / "lm.arpa", "--normaliser", "english") == ["no", "one", "so", "son"]
    assert "4 words; 1 that these tokens cannot write" in capsys.readouterr().out


def test_missing_language_model_is_one_line(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("--language_model", tmp_path / "none.arpa")
    assert "error: no language model at" in capsys.readouterr().err
