import pytest

from moe_asr.bin.tokens import TokensConfig, make_tokens
from moe_asr.config import run_command
from moe_asr.data.manifests import Utterance, write_manifest
from moe_asr.data.tokens import Tokens


def run(*arguments):
    run_command(TokensConfig, make_tokens, [str(argument) for argument in arguments])


def test_takes_the_texts_of_all_manifests(tmp_path, capsys):
    for name, text in (("a", "one two"), ("b", "six")):
        write_manifest(tmp_path / f"{name}.jsonl", [Utterance(name, "/x", 1, 16000, text)])
    run("--manifests", [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")], "--out_dir", tmp_path / "tokens")
    tokens = Tokens(tmp_path / "tokens")
    assert tokens.decode(tokens.encode("six two")) == "six two"
    assert capsys.readouterr().out == f"{tmp_path}/tokens: {tokens.size} char tokens from 2 texts\n"


def test_missing_manifest_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run("--manifests", [str(tmp_path / "none.jsonl")], "--out_dir", tmp_path)
    assert caught.value.code == 1 and "no manifest at" in capsys.readouterr().err
