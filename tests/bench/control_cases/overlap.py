"""Stages that sleep for known times: overlapped, a run should take as long as its slowest stage; strict, their sum."""

import asyncio
import time
from pathlib import Path
from typing import Any

from brain_align.deploy.actors.pool import PoolSettings
from tests.stand_ins import LocalLearner, LocalSampler, Simulation, reward_and_prior

ROUNDS, PROMPTS, STEPS, SAMPLERS, REQUEST_PROMPTS = 10, 32, 8, 2, 4
SCORING = 0.02  # seconds a group and scorer at most: a call of several takes as long as one

CASES = {"training is slowest": (0.08, 0.25), "sampling is slowest": (0.125, 0.15)}
"""Seconds a group on one sampler, and seconds a step."""


def measure(root: Path) -> list[dict[str, Any]]:
    rows = []
    for name, (sampling, training) in CASES.items():
        stages = ROUNDS * PROMPTS * sampling / SAMPLERS, ROUNDS * STEPS * training
        overlapped = _run(root / f"{name} overlapped", 1, sampling, training)
        strict = _run(root / f"{name} strict", 0, sampling, training)
        rows.append(
            {
                "case": name,
                "sampling s": stages[0],
                "training s": stages[1],
                "overlapped s": overlapped,
                "against the slowest": overlapped / max(stages),
                "strict s": strict,
                "against the sum": strict / sum(stages),
            }
        )
    return rows


def _run(root: Path, staleness: int, sampling: float, training: float) -> float:
    algorithm = {
        "rounds": ROUNDS,
        "prompts_per_round": PROMPTS,
        "updates_per_round": STEPS,
        "batch_prompts": PROMPTS // STEPS,
        "max_staleness": staleness,
    }
    simulation = Simulation(
        root,
        algorithm,
        (SAMPLERS, lambda name, _log: LocalSampler(name, sampling)),
        reward_and_prior(SCORING),
        LocalLearner(training),
        recipe={"sampler": {"lease_prompts": REQUEST_PROMPTS}},
        samplers_settings=PoolSettings(start=60),
    )
    began = time.perf_counter()
    asyncio.run(simulation.run())
    return time.perf_counter() - began
