from pathlib import Path

import pytest

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import PipelineError
from brain_align.common.requests import Prompt
from brain_align.common.schemas import PRIOR
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.schedule.evaluation import Evaluation
from brain_align.deploy.schedule.request_plan import RequestPlan
from tests.unit.factories import groups, output, recipe_settings, scores

PROMPTS = [Prompt(f"p{number}", "text", (1,), "gold") for number in range(4)]


def evaluation(root: Path, **changes: object) -> Evaluation:
    settings = recipe_settings(
        algorithm={"rounds": 4, "prompts_per_round": 8, "batch_prompts": 8, "updates_per_round": 1},
        evaluation={"every_rounds": 3, **changes},
    )
    store = SampleStore(root, "run")
    plan = RequestPlan("run", 0, 2, Path("policies"))
    return Evaluation(
        Recipe.model_validate(settings),
        store,
        plan,
        {"validation": PROMPTS, "test": PROMPTS},
        ["reward", PRIOR],
    )


def record(subject: Evaluation, version: int, rewards: list[float | None], prior: float = -2.0) -> None:
    ids = subject.group_ids("validation", version)
    subject.store.append_groups(groups(*ids, outputs=[output([1, 2], [-0.5, -1.0])], proposal_version=version))
    subject.store.append_scores(
        scores("reward", {name: [reward] for name, reward in zip(ids, rewards, strict=True)}, gold_value=1.0)
    )
    subject.store.append_scores(scores(PRIOR, {name: [prior] for name in ids}, gold_value=None))
    subject.scored(ids)


def test_figures_are_those_of_the_stored_groups(tmp_path: Path) -> None:
    subject = evaluation(tmp_path)
    record(subject, 0, [2.0, 1.0, 0.0, 3.0])
    result = subject.result("validation", 0)
    assert (result.train_rm_win_rate, result.ties, result.prompts) == (50.0, 25.0, 4)
    assert (result.mean_reward, result.mean_gold_reward) == (1.5, 1.0)
    assert result.kl_to_prior == pytest.approx(0.5)  # log q = -1.5, log p = -2
    assert (result.mean_tokens, result.ended, result.truth_quality) == (2.0, 100.0, None)


def test_what_could_not_be_scored_is_left_out_and_counted(tmp_path: Path) -> None:
    subject = evaluation(tmp_path)
    record(subject, 0, [2.0, None, None, 0.0])
    result = subject.result("validation", 0)
    assert (result.train_rm_win_rate, result.prompts, result.failed) == (50.0, 2, 2)
    record(subject, 3, [None] * 4)
    with pytest.raises(PipelineError, match="No validation prompt of version 3"):
        subject.result("validation", 3)


def test_first_last_and_every_few_versions_are_due(tmp_path: Path) -> None:
    assert evaluation(tmp_path).due_versions() == [0, 3, 4]


def test_the_best_version_has_most_wins_and_then_the_higher_reward(tmp_path: Path) -> None:
    subject = evaluation(tmp_path)
    record(subject, 0, [0.0, 0.0, 0.0, 0.0])
    record(subject, 3, [2.0, 2.0, 0.0, 0.0])
    record(subject, 4, [3.0, 2.0, 0.0, 0.0])
    assert subject.best_version() == 4


def test_each_result_is_reported_once_and_only_when_complete(tmp_path: Path) -> None:
    subject = evaluation(tmp_path)
    ids = subject.group_ids("validation", 0)
    assert [request.group_ids for request in subject.requests("validation", 0)] == [tuple(ids[:2]), tuple(ids[2:])]
    subject.store.append_groups(groups(*ids))
    assert subject.requests("validation", 0) == []
    assert list(subject.newly_complete()) == [] and not subject.is_complete("validation", 0)
    record(subject, 0, [1.0] * 4)
    assert [(split, version) for split, version, _ in subject.newly_complete()] == [("validation", 0)]
    assert list(subject.newly_complete()) == []


def test_the_best_so_far_and_what_is_not_evaluated_yet_may_turn_out_the_best(tmp_path: Path) -> None:
    subject = evaluation(tmp_path)
    assert subject.candidates(0) == [0]
    record(subject, 0, [2.0, 0.0, 0.0, 0.0])
    assert subject.candidates(2) == [0]
    assert subject.candidates(3) == [0, 3]
    record(subject, 3, [2.0, 2.0, 0.0, 0.0])
    assert subject.candidates(4) == [3, 4]


def test_what_an_earlier_start_has_completed_is_reported_too(tmp_path: Path) -> None:
    record(evaluation(tmp_path), 0, [1.0] * 4)
    subject = evaluation(tmp_path)
    assert subject.requests_after(0)  # the prior's test outputs; validation is complete
    assert [(split, version) for split, version, _ in subject.newly_complete()] == [("validation", 0)]


def test_the_store_is_asked_once_for_each_group_and_then_only_for_what_was_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is asked whether all is complete: at each request of training, for each version."""
    subject = evaluation(tmp_path)
    asked: list[str] = []
    has_score = SampleStore.has_score

    def counting(store: SampleStore, group: str, scorer: str) -> bool:
        asked.append(group)
        return has_score(store, group, scorer)

    monkeypatch.setattr(SampleStore, "has_score", counting)
    for _ in range(100):
        assert not subject.is_complete("validation", 3)
        assert list(subject.newly_complete()) == []
        subject.scored(["a training group"])
    assert len(asked) == len(PROMPTS)  # the first scorer's answer is enough for a group without scores


def test_outcomes_stand_prompt_by_prompt_and_are_null_where_unknown(tmp_path: Path) -> None:
    subject = evaluation(tmp_path)
    record(subject, 0, [2.0, None, 0.0, 3.0])
    outcomes = subject.outcomes("validation", 0)
    assert outcomes["prompt_id"].to_pylist() == ["p0", "p1", "p2", "p3"]
    assert outcomes["reward"].to_pylist() == [2.0, None, 0.0, 3.0]
    assert outcomes["gold_reward"].to_pylist() == [1.0] * 4
    assert outcomes["log_ratio"].to_pylist() == [0.5] * 4
    ids = subject.group_ids("validation", 3)
    subject.store.append_groups(groups(*ids[1:], outputs=[output([1, 2], [-0.5, -1.0])]))
    subject.store.append_scores(scores("reward", {name: [5.0] for name in ids[2:]}))
    subject.store.append_scores(scores(PRIOR, {name: [-2.0] for name in ids[2:]}))
    partial = subject.outcomes("validation", 3)  # the first was never sampled, the second never scored
    assert partial["reward"].to_pylist() == [None, None, 5.0, 5.0]
    assert partial["prompt_id"].to_pylist() == ["p0", "p1", "p2", "p3"]
