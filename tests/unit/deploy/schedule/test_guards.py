"""Each warning appears where it should, once, and not for a healthy run."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from brain_align.common.config.recipe import Recipe
from brain_align.deploy.schedule.evaluation import Result
from brain_align.deploy.schedule.guards import Guards
from tests.unit.factories import recipe_settings

HEALTHY = {
    "ess_alpha": 6.0,
    "outputs_per_prompt": 16.0,
    "gamma_half_ess": 1.5,
    "ended": 99.0,
    "kl_policy_prior": 1.0,
    "entropy": 2.0,
    "groups_collapsed": 0.0,
    "reward_sd": 1.0,
    "reward_mean": 0.0,
    "output_tokens": 20.0,
    "reward_length_correlation": 0.6,
    "reward_per_token": 0.1,
}
RESULT = Result(50.0, 5.0, 0.0, 1.0, 1.0, None, None, 1.0, 20.0, 99.0, 100, 0)
JUDGE = {"kind": "function", "function": "m:f", "use": "evaluation"}


def guards(**changes: Any) -> Guards:
    settings = {"algorithm": {"rounds": 2, "updates_per_round": 8}, "objective": {"temperature": 1.0}, **changes}
    return Guards(Recipe.model_validate(recipe_settings(**settings)))


def followed(subject: Guards, steps: int, first: int = 1, **metrics: Any) -> list[str]:
    """The warnings of steps with these metrics, eight to a round."""
    found = []
    for step in range(first, first + steps):
        found += subject.stepped(step, (step - 1) // 8, HEALTHY | metrics)
    return found


def test_a_healthy_run_raises_nothing() -> None:
    subject = guards()
    assert followed(subject, 40) == subject.warnings == []
    assert subject.evaluated("validation", 1, RESULT, None) == []
    assert subject.suggested_gamma == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        ({"ess_alpha": 1.6}, "effective sample size of α is 1.6 of 16"),
        ({"ended": 24.0}, "only 24 % of the sampled outputs finished (EOS) within sampling.max_tokens=50"),
        ({"kl_policy_prior": 22.0}, "the policy is 22.0 nats from the prior, more than 10:"),
        ({"groups_collapsed": 0.5}, "in 50 % of the groups all outputs are the same"),
        ({"reward_sd": 0.0}, "all outputs of a prompt have the same reward"),
    ],
)
def test_what_holds_over_several_steps_is_said_once(metrics: dict[str, Any], sentence: str) -> None:
    subject = guards()
    assert followed(subject, 7, **metrics) == []  # too few to judge
    (warning,) = followed(subject, 9, first=8, **metrics)
    assert warning.startswith("WARNING: step 8: ") and sentence in warning
    assert [text.replace("steps 8 to 16", "step 8") for text in subject.warnings] == [warning]


def test_one_odd_batch_is_no_alarm() -> None:
    subject = guards()
    assert followed(subject, 10) + followed(subject, 1, first=11, ended=20.0) + followed(subject, 9, first=12) == []


def test_a_gamma_is_suggested_from_round_0_s_groups() -> None:
    small = guards(objective={"temperature": 0.1})
    (warning,) = followed(small, 8, ess_alpha=1.2)
    assert "objective.temperature=0.1 is small for these rewards; round 0's groups suggest 1.5" in warning
    large = guards(objective={"temperature": 20.0})
    (warning,) = followed(large, 8, ess_alpha=15.9)
    assert "objective.temperature=20 is large for these rewards; round 0's groups suggest 1.5" in warning
    later = guards()
    (warning,) = followed(later, 8) + followed(later, 8, first=9, ess_alpha=1.2)
    assert "The policy has moved far between versions" in warning
    mixed = guards()
    for step, gamma in enumerate((1.0, 4.0), start=1):
        mixed.stepped(step, 0, HEALTHY | {"gamma_half_ess": gamma})
    mixed.stepped(9, 1, HEALTHY | {"gamma_half_ess": 100.0})
    assert mixed.suggested_gamma == pytest.approx(2.0)  # the geometric mean, without later rounds


def test_few_outputs_per_prompt_are_judged_by_half_of_them() -> None:
    assert followed(guards(), 8, ess_alpha=1.4, outputs_per_prompt=2.0) == []
    assert followed(guards(), 8, ess_alpha=1.4, outputs_per_prompt=3.0)


@pytest.mark.parametrize(("later", "warns"), [(2.2, False), (1.6, True)])
def test_a_short_first_round_does_not_count_against_later_proposals(later: float, warns: bool) -> None:
    subject = guards(algorithm={"rounds": 10, "updates_per_round": 4})
    for step in range(1, 25):
        subject.stepped(step, (step - 1) // 4, HEALTHY | {"ess_alpha": 1.0 if step <= 4 else later})
    assert bool(subject.warnings) == warns


def test_a_fall_of_entropy_is_measured_against_the_first_steps() -> None:
    subject = guards()
    assert followed(subject, 16) == []
    assert followed(subject, 8, first=17, entropy=0.6) == []
    (warning,) = followed(subject, 8, first=25, entropy=0.4)
    assert "has fallen from 2.00 to 0.50 nats" in warning  # once the window's mean is below a quarter


@pytest.mark.parametrize(
    ("metrics", "warns"),
    [
        ({"reward_mean": 1.5, "output_tokens": 30.0}, True),  # ten more tokens bring 1.0 of 1.5
        ({"reward_mean": 2.5, "output_tokens": 30.0}, False),  # of 2.5
        ({"reward_mean": 0.2, "output_tokens": 30.0}, False),  # no clear gain
        ({"reward_mean": 0.4, "output_tokens": 22.0}, False),  # hardly longer
        ({"reward_mean": 1.5, "output_tokens": 10.0}, False),  # shorter, although length is rewarded
    ],
)
def test_a_gain_that_length_explains_is_named(metrics: dict[str, Any], warns: bool) -> None:
    subject = guards()
    assert followed(subject, 16) == []
    found = followed(subject, 16, first=17, **metrics)
    assert [("become longer" in text, "their correlation within a prompt was 0.60" in text) for text in found] == (
        [(True, True)] if warns else []
    )


def test_outputs_that_become_shorter_for_the_reward_s_sake_are_named() -> None:
    subject = guards()
    followed(subject, 16, reward_per_token=-0.1, reward_length_correlation=-0.5)
    (warning,) = followed(subject, 8, first=17, reward_mean=1.0, output_tokens=10.0)
    assert "have become shorter (20 to " in warning


def test_an_objective_without_alpha_has_the_other_warnings() -> None:
    subject = guards(objective={"name": "dpo-sft", "reward": "reward"})
    without = {name: value for name, value in HEALTHY.items() if name not in ("ess_alpha", "gamma_half_ess")}
    found = [text for step in range(1, 9) for text in subject.stepped(step, 0, without | {"ended": 10.0})]
    assert len(found) == 1 and subject.suggested_gamma is None


def test_evaluations_are_held_to_the_same_limits() -> None:
    subject = guards(evaluation={"max_kl": 3.0})
    bad = replace(RESULT, ended=24.0, kl_to_prior=22.3)
    found = subject.evaluated("validation", 8, bad, None)
    assert any("version 8: only 24 % of the validation outputs finished" in text for text in found)
    assert any("22.3 nats from the prior, more than 3 (evaluation.max_kl)" in text for text in found)
    assert subject.evaluated("test", 9, bad, None) == []  # said already
    assert all("versions 8 to 9" in text for text in subject.warnings)


def outcomes(reward: np.ndarray, judge: np.ndarray) -> pa.Table:
    return pa.table({"reward": reward, "scores.gold": judge})


def test_a_reward_that_rises_while_its_judge_falls_is_overoptimised() -> None:
    draw = np.random.default_rng(0)
    base = draw.normal(0, 1, 100)
    subject = guards(scorers={"reward": {"kind": "tldr", "path": "r"}, "gold": JUDGE})
    steps = [(0.0, 0.0), (0.5, 0.5), (1.0, 0.45), (1.5, 0.0)]  # the third falls by less than noise
    found = [
        subject.evaluated(
            "validation",
            version,
            RESULT,
            outcomes(base + rise + draw.normal(0, 0.5, 100), base + judged + draw.normal(0, 0.5, 100)),
        )
        for version, (rise, judged) in enumerate(steps)
    ]
    assert [len(one) for one in found] == [0, 0, 0, 1]
    assert "since version 1, but gold, which training never sees, has fallen" in found[3][0]
    assert "version 3" in found[3][0]


def test_a_scorer_that_is_part_of_training_is_no_judge() -> None:
    subject = guards(scorers={"reward": {"kind": "tldr", "path": "r"}, "gold": JUDGE | {"use": "training"}})
    for version in range(3):
        values = outcomes(np.full(50, float(version)), np.full(50, -float(version)))
        assert subject.evaluated("validation", version, RESULT, values) == []


def test_values_that_are_unknown_are_left_out() -> None:
    subject = guards(scorers={"reward": {"kind": "tldr", "path": "r"}, "gold": JUDGE})
    values = pa.table({"reward": pa.array([1.0, None] * 20), "scores.gold": pa.array([None] * 40, pa.float64())})
    assert (
        subject.evaluated("validation", 0, RESULT, values) == subject.evaluated("validation", 1, RESULT, values) == []
    )
    assert subject.judges(values) == {}
    half = values.set_column(1, "scores.gold", pa.array([1.0, 3.0, None, None] * 10))
    assert math.isclose(subject.judges(half)["judge_gold"], 2.0)
