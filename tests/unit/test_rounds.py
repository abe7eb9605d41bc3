import random

from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.recipe import AlgorithmSection
from common.leases import Prompt
from deploy.rounds import LeasePlan, Rounds

PROMPTS = [Prompt(f"p{number}", f"text {number}", (1, 2), None) for number in range(20)]


def algorithm(**changes: object) -> AlgorithmSection:
    base = {"rounds": 3, "prompts_per_round": 8, "updates_per_round": 4, "batch_prompts": 2}
    return AlgorithmSection.model_validate({**base, **changes})


def fill(rounds: Rounds, round_: int, version: int = 0) -> list[str]:
    names = [f"r{round_}-{prompt.prompt_id}-v{version}" for prompt in rounds.prompts(round_)]
    for prompt, name in zip(rounds.prompts(round_), names, strict=True):
        rounds.add(round_, prompt.prompt_id, name)
    return names


def train_round(rounds: Rounds, round_: int, steps: int) -> list[list[str]]:
    taken: list[list[str]] = []
    for _ in range(steps):
        batch = rounds.next_batch(round_, taken)
        assert batch is not None
        taken.append(batch)
    return taken


def test_strict_mode_waits_for_the_whole_round() -> None:
    rounds = Rounds(algorithm(), PROMPTS, seed=0)
    *most, last = rounds.prompts(0)
    for prompt in most:
        rounds.add(0, prompt.prompt_id, prompt.prompt_id)
    assert rounds.next_batch(0, []) is None
    rounds.add(0, last.prompt_id, last.prompt_id)
    assert rounds.next_batch(0, []) is not None


def test_one_pass_trains_every_group_of_the_round_exactly_once() -> None:
    rounds = Rounds(algorithm(), PROMPTS, seed=0)
    names = fill(rounds, 0)
    trained = [name for batch in train_round(rounds, 0, 4) for name in batch]
    assert sorted(trained) == sorted(names)


def test_the_order_of_arrival_does_not_matter_in_strict_mode() -> None:
    batches = []
    for arrival in (0, 1):
        rounds = Rounds(algorithm(), PROMPTS, seed=0)
        prompts = list(rounds.prompts(0))
        random.Random(arrival).shuffle(prompts)
        for prompt in prompts:
            rounds.add(0, prompt.prompt_id, prompt.prompt_id)
        batches.append(train_round(rounds, 0, 4))
    assert batches[0] == batches[1]


def test_further_passes_reshuffle_and_again_take_each_group_once() -> None:
    rounds = Rounds(algorithm(updates_per_round=8), PROMPTS, seed=0)
    names = fill(rounds, 0)
    taken = train_round(rounds, 0, 8)
    assert sorted(name for batch in taken[4:] for name in batch) == sorted(names)
    assert taken[:4] != taken[4:]


def test_overlapped_mode_takes_what_is_ready_and_nothing_twice() -> None:
    rounds = Rounds(algorithm(max_staleness=1), PROMPTS, seed=0)
    first, second, third, *_ = rounds.prompts(0)
    rounds.add(0, third.prompt_id, "third")
    assert rounds.next_batch(0, []) is None
    rounds.add(0, second.prompt_id, "second")
    assert rounds.next_batch(0, []) == ["second", "third"]
    rounds.add(0, first.prompt_id, "first")
    assert rounds.next_batch(0, [["second", "third"]]) is None


def test_accumulate_draws_from_all_rounds_so_far() -> None:
    rounds = Rounds(algorithm(buffer="accumulate", updates_per_round=8), PROMPTS, seed=0)
    names = fill(rounds, 0) + fill(rounds, 1)
    assert sorted(name for batch in train_round(rounds, 1, 8) for name in batch) == sorted(names)


@given(staleness=st.integers(0, 3), version=st.integers(0, 3))
def test_admission_keeps_the_staleness_bound(staleness: int, version: int) -> None:
    rounds = Rounds(algorithm(max_staleness=staleness, rounds=4), PROMPTS, seed=0)
    for round_ in rounds.admitted(version):
        assert version <= round_ < 4
        assert round_ - version <= staleness


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_no_prompt_twice_in_a_round_and_every_epoch_differs(seed: int) -> None:
    rounds = Rounds(algorithm(), PROMPTS, seed=seed)
    drawn = [[prompt.prompt_id for prompt in rounds.prompts(round_)] for round_ in range(4)]
    assert all(len(set(names)) == 8 for names in drawn)
    assert not set(drawn[0]) & set(drawn[1])  # one epoch
    assert drawn == [[prompt.prompt_id for prompt in Rounds(algorithm(), PROMPTS, seed).prompts(r)] for r in range(4)]


def test_leases_are_the_same_after_a_restart_and_differ_in_seed() -> None:
    leases = LeasePlan("run", 0, 3).leases("train", 1, 1, 4, PROMPTS[:8])
    assert [len(lease.prompts) for lease in leases] == [3, 3, 2]
    assert leases == LeasePlan("run", 0, 3).leases("train", 1, 1, 4, PROMPTS[:8])
    assert len({lease.seed for lease in leases}) == 3
    assert len({group for lease in leases for group in lease.group_ids}) == 8
    other = LeasePlan("run", 0, 3).leases("validation", 1, 1, 4, PROMPTS[:8])
    assert not {lease.seed for lease in leases} & {lease.seed for lease in other}
