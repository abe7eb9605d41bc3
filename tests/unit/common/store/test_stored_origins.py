"""Whose outputs a store holds, and which objectives may be trained on them."""

import re
from pathlib import Path
from typing import Any

import pytest

from brain_align.common.config.objectives import OBJECTIVE_NAMES
from brain_align.common.config.origin import Origin
from brain_align.common.config.recipe import Recipe
from brain_align.common.config.validation import parse_recipe
from brain_align.common.data.text_groups import text_group
from brain_align.common.errors import UserError
from brain_align.common.schemas import GROUPS, HUMAN, batch_from_rows
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.stored_inputs import StoredInputs, read_stored_inputs
from tests.unit.factories import groups, recipe_settings, step
from tests.unit.learner.objectives.objective_values import settings_of
from tests.unit.stored_runs import stored_run

ALGORITHM = {"rounds": 2, "prompts_per_round": 2, "batch_prompts": 2, "updates_per_round": 1}
OF_ANY_PAIRS = sorted(name for name in OBJECTIVE_NAMES if not settings_of(name).ORIGIN.relies_on_proposal)
OF_KNOWN_SAMPLES = sorted(name for name in OBJECTIVE_NAMES if settings_of(name).ORIGIN.relies_on_proposal)


def settings(name: str, store: Path, *, rounds: int = 2, replay: bool = False, **objective: Any) -> dict[str, Any]:
    return recipe_settings(
        objective={"name": name, "reward": "reward", **objective},
        sampler={"replicas": 0},
        store={"uri": str(store), "replay": replay},
        algorithm=ALGORITHM | {"rounds": rounds},
    )


def read(name: str, store: Path, **changes: Any) -> StoredInputs:
    """On a store of two rounds, the second of which was sampled from version 1."""
    recipe = Recipe.model_validate(settings(name, store, **changes))
    return read_stored_inputs(recipe, RunDirectory(store.parent / "new"))


def test_which_objectives_rely_on_where_outputs_come_from() -> None:
    weighted = {"brain", "brain-no-baseline", "spo", "dpg", "gdc++", "rloo", "gspo"}
    assert set(OF_KNOWN_SAMPLES) == weighted | {"rso", "brain-fixed-proposal", "dpo-sft+iw+n"}
    named = {name for name in OBJECTIVE_NAMES if settings_of(name).ORIGIN is Origin.PRIOR_BY_NAME}
    assert named == {"dpo", "dpo-sft", "dpo-sft+iw"}


@pytest.mark.parametrize("name", ["rso", "brain-fixed-proposal", "dpo-sft+iw+n"])
def test_newer_versions_outputs_are_refused_where_the_loss_takes_them_for_the_prior_s(
    name: str, tmp_path: Path
) -> None:
    store = stored_run(tmp_path)
    remedy = r"\(algorithm\.rounds=1\), or name a store that was sampled with algorithm\.proposal=fixed\.$"
    with pytest.raises(
        UserError, match=rf"^2 of the 4 groups .* objective\.name={re.escape(name)} is defined.*{remedy}"
    ):
        read(name, store)
    assert read(name, store, rounds=1).index.num_rows == 2  # the remedy


def test_a_store_that_begins_with_a_newer_version_has_no_earlier_rounds(tmp_path: Path) -> None:
    store = SampleStore(tmp_path / "store", "run")
    store.append_groups(groups("a", "b", proposal_version=3))
    with pytest.raises(UserError, match=r"is defined; name a store that was sampled with algorithm\.proposal=fixed"):
        read("rso", tmp_path / "store", rounds=1)


def test_recorded_steps_count_by_the_groups_that_they_trained(tmp_path: Path) -> None:
    directory = stored_run(tmp_path)
    assert read("rso", directory, replay=True).steps == [["aa01", "ab02"], ["ab02"]]  # of the first round alone
    store = SampleStore(directory / "store", "run")
    with store.training():
        store.append_step(step(3, ["ab02", "ba03"], round=1))
    with pytest.raises(UserError, match=r"1 of the 3 groups .*\(store\.replay=false and algorithm\.rounds=1\)"):
        read("rso", directory, replay=True)


@pytest.mark.parametrize("name", ["dpo", "dpo-sft", "dpo-sft+iw"])
def test_where_only_the_name_speaks_of_the_prior_it_is_said(name: str, tmp_path: Path) -> None:
    notes = " ".join(read(name, stored_run(tmp_path)).notes)
    assert f"2 of the 4 groups to train on in {tmp_path}" in notes and "not the method of that name" in notes


@pytest.mark.parametrize("name", ["brain", "ipo", "plackett-luce", "gdc++"])
def test_others_train_on_newer_versions_outputs_without_a_word(name: str, tmp_path: Path) -> None:
    store = stored_run(tmp_path)
    assert read(name, store).index.num_rows == 4
    assert "newer versions" not in " ".join(read(name, store).notes)


@pytest.mark.parametrize("name", OF_KNOWN_SAMPLES)
def test_people_s_pairs_are_no_samples_of_a_known_proposal(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        parse_recipe(settings(name, tmp_path, reward=HUMAN), "x.yaml")
    sentence = f"objective.name={name} needs samples of a known proposal with their log-probabilities"
    assert sentence in str(refused.value) and "such as dpo or ipo" in str(refused.value)
    # Nor are they where a reward model has scored them.
    store = SampleStore(tmp_path / "pairs", "pairs")
    rows = [
        text_group(name, "p", [" good", " bad"], prompt_token_ids=[1], output_token_ids=[[2], [3]]) for name in "ab"
    ]
    store.append_groups(batch_from_rows(GROUPS, rows))
    with pytest.raises(UserError, match=r"needs samples of a known proposal .*, which the texts of .*pairs are not"):
        read(name, tmp_path / "pairs", rounds=1)


@pytest.mark.parametrize("name", OF_ANY_PAIRS)
def test_any_pairs_will_do_for_the_others(name: str, tmp_path: Path) -> None:
    assert parse_recipe(settings(name, tmp_path, reward=HUMAN), "x.yaml").objective.reward == HUMAN
