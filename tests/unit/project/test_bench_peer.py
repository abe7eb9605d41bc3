"""The figures of `make bench-peer`, and the deterministic reward of its pretrained case."""

import pytest

from tests.bench import peer
from tests.bench.peer_cases.cases import CASES, DEMO, GRPO, SMOLLM, STRICT, Cell, recipe_file
from tests.bench.peer_cases.figures import first_at, headline, of_cell, of_methods
from tests.bench.peer_cases.our_side import command
from tests.bench.peer_cases.summary_reward import reward
from tests.locations import ROOT

POST = "TITLE: My sister and my phone\nPOST: My sister burned my phone. My phone was new. I feel hurt.\nTL;DR:"


def result(method, rate, seed, curve, startup=5.0, failed=None):
    """A finished cell whose points are (seconds, outputs, win rate, truth)."""
    points = [
        {"seconds": s, "outputs": o, "win_rate": w, "truth": t, "kl": s / 10, "reward": w} for s, o, w, t in curve
    ]
    return {
        "method": method, "learning_rate": rate, "seed": seed, "startup_seconds": startup,
        "training_seconds": curve[-1][0], "outputs": curve[-1][1], "points": points, "failed": failed,
    }  # fmt: skip


SLOW = [(0.0, 0, 20.0, 0.4), (20.0, 256, 50.0, 0.5), (40.0, 512, 60.0, 0.7)]
FAST = [(0.0, 0, 20.0, 0.4), (10.0, 256, 55.0, 0.5), (20.0, 512, 70.0, 0.3)]
NEVER = [(0.0, 0, 20.0, 0.4), (10.0, 256, 54.9, 0.5)]
OURS = [(0.0, 0, 20.0, 0.4), (4.0, 128, 65.0, 0.55)]


def test_the_first_version_at_the_target_counts_also_at_equality():
    reached = first_at(result(GRPO, 1e-3, 0, FAST)["points"], 55.0)
    assert reached is not None and reached["outputs"] == 256
    assert first_at(result(GRPO, 1e-3, 0, NEVER)["points"], 55.0) is None


def test_a_row_has_the_time_to_the_target_with_and_without_start_up():
    row = of_cell(result(GRPO, 1e-3, 0, SLOW), 55.0)
    assert (row["seconds_to_55"], row["with start-up"], row["outputs_to_55"], row["best_truth"]) == (40, 45, 512, 0.7)
    assert row["s / 1,000 outputs"] == pytest.approx(40 / 0.512)


def test_the_best_rate_is_the_first_at_the_target_on_the_seeds_that_all_rates_have():
    # The second seed of the best rate was bad, which must not make another rate the best after the fact.
    cells = [result(GRPO, 1e-3, 0, FAST), result(GRPO, 3e-4, 0, SLOW), result(GRPO, 3e-3, 0, NEVER)]
    (row,) = of_methods(DEMO, [*cells, result(GRPO, 1e-3, 1, SLOW)])
    assert (row["learning rate"], row["rates tried"], row["seeds"]) == (1e-3, 3, 2)
    assert row["seconds_to_55"] == 25.0


def test_a_rate_at_which_training_diverged_is_never_the_best():
    diverged = result(GRPO, 3e-3, 0, FAST[:2], failed="version 4 cannot be judged")
    (row,) = of_methods(DEMO, [diverged, result(GRPO, 1e-3, 0, NEVER)])
    assert row["learning rate"] == 1e-3


def test_a_seed_that_does_not_reach_the_target_leaves_no_mean():
    (row,) = of_methods(DEMO, [result(GRPO, 1e-3, 0, FAST), result(GRPO, 1e-3, 1, NEVER)])
    assert row["seconds_to_55"] is None and row["outputs_to_55"] is None
    assert row["best_truth"] == 0.5


def test_headline_compares_the_better_of_each_side():
    cells = [
        result(GRPO, 1e-3, 0, FAST),
        result("trl-rloo", 1e-3, 0, SLOW),
        result(STRICT, None, 0, OURS, startup=30.0),
    ]
    figures = headline(of_methods(DEMO, cells))
    assert figures["speedup_vs_best_trl"] == pytest.approx(10 / 4)
    assert figures["speedup_with_startup_vs_best_trl"] == pytest.approx(15 / 34)
    assert figures["samples_vs_best_trl"] == 128 / 256
    assert figures["throughput_vs_best_trl"] == pytest.approx((20 / 512) / (4 / 128))


def test_what_is_not_reached_has_no_ratio():
    figures = headline(of_methods(DEMO, [result(GRPO, 1e-3, 0, NEVER), result(STRICT, None, 0, OURS)]))
    assert figures["speedup_vs_best_trl"] is None and figures["throughput_vs_best_trl"] is not None


def test_a_cell_with_fewer_steps_is_another_cell_with_as_many_outputs_for_both_sides():
    whole, part = Cell(SMOLLM, STRICT, None, 0), Cell(SMOLLM, STRICT, None, 0, steps=8)
    assert whole.name != part.name and whole.result != part.result
    assert part.overrides()["algorithm.rounds"] == 2  # 8 steps × 4 prompts, 16 per round
    assert any(argument == "algorithm.rounds=2" for argument in command(part))


def test_the_whole_cases_sample_as_many_outputs_in_rounds_as_the_recipes_say():
    for case in CASES.values():
        assert recipe_file(case).is_file() and (ROOT / command(Cell(case, STRICT, None, 0))[1]).is_file()


def test_cells_of_a_method_of_ours_have_no_learning_rates():
    chosen = peer.options(["--cases", "demo", "--methods", STRICT, GRPO, "--seeds", "0"])
    names = [cell.name for cell in peer.cells(DEMO, chosen)]
    assert names == [
        "demo-brain-strict-seed0", "demo-trl-grpo-lr0.001-seed0", "demo-trl-grpo-lr0.0003-seed0",
        "demo-trl-grpo-lr0.003-seed0",
    ]  # fmt: skip


def test_the_reward_likes_what_the_post_is_about():
    good, off, empty = reward([POST] * 3, [" My sister burned my new phone.", " It rains in Spain today.", ""])
    assert good > off > empty


def test_the_reward_takes_off_for_copies_repetition_and_unfinished_sentences():
    plain = " Sister burned phone, I feel hurt."
    values = reward(
        [POST] * 4,
        [plain, plain[:-1], " My sister burned my phone. My phone was new. I feel hurt.", plain + plain + plain],
    )
    assert values[0] == max(values) and values[1] == pytest.approx(values[0] - 0.3)
