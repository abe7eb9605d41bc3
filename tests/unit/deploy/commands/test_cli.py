import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.run_identity import recipe_digest
from brain_align.common.errors import PipelineError, UserError
from brain_align.deploy import cli
from brain_align.deploy.cli import main
from brain_align.deploy.commands.arguments import parsed, undashed
from brain_align.deploy.run.directory import check_config, save_config
from brain_align.deploy.run.recipe_files import load_recipe
from brain_align.deploy.run.resolve import placed, run_directory
from tests.locations import ROOT
from tests.unit.factories import recipe_settings


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "no-such.yaml"], "There is no recipe or run directory no-such.yaml; shipped recipes are"),
        (["run", "demo.yml"], "did you mean demo.yaml?"),
        (["run", "."], "is not a run directory (it has no config.yaml)"),
        (["run", "RECIPE", "sampling.n"], "'sampling.n' is not a valid override; write section.setting=value."),
        (["run", "RECIPE", "--sampling.n=1"], "sampling.n=1 is refused"),
        (["doctor", "RECIPE", "--sampling.n", "1"], "sampling.n=1 is refused"),
        (["run", "RECIPE", "sampling.n=1"], "sampling.n=1 is refused"),
        (["run", "RECIPE", "sampling.top_p=0.9"], "top_p cuts outputs off from the proposal"),
        (["run", "RECIPE", "sampling.temperature=0.5"], "temperature=0.5 makes the proposal"),
        (["run", "RECIPE", "sampling.topp=1"], "did you mean sampling.top_p?"),
        (["run", "RECIPE", "learner=3"], "learner=3 is refused: it is a section; write learner.setting=value."),
        (["run", "RECIPE", "scorers.reward=x"], "it is a section; write scorers.reward.setting=value."),
        (["status", "RECIPE"], "recipe.yaml has no status: it is not a run directory"),
        (["score", "RECIPE", "--input", "none.jsonl", "--output", "o.jsonl"], "There is no file none.jsonl"),
        (["score", "RECIPE", "--input", "none", "--output", "RECIPE/o"], "name another --output"),
        (["store", "import-pairs", "RECIPE", "--input", "none.jsonl", "--output", "o"], "There is no file none.jsonl"),
    ],
)
def test_bad_input_is_one_sentence_status_2_and_leaves_nothing(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_settings()))
    monkeypatch.chdir(tmp_path)
    status = main([argument.replace("RECIPE", str(recipe)) for argument in arguments])
    error = capsys.readouterr().err
    assert status == 2
    assert sentence in error and len(error.splitlines()) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_recipe_is_required_and_its_overrides_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run"])
    said = capsys.readouterr().err
    assert said == "brain run: the following arguments are required: RECIPE (see brain run --help)\n"


@pytest.mark.parametrize(
    ("arguments", "module", "resumes"),
    [
        (["run", "RECIPE"], "brain_align.deploy.commands.run", True),
        (["doctor", "RECIPE"], "brain_align.deploy.commands.doctor", False),
        (["score", "RECIPE", "--input", "i", "--output", "o"], "brain_align.deploy.commands.score", False),
        (["compare", "RECIPE"], "brain_align.deploy.commands.compare", True),
        (
            ["store", "rescore", "RUN", "--scorer", "x", "--recipe", "RECIPE"],
            "brain_align.deploy.commands.store.rescore",
            True,
        ),
        (["store", "replay", "RUN", "--output", "o"], "brain_align.deploy.commands.store.replay", True),
    ],
)
def test_only_what_resumes_says_so_when_it_ends_early(
    arguments: list[str],
    module: str,
    resumes: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = {"store rescore": "locate", "store replay": "replay_recipe"}.get(" ".join(arguments[:2]), "load_recipe")
    for error, status in ((KeyboardInterrupt(), 130), (PipelineError("reward-0 is gone"), 1)):
        monkeypatch.setattr(f"{module}.{first}", Mock(side_effect=error))
        assert main(arguments) == status
        said = capsys.readouterr().err
        assert ("run the same command again to resume." in said) == resumes
        assert said.startswith("brain: Interrupted" if status == 130 else "brain: reward-0 is gone\n")


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["run", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
    assert "brain-align 0." in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "listed"), [([], "Train a recipe"), (["store"], "List what a store holds")])
def test_without_a_command_the_help_is_printed(
    arguments: list[str], listed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    assert listed in (said := capsys.readouterr()).out and not said.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["rnu"], "brain: 'rnu' is not a command; did you mean run? (see brain --help)\n"),
        (["train"], "brain: 'train' is not a command; did you mean run? (see brain --help)\n"),
        (
            ["store", "exprot"],
            "brain store: 'exprot' is not a command; did you mean export? (see brain store --help)\n",
        ),
        (["xyzzy"], "brain: 'xyzzy' is not a command (see brain --help)\n"),
        (["run", "r", "--n"], "brain run: --n is not an option; settings are written as section.setting=value, "),
        (["status", "r", "--sampling.n=8"], "brain status: unrecognized arguments: sampling.n=8 (see brain status"),
    ],
)
def test_what_is_not_a_command_or_an_option(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    error = capsys.readouterr().err
    assert (ended.value.code, error.count("\n")) == (2, 1)
    assert error.startswith(sentence)


def test_settings_may_be_written_with_dashes() -> None:
    written = ["run", "r", "--sampling.n=8", "--learner.learning_rate", "1e-4", "--force", "a.b=c"]
    assert undashed(written) == ["run", "r", "sampling.n=8", "learner.learning_rate=1e-4", "--force", "a.b=c"]
    assert undashed(["--scorers.my-rm.kind=hh"]) == ["scorers.my-rm.kind=hh"]
    assert undashed(["--sampling.n", "--force"]) == ["sampling.n=", "--force"]  # the value is missing, not an option
    options = parsed(cli._parser(), ["run", "r", "--seed=1", "sampling.n=8"])
    assert sorted(options.overrides) == ["sampling.n=8", "seed=1"]


def test_all_mistakes_are_reported_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_settings()))
    assert main(["run", str(recipe), "nonsense", "sampling.nn=8", "learner.learning_rate=-1"]) == 2
    error = capsys.readouterr().err
    for problem in ("'nonsense' is not a valid override", "did you mean sampling.n?", "learner.learning_rate=-1 is"):
        assert problem in error
    assert len(error.splitlines()) == 3


def test_shipped_recipes_are_found_from_anywhere_and_a_file_of_that_name_wins(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("demo.yaml").name == load_recipe("demo").name == "demo"
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(recipe_settings(name="mine")))
    assert load_recipe("demo.yaml").name == "mine"


def test_a_run_directory_is_its_run_s_recipe_and_another_identity_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    begun = placed(Recipe.model_validate(recipe_settings(run={"dir": "runs/first"})))
    save_config(run_directory(begun), begun, {"world": None, "prompts": "a"})
    (tmp_path / "runs/first/policies/v000000").mkdir(parents=True)
    (tmp_path / "runs/first").rename(tmp_path / "runs/moved")
    again = load_recipe("runs/moved", ["sampler.replicas=3"])
    assert again.run.dir == str(tmp_path / "runs/moved") and again.sampler.replicas == 3
    assert recipe_digest(again) == recipe_digest(begun)
    check_config(run_directory(again), again)
    with pytest.raises(UserError, match=r"different configuration[^$]*\n  sampling\.n: 32 there, 4 now"):
        check_config(run_directory(again), load_recipe("runs/moved", ["sampling.n=4"]))
    assert load_recipe("runs/moved", ["run.dir=runs/other"]).run.dir == "runs/other"


def test_the_commands_are_collected_without_loading_what_is_slow() -> None:
    code = (
        "import sys; from brain_align.deploy.cli import main; main([]); "
        "print(sorted({'torch', 'ray', 'vllm', 'transformers', 'matplotlib', 'datasets'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")


@pytest.mark.parametrize("editable", [True, False])
def test_the_current_directory_comes_after_libraries_and_before_this_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, editable: bool
) -> None:
    """An editable install has the repository on the path, where `scorer` is a folder: the user's scorer.py wins."""
    libraries = [entry for entry in sys.path if entry and not (Path(entry) / "pyproject.toml").exists()]
    repository = [str(ROOT)] if editable else []
    monkeypatch.setattr(sys, "path", [*libraries, *repository])
    monkeypatch.chdir(tmp_path)
    main([])
    expected = [*libraries, str(tmp_path), *repository]
    assert sys.path[: len(expected)] == expected


@pytest.mark.parametrize(
    "arguments",
    [
        ["store", "ls", "s3://KEY:SECRET4@bucket/x"],
        ["store", "ls", "s3:/KEY:SECRET4@bucket/x"],
        ["store", "lx", "s3://KEY:SECRET4@bucket/x"],
        ["run", "s3://KEY:SECRET4@bucket/x.yaml"],
        ["run", "demo", "store.uri=s3://KEY:SECRET4@bucket/x"],
        ["run", "demo", "--store.uri", "s3://KEY:SECRET4@bucket/x"],
        ["run", "demo", "store={uri: 's3://KEY:SECRET4@bucket/x'}", "nonsense"],
        ["score", "demo", "--input=https://u:SECRET4@host/x", "--output", "x"],
        ["compare", "demo", "--pairs", "s3://KEY:SECRET4@bucket/x", "--out", "x"],
    ],
)
def test_a_secret_in_an_argument_is_not_repeated(arguments, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert "SECRET4" not in out + err and "KEY:" not in out + err and err.startswith("brain: ")
