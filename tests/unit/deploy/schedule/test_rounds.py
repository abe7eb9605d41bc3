import random
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brain_align.common.config.training import AlgorithmSection
from brain_align.common.requests import Prompt
from brain_align.deploy.schedule.request_plan import RequestPlan
from brain_align.deploy.schedule.round_prompts import FIXED_AHEAD, DrawnPrompts, StoredGroups, TrainingRequests
from brain_align.deploy.schedule.rounds import RecordedSteps, Rounds

PROMPTS = [Prompt(f"p{number}", f"text {number}", (1, 2), None) for number in range(20)]


def algorithm(**changes: object) -> AlgorithmSection:
    base = {"rounds": 3, "prompts_per_round": 8, "updates_per_round": 4, "batch_prompts": 2}
    return AlgorithmSection.model_validate({**base, **changes})


class Drawing:
    """Rounds over drawn prompts, with both at hand."""

    def __init__(self, seed: int = 0, **changes: Any) -> None:
        self.round_prompts = DrawnPrompts(algorithm(**changes), PROMPTS, seed)
        self.rounds = Rounds(algorithm(**changes), self.round_prompts, seed)

    def fill(self, round_: int, version: int = 0) -> list[str]:
        prompts = self.round_prompts.prompts(round_)
        names = [f"r{round_}-{prompt.prompt_id}-v{version}" for prompt in prompts]
        for prompt, name in zip(prompts, names, strict=True):
            self.rounds.add(round_, prompt.prompt_id, name)
        return names

    def train_round(self, round_: int, steps: int) -> list[list[str]]:
        self.rounds.begin(round_, [])
        return self.train(steps)

    def train(self, steps: int) -> list[list[str]]:
        taken: list[list[str]] = []
        for _ in range(steps):
            batch = self.rounds.next_batch()
            assert batch is not None
            self.rounds.take(batch)
            taken.append(batch)
        return taken


def test_strict_mode_waits_for_the_whole_round() -> None:
    drawing = Drawing()
    drawing.rounds.begin(0, [])
    *most, last = drawing.round_prompts.prompts(0)
    for prompt in most:
        drawing.rounds.add(0, prompt.prompt_id, prompt.prompt_id)
    assert drawing.rounds.next_batch() is None
    drawing.rounds.add(0, last.prompt_id, last.prompt_id)
    assert drawing.rounds.next_batch() is not None


def test_one_pass_trains_every_group_of_the_round_exactly_once() -> None:
    drawing = Drawing()
    names = drawing.fill(0)
    assert sorted(name for batch in drawing.train_round(0, 4) for name in batch) == sorted(names)


def test_the_order_of_arrival_does_not_matter_in_strict_mode() -> None:
    batches = []
    for arrival in (0, 1):
        drawing = Drawing()
        prompts = list(drawing.round_prompts.prompts(0))
        random.Random(arrival).shuffle(prompts)
        for prompt in prompts:
            drawing.rounds.add(0, prompt.prompt_id, prompt.prompt_id)
        batches.append(drawing.train_round(0, 4))
    assert batches[0] == batches[1]


def test_further_passes_reshuffle_and_again_take_each_group_once() -> None:
    drawing = Drawing(updates_per_round=8)
    names = drawing.fill(0)
    taken = drawing.train_round(0, 8)
    assert sorted(name for batch in taken[4:] for name in batch) == sorted(names)
    assert taken[:4] != taken[4:]


def test_overlapped_mode_takes_what_is_ready_and_nothing_twice() -> None:
    drawing = Drawing(max_staleness=1)
    rounds = drawing.rounds
    first, second, third, *_ = drawing.round_prompts.prompts(0)
    rounds.begin(0, [])
    rounds.add(0, third.prompt_id, "third")
    assert rounds.next_batch() is None
    rounds.add(0, second.prompt_id, "second")
    assert rounds.next_batch() == ["second", "third"]
    rounds.take(["second", "third"])
    rounds.add(0, first.prompt_id, "first")
    assert rounds.next_batch() is None


def test_accumulate_draws_from_all_rounds_so_far() -> None:
    drawing = Drawing(buffer="accumulate", updates_per_round=8)
    names = drawing.fill(0) + drawing.fill(1)
    assert sorted(name for batch in drawing.train_round(1, 8) for name in batch) == sorted(names)


@pytest.mark.parametrize("changes", [{}, {"buffer": "accumulate"}, {"max_staleness": 2}])
@pytest.mark.parametrize("done", range(9))
def test_a_round_resumed_after_any_step_goes_on_as_if_it_had_not_ended(done: int, changes: dict[str, Any]) -> None:
    whole, resumed = Drawing(updates_per_round=9, **changes), Drawing(updates_per_round=9, **changes)
    for drawing in (whole, resumed):
        drawing.fill(0)
    taken = whole.train_round(0, 9)
    resumed.rounds.begin(0, taken[:done])
    assert resumed.train(9 - done) == taken[done:]


def test_recorded_steps_are_taken_as_they_come_across_the_end_of_a_pass() -> None:
    whole, resumed = Drawing(updates_per_round=8), Drawing(updates_per_round=8)
    for drawing in (whole, resumed):
        drawing.fill(0)
    taken = whole.train_round(0, 8)
    resumed.rounds.begin(0, taken[:2])  # the checkpoint's; the store records six
    for recorded in taken[2:6]:
        resumed.rounds.take(recorded)
    assert resumed.train(2) == taken[6:]


class Counted(str):
    """A name that counts how often it is looked up."""

    lookups: ClassVar[Counter[str]] = Counter()

    def __hash__(self) -> int:
        Counted.lookups["all"] += 1
        return super().__hash__()


@pytest.mark.parametrize("changes", [{}, {"max_staleness": 1}, {"buffer": "accumulate"}])
def test_the_work_of_a_step_does_not_grow_with_the_pool(changes: dict[str, Any]) -> None:
    """Asked at every arrival and every step, as the conductor asks: a bounded number of look-ups a group."""

    def lookups_a_group(count: int) -> float:
        names = [Counted(f"g{number}") for number in range(count)]
        index = pa.table({"group_id": pa.array(map(str, names)), "round": pa.array([0] * count, pa.int32())})
        sizes = {"prompts_per_round": count, "updates_per_round": count // 4, "batch_prompts": 4, **changes}

        class Named(StoredGroups):
            def keys(self, round_: int) -> list[str]:
                return list(names)  # not the plain strings that Arrow gives

        rounds = Rounds(algorithm(**sizes), Named(index), seed=0)
        rounds.begin(0, [])
        Counted.lookups.clear()
        for name in names:
            rounds.add(0, "prompt", name)
            rounds.next_batch()
        for _ in range(count // 4):
            batch = rounds.next_batch()
            assert batch is not None
            rounds.take(batch)
        return Counted.lookups["all"] / count

    assert lookups_a_group(4096) < 1.5 * lookups_a_group(256)


def test_a_store_s_round_has_its_groups_in_the_order_of_commitment() -> None:
    index = pa.table({"group_id": ["b", "x", "a", "c"], "round": pa.array([0, 1, 0, 0], pa.int32())})
    rounds = Rounds(algorithm(batch_prompts=3), StoredGroups(index), seed=0)
    for name in ("a", "b", "c"):
        rounds.add(0, "the same prompt", name)
    rounds.begin(0, [])
    assert rounds.next_batch() == ["b", "a", "c"]


def test_recorded_steps_come_again_in_their_order_and_end_with_the_last() -> None:
    steps = [["a", "b"], ["c"], ["b", "c"]]
    schedule = RecordedSteps(steps, updates_per_round=2)
    assert schedule.last_step == 3
    schedule.begin(0, [])
    assert schedule.next_batch() is None
    for name in "abc":
        schedule.add(0, "prompt", name)
    for expected in steps:
        assert schedule.next_batch() == expected
        schedule.take(expected)
    schedule.begin(1, [])  # resumed after two steps of two
    assert schedule.next_batch() == ["b", "c"]


@given(staleness=st.integers(0, 3), version=st.integers(0, 3))
def test_admission_keeps_the_staleness_bound(staleness: int, version: int) -> None:
    section = algorithm(max_staleness=staleness, rounds=4)
    requests = TrainingRequests(
        section, DrawnPrompts(section, PROMPTS, 0), RequestPlan("run", 0, 4, Path("policies")), n=2, fixed=False
    )
    for round_ in requests.admitted(version):
        assert version <= round_ < 4
        assert round_ - version <= staleness


def test_a_round_s_leases_leave_out_those_that_are_sampled_whole() -> None:
    section = algorithm()
    round_prompts = DrawnPrompts(section, PROMPTS, 0)
    requests = TrainingRequests(section, round_prompts, RequestPlan("run", 0, 4, Path("policies")), n=2, fixed=False)
    names = [prompt.prompt_id for prompt in round_prompts.prompts(1)]
    assert [request.lease_id for request in requests.of_round(1, 1, set(), set())] == [
        "train-0001-0000",
        "train-0001-0001",
    ]
    assert [request.lease_id for request in requests.of_round(1, 1, set(names[:4]), set())] == ["train-0001-0001"]
    assert len(requests.of_round(1, 1, set(names[1:]), set())) == 1
    assert requests.of_round(1, 1, set(names), set()) == []


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_no_prompt_twice_in_a_round_and_every_epoch_differs(seed: int) -> None:
    round_prompts = DrawnPrompts(algorithm(), PROMPTS, seed)
    drawn = [[prompt.prompt_id for prompt in round_prompts.prompts(round_)] for round_ in range(4)]
    assert all(len(set(names)) == 8 for names in drawn)
    assert not set(drawn[0]) & set(drawn[1])  # one epoch
    again = DrawnPrompts(algorithm(), PROMPTS, seed)
    assert drawn == [[prompt.prompt_id for prompt in again.prompts(round_)] for round_ in range(4)]


def test_leases_are_the_same_after_a_restart_and_differ_in_seed() -> None:
    requests = RequestPlan("run", 0, 3, Path("policies")).requests("train", 1, 1, 4, PROMPTS[:8])
    assert [len(request.prompts) for request in requests] == [3, 3, 2]
    assert requests == RequestPlan("run", 0, 3, Path("policies")).requests("train", 1, 1, 4, PROMPTS[:8])
    assert len({request.seed for request in requests}) == 3
    assert len({group for request in requests for group in request.group_ids}) == 8
    other = RequestPlan("run", 0, 3, Path("policies")).requests("validation", 1, 1, 4, PROMPTS[:8])
    assert not {request.seed for request in requests} & {request.seed for request in other}


@pytest.mark.parametrize("version", [0, 2])
def test_a_fixed_proposal_admits_rounds_early_and_samples_from_the_prior(version: int) -> None:
    section = algorithm(rounds=4)
    round_prompts = DrawnPrompts(section, PROMPTS, 0)
    requests = TrainingRequests(section, round_prompts, RequestPlan("run", 0, 4, Path("policies")), n=2, fixed=True)
    assert requests.admitted(version) == range(version, 4)
    given = [request for round_ in range(4) for request in requests.of_round(round_, version, set(), set())]
    assert {request.version for request in given} == {0}
    assert {request.round for request in given} == {0, 1, 2, 3}
    assert given[0] == requests.up_to_date(given[0], version)


def test_a_fixed_proposal_admits_only_so_many_rounds_as_keep_samplers_busy() -> None:
    section = algorithm(rounds=1000)
    requests = TrainingRequests(
        section, DrawnPrompts(section, PROMPTS, 0), RequestPlan("run", 0, 4, Path("policies")), n=2, fixed=True
    )
    assert requests.admitted(3) == range(3, 3 + FIXED_AHEAD + 1)


def test_the_prompts_of_few_rounds_are_kept_and_the_others_drawn_again() -> None:
    round_prompts = DrawnPrompts(algorithm(rounds=1000), PROMPTS, 0)
    first = round_prompts.keys(0)
    for round_ in range(100):
        round_prompts.keys(round_)
    assert len(round_prompts._drawn) < 20 and round_prompts.keys(0) == first


@pytest.mark.parametrize(("newest", "version"), [(1, 1), (2, 2), (3, 3), (4, 3)])
def test_a_lease_that_has_waited_is_sampled_from_what_was_published_meanwhile(newest: int, version: int) -> None:
    section = algorithm(max_staleness=2, rounds=6)
    round_prompts = DrawnPrompts(section, PROMPTS, 0)
    requests = TrainingRequests(section, round_prompts, RequestPlan("run", 0, 4, Path("policies")), n=2, fixed=False)
    (waiting, _), (at_once, _) = (requests.of_round(3, of, set(), set()) for of in (1, version))
    assert requests.up_to_date(waiting, newest) == at_once  # never from one beyond its round
    part = waiting.without(waiting.group_ids[:1])
    assert requests.up_to_date(part, newest) == at_once.without(at_once.group_ids[:1])
