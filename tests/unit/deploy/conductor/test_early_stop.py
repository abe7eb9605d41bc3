"""`evaluation.patience` ends training in the middle of a run, and a second start comes to the same end."""

from pathlib import Path

import pytest

from brain_align.deploy.monitor.status import read_status
from tests.stand_ins import LocalSampler, Simulation, reward_and_prior

ALGORITHM = {"rounds": 6, "prompts_per_round": 4, "updates_per_round": 2, "batch_prompts": 2}


def run(root: Path, staleness: int, **evaluation: object) -> Simulation:
    simulation = Simulation(
        root,
        ALGORITHM | {"max_staleness": staleness},
        (1, lambda name, _log: LocalSampler(name)),
        reward_and_prior(),
        evaluated=3,
        recipe={"evaluation": evaluation},
    )
    simulation.run_here()
    return simulation


@pytest.mark.parametrize("again", [False, True])
def test_a_strict_run_ends_after_the_patience_is_over(tmp_path: Path, again: bool) -> None:
    """All versions are alike here, so that none is better than the first."""
    for _ in range(2 if again else 1):
        simulation = run(tmp_path, 0, patience=2)
    evaluation = simulation.evaluation
    assert len(simulation.store.steps()) == 2 * ALGORITHM["updates_per_round"]
    assert evaluation.stopped is not None and "none of versions 1, 2 is better" in evaluation.stopped
    assert evaluation.due_versions() == [0, 1, 2] and evaluation.best_version() == 0
    assert "training ends early with version 2" in simulation.said.getvalue()
    assert {row["round"] for row in simulation.store.index().select(["round"]).to_pylist()} == {0, 1}
    assert read_status(simulation.directory).state == "ended"


def test_an_overlapped_run_ends_early_too(tmp_path: Path) -> None:
    simulation = run(tmp_path, 1, patience=1)
    assert simulation.evaluation.stopped is None or len(simulation.store.steps()) < 12


def test_without_patience_every_round_is_trained(tmp_path: Path) -> None:
    simulation = run(tmp_path, 0)
    assert len(simulation.store.steps()) == 12 and simulation.evaluation.stopped is None
