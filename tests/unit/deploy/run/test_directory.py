from pathlib import Path

import pytest

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.run_identity import recipe_digest
from brain_align.common.errors import UserError
from brain_align.deploy.run.directory import RunDirectory, check_config, save_config
from brain_align.deploy.run.start import locked
from tests.unit.factories import recipe_settings


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def recipe(**changes: object) -> Recipe:
    return Recipe.model_validate(recipe_settings(**changes))


def test_the_same_configuration_may_come_back_and_another_is_refused(directory: RunDirectory) -> None:
    check_config(directory, recipe())
    save_config(directory, recipe(), {"world": None, "prompts": "a"})
    check_config(directory, recipe(sampling={"n": 4}))  # nothing sampled yet: it may be corrected
    (directory.policies / "v000000").mkdir(parents=True)
    check_config(directory, recipe(sampler={"replicas": 3}))
    with pytest.raises(UserError, match=r"sampling\.n: 32 there, 4 now"):
        check_config(directory, recipe(sampling={"n": 4}))


def test_how_the_learner_shares_its_work_may_change_on_resume(directory: RunDirectory) -> None:
    save_config(directory, recipe(), {"world": None, "prompts": "a"})
    (directory.policies / "v000000").mkdir(parents=True)
    elsewhere = {"ranks": 2, "zero_stage": 3, "threads": 4, "micro_batch_tokens": 99, "offload_optimizer": True}
    check_config(directory, recipe(learner=elsewhere | {"activation_checkpointing": True}))
    assert recipe_digest(recipe(learner=elsewhere)) == recipe_digest(recipe())
    with pytest.raises(UserError, match=r"learner\.schedule: 'constant' there, 'cosine' now"):
        check_config(directory, recipe(learner={"schedule": "cosine"}))


@pytest.mark.parametrize("changed", [{"world": "demo-2", "prompts": "a"}, {"world": "demo-1", "prompts": "b"}])
def test_other_inputs_are_refused(directory: RunDirectory, changed: dict[str, str | None]) -> None:
    began = {"world": "demo-1", "prompts": "a"}
    save_config(directory, recipe(), began)
    (directory.policies / "v000000").mkdir(parents=True)
    save_config(directory, recipe(), began)
    with pytest.raises(UserError, match=r"was begun with the (world demo-1|prompts a), which is now"):
        save_config(directory, recipe(), changed)


def test_a_directory_of_something_else_is_refused(directory: RunDirectory) -> None:
    directory.root.mkdir()
    (directory.root / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"not a run directory \(it has thesis\.tex"):
        check_config(directory, recipe())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("a: [", r"config\.yaml is not valid YAML: line 1, column 5"),
        ("a: 2024-13-45", r"config\.yaml is not valid YAML: line 1, column 4: month must be in 1\.\.12"),
        ("- a", "is not the configuration of a run"),
        ("name: hydra", r"^\S+config\.yaml is not a configuration that this version can read.*; remove it, or set"),
    ],
)
def test_somebody_else_s_config_is_refused_and_kept(directory: RunDirectory, config: str, message: str) -> None:
    directory.root.mkdir()
    directory.config.write_text(config)
    with pytest.raises(UserError, match=message):
        check_config(directory, recipe())
    assert directory.config.read_text() == config


def test_only_one_process_holds_a_run_directory(directory: RunDirectory) -> None:
    with locked(directory), pytest.raises(UserError, match="Another process is running"), locked(directory):
        pass
    with locked(directory):
        pass


def test_an_unwritable_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(UserError, match="Cannot use the run directory"),
        locked(RunDirectory(tmp_path / "file/run")),
    ):
        pass
