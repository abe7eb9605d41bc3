from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml

from brain_align.common.errors import PipelineError
from brain_align.deploy.cli import main
from tests.unit.factories import recipe_settings


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "no-such.yaml"], "Cannot read the recipe no-such.yaml"),
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
    assert capsys.readouterr().err.endswith("the following arguments are required: RECIPE\n")


@pytest.mark.parametrize(
    ("arguments", "module", "resumes"),
    [
        (["run", "RECIPE"], "brain_align.deploy.cli", True),
        (["doctor", "RECIPE"], "brain_align.deploy.cli", False),
        (["score", "RECIPE", "--input", "i", "--output", "o"], "brain_align.deploy.cli", False),
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
