"""kill -9 of sampler processes at random moments of one run, under Ray: nothing lost, nothing twice."""

import asyncio
import contextlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import ray

from brain_align.deploy.actors.pool import PoolSettings
from brain_align.deploy.schedule.round_prompts import DrawnPrompts
from tests.ray_stand_ins import HURRY, SleepingSampler, spawning
from tests.stand_ins import LocalLearner, Simulation, reward_and_prior

KILLS, SAMPLERS, REQUEST_PROMPTS = 50, 4, 8
ROUNDS, PROMPTS = 40, 128  # more than is sampled before the last kill
GROUP_SECONDS = 0.4
BETWEEN = (0.5, 3.5)  # seconds between two kills


def measure(root: Path) -> dict[str, Any]:
    pids = root / "pids"
    pids.mkdir(parents=True)
    algorithm = {
        "rounds": ROUNDS,
        "prompts_per_round": PROMPTS,
        "updates_per_round": 16,
        "batch_prompts": PROMPTS // 16,
        "max_staleness": 1,
    }
    ray.init(address="local", num_cpus=SAMPLERS, include_dashboard=False, log_to_driver=False)
    try:
        simulation = Simulation(
            root,
            algorithm,
            (SAMPLERS, spawning(SleepingSampler, str(pids), GROUP_SECONDS, {})),
            reward_and_prior(),
            LocalLearner(),
            recipe={"sampler": {"lease_prompts": REQUEST_PROMPTS}},
            samplers_settings=PoolSettings(start=120, slots=2, stall_timeout=60, backoff=0.5),
        )
        began = time.perf_counter()
        killed = asyncio.run(_run_and_kill(simulation, pids))
        wall = time.perf_counter() - began
    finally:
        ray.shutdown()
    trained = simulation.trained()
    index = simulation.store.index()
    stored = list(zip(index["round"].to_pylist(), index["prompt_id"].to_pylist(), strict=True))
    round_prompts = DrawnPrompts(simulation.recipe.algorithm, simulation.prompts, simulation.recipe.seed)
    drawn = {(number, prompt.prompt_id) for number in range(ROUNDS) for prompt in round_prompts.prompts(number)}
    return {
        "kills_survived": killed,
        "kills_run_seconds": wall,
        "groups_lost": len(drawn - set(stored)),
        "groups_duplicated": len(stored) - len(set(stored)) + len(trained) - len(set(trained)),
        "groups_quarantined": len(simulation.work.quarantine),
    }


async def _run_and_kill(simulation: Simulation, pids: Path) -> int:
    run = asyncio.create_task(simulation.run())
    chance = random.Random(0)
    killed = 0
    while killed < KILLS and not run.done():
        await asyncio.wait([run], timeout=chance.uniform(*BETWEEN))
        there = sorted(pids.glob("*@*"))
        if not there or run.done():
            continue
        victim = chance.choice(there)
        victim.unlink()  # the next process of that name leaves its own
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(victim.name.rpartition("@")[2]), signal.SIGKILL)
            killed += 1
    (pids / HURRY).touch()
    await run
    return killed
