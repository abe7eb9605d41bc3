from typing import Any

import pytest

from brain_align.common.config.sampling import AutoscaleSection
from brain_align.deploy.monitor.scaling import Load, decide

SETTINGS = AutoscaleSection(min=2, max=8, window=60, up_when_waiting=0.2, down_when_ahead=2, settle=100)


def load(**changes: Any) -> Load:
    calm = {"samplers": 4, "starting": 0, "without_room": 0, "waited": 0.0, "waiting_requests": 10, "ready_groups": 10}
    return Load(**{**calm, "trained": 50, "strict": False, **changes})


def wanted(since_change: float = 1000, **changes: Any) -> int | None:
    decision = decide(load(**changes), SETTINGS, since_change)
    return None if decision is None else decision.samplers


@pytest.mark.parametrize(
    ("changes", "samplers"),
    [
        ({}, None),
        ({"waited": 0.5}, 5),
        ({"waited": 0.5, "waiting_requests": 0}, None),  # a further sampler would have nothing to do
        ({"waited": 0.19}, None),
        ({"waited": 0.5, "samplers": 8}, None),
        ({"ready_groups": 100}, 3),
        ({"ready_groups": 99}, None),
        ({"ready_groups": 100, "waited": 0.15}, None),  # between the two bounds nothing changes
        ({"ready_groups": 100, "trained": 0}, None),
        ({"ready_groups": 100, "samplers": 2}, None),
        ({"waited": 0.5, "starting": 1}, None),
        ({"waited": 0.5, "without_room": 1}, None),  # nor would another find any
        ({"ready_groups": 100, "without_room": 1}, 3),
        ({"ready_groups": 100, "strict": True}, None),  # the learner's turn: a whole round is ready
        ({"waited": 0.5, "strict": True}, 5),
        ({"samplers": 1}, 2),
        ({"samplers": 9}, 8),
    ],
)
def test_decisions(changes: dict[str, Any], samplers: int | None) -> None:
    assert wanted(**changes) == samplers


def test_nothing_is_decided_before_the_last_change_shows_effect() -> None:
    assert wanted(since_change=99, waited=1.0) is None
    assert wanted(since_change=100, waited=1.0) == 5


def test_a_decision_says_why() -> None:
    up, down = decide(load(waited=0.5), SETTINGS, 1000), decide(load(ready_groups=100), SETTINGS, 1000)
    assert up is not None and "waited 50% of the time while 10 requests had no sampler" in up.reason
    assert down is not None and "100 groups are ready" in down.reason


def test_the_number_settles_where_the_two_rates_meet() -> None:
    """A learner of 100 groups a window, samplers of 20 each: five are enough, and the number must not swing."""
    samplers, backlog, seen = 2, 0, []
    for _ in range(60):
        backlog += samplers * 20
        trained = min(backlog, 100)
        backlog -= trained
        window = load(samplers=samplers, waited=1 - trained / 100, ready_groups=backlog, trained=trained)
        decision = decide(window, SETTINGS, since_change=100)
        samplers = decision.samplers if decision else samplers
        seen.append(samplers)
    assert set(seen[10:]) <= {4, 5, 6} and seen[-1] == seen[-2]
