from pathlib import Path

import pytest

from common.config.recipe import Recipe
from common.config.validation import recipe_digest
from common.errors import UserError
from deploy.run_directory import RunDirectory, check_config, claimed, resolve_output, save_config
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
    with pytest.raises(UserError, match=r"no run directory \(it has thesis\.tex"):
        check_config(directory, recipe())


def test_only_one_process_holds_a_run_directory(directory: RunDirectory) -> None:
    with claimed(directory), pytest.raises(UserError, match="Another process is running"), claimed(directory):
        pass
    with claimed(directory):
        pass


def test_an_unwritable_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(UserError, match="Cannot use the run directory"),
        claimed(RunDirectory(tmp_path / "file/run")),
    ):
        pass


def test_outputs_of_a_ray_job_do_not_go_into_its_throwaway_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert resolve_output("runs/x") == Path.cwd() / "runs/x"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("BRAIN_HOME", str(tmp_path))
    assert resolve_output("runs/x") == tmp_path / "runs/x"
    assert resolve_output("/abs/x") == Path("/abs/x")
