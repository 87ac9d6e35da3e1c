import pytest

OPTIONS = """
corpus_dir=        # folder of the corpus
epochs=3           # passes over the data
name="a # b"       # a name with a #
bf16=false         # lower precision
# not_an_option=1
"""
PRINT = 'echo "epochs=$epochs name=$name bf16=$bf16 corpus_dir=$corpus_dir stage=$stage"'


@pytest.fixture
def options(recipe):
    recipe.script(PRINT, OPTIONS)
    return recipe


@pytest.mark.parametrize(
    "args, says",
    [
        ([], "epochs=3 name=a # b bf16=false corpus_dir= stage="),
        (["--epochs", "4", "--bf16", "true"], "epochs=4 name=a # b bf16=true"),
        (["--epochs=4", "--name=--x y"], "epochs=4 name=--x y"),
        (["--epochs", "-1", "--name", ""], "epochs=-1 name= bf16"),
        (["--epochs", "4", "--epochs", "5"], "epochs=5"),
        (["--corpus-dir", "/c", "--stage", "7"], "corpus_dir=/c stage=7"),
        (["--corpus_dir", "/c"], "corpus_dir=/c"),
    ],
)
def test_values(options, args, says):
    assert says in options.run(*args)


@pytest.mark.parametrize(
    "args, says",
    [
        (["--epoch", "4"], "unknown option --epoch; did you mean --epochs?"),
        (["--crpus-dir", "4"], "did you mean --corpus-dir?"),
        (["--zzz", "4"], "unknown option --zzz (--help"),
        (["--PATH", "/x"], "unknown option --PATH"),
        (["--not-an-option", "1"], "unknown option --not-an-option"),
        (["--bf16", "yes"], "--bf16 takes true or false, not 'yes'"),
        (["--epochs"], "--epochs needs a value"),
        (["--config"], "--config needs a value"),
        (["--epochs", "--bf16", "true"], "--epochs needs a value"),
        (["--config", "/nowhere"], "no configuration file '/nowhere'"),
        (["--stage", "two"], "take numbers"),
        (["-e", "4"], "options begin with two dashes: '-e'"),
        (["data"], "unexpected argument 'data'"),
        (["--", "data"], "unexpected argument 'data'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(options, args, says):
    output = options.run(*args, code=2)
    assert says in output and output.count("\n") == 1


@pytest.mark.parametrize("value", ["$(touch {})", "`touch {}`", "x; touch {}", '"; touch {}; "', "a[$(touch {})]"])
def test_values_are_never_evaluated(options, tmp_path, value):
    value = value.format(tmp_path / "bad")
    assert f"name={value} bf16" in options.run("--name", value)
    assert f"name={value} bf16" in options.run(f"--name={value}")
    options.run(f"--{value}", "1", code=2)
    options.run("--bf16", value, code=2)
    options.run("--stage", value, code=2)
    options.write("bad.conf", f"name={value}\nepochs=$(touch {tmp_path / 'bad'})\n")
    options.run("--config", "bad.conf", code=2)
    assert not (tmp_path / "bad").exists()


def test_config_file(options):
    options.write("good.conf", "# mine\n\nepochs=9   # many\nname=\"x y # z\"\nbf16='true'")
    assert "epochs=9 name=x y # z bf16=true" in options.run("--config", "good.conf")
    assert "epochs=1 name=x y # z" in options.run("--epochs", "1", "--config=good.conf")
    mistakes = {"epoch=1": "epoch in bad.conf; did you mean --epochs?", "bf16=1": "true or false", "x": "expected"}
    for line, says in mistakes.items():
        options.write("bad.conf", line)
        assert says in options.run("--config", "bad.conf", code=2)


def test_a_file_of_defaults_leaves_what_was_given(recipe):
    recipe.script(f"read_defaults size.conf\n{PRINT}", OPTIONS)
    recipe.write("size.conf", 'epochs=9\nname="x y"\n')
    recipe.write("mine.conf", "name=mine\n")
    assert "epochs=9 name=x y bf16=false" in recipe.run()
    assert "epochs=3 name=mine bf16=true" in recipe.run("--epochs", "3", "--bf16", "true", "--config", "mine.conf")


def test_help(options):
    options.script('stage_1() {\n  stage "Make it"\n}', OPTIONS)
    output = options.run("--help")
    assert output.startswith("A recipe.\n")
    assert "--corpus-dir     folder of the corpus (default: none)" in output
    assert "--epochs         passes over the data (default: 3)" in output
    assert "--stop-stage" in output and "not-an-option" not in output and "1  Make it" in output


def test_relative_paths_are_those_of_the_caller(options, tmp_path):
    assert f"corpus_dir={tmp_path}/c " in options.run("--corpus-dir", "c", cwd=tmp_path)
    assert f"corpus_dir={options.folder}/c " in options.run("--corpus-dir", "c")


def test_any_option_name_will_do(recipe):
    """Names that the code of the driver uses itself."""
    names = ["name", "line", "known", "state", "text", "files", "value", "code", "number", "word", "changed", "inputs"]
    options = "\n".join(f"{name}=1" for name in names)
    body = "stage_1() {\n  stage T\n  echo " + " ".join(f"{n}=${n}" for n in names) + "\n}"
    recipe.script(body, options)
    output = recipe.run(*[f"--{name}=2" for name in names])
    assert " ".join(f"{name}=2" for name in names) in output
    assert 'changed: name "2" -> "1"' in recipe.run(*[f"--{name}=2" for name in names[1:]])
