"""Run directories as finished runs leave them, made up; no engine has been near them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brain_align.common.config.recipe import Recipe
from brain_align.common.schemas import GROUPS, batch_from_rows
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.yaml_text import dump_yaml
from tests.unit.factories import group, recipe_settings, scores, step

SPLITS = ("validation", "test")
UPDATES = 4  # per round
SECONDS = {
    "checks": 1.5,
    "pipeline": 60.0,
    "sampling": 20.0,
    "scoring": 30.0,
    "training": 15.0,
    "start": 12.5,
    "total": 64.0,
}

ATTACK = "</script><script>window.attacked = 1</script><img src=x onerror='window.attacked = 1'><!-- \x1b[2J"

Text = Callable[[int, int], str]
"""The output for a prompt, by its number and the version."""


def recipe(**changes: Any) -> Recipe:
    scorers = {
        "reward": {"kind": "tldr", "path": "reward"},
        "truth": {"kind": "function", "function": "mine:truth", "use": "evaluation"},
    }
    settings = recipe_settings(scorers=scorers, sampling={"n": 2}, objective={"temperature": 0.5})
    settings |= {"algorithm": {"rounds": 2, "updates_per_round": UPDATES}, "evaluation": {"truth": "truth"}}
    for name, section in changes.items():
        settings[name] = {**settings.get(name, {}), **section} if isinstance(section, dict) else section
    return Recipe.model_validate(settings)


def begun_run(root: Path, *, versions: Sequence[int] = (0, 1, 2), steps: int = 8, **changes: Any) -> RunDirectory:
    """Write what a run has left after these versions were evaluated on validation prompts; see `finished_run`."""
    directory = RunDirectory(root)
    root.mkdir(parents=True, exist_ok=True)
    directory.config.write_text(dump_yaml(recipe(**changes).model_dump(mode="json")), encoding="utf-8")
    lines = [
        {"kind": "step", "step": number, "time": 100.0 + number, **_step(number)} for number in range(1, steps + 1)
    ]
    lines += [{"kind": "validation", "version": version, "time": 50.0, **result(version)} for version in versions]
    directory.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return directory


def finished_run(
    root: Path,
    *,
    prompts: int = 12,
    steps: int = 8,
    text: Text = lambda number, version: f"output {number} of version {version}",
    prompt: str = "Prompt",
    **changes: Any,
) -> RunDirectory:
    """Write what a finished run leaves: version 1 of 2 is the best; its rewards are one higher than the SFT model's."""
    directory = begun_run(root, steps=steps, **changes)
    summary = {
        "name": "test",
        "best_version": 1,
        "before": _measured(0, prompts),
        "after": _measured(1, prompts),
        "validation": {str(version): result(version) for version in range(3)},
        "warnings": ["The reward model is hardly better than length alone."],
        "left_out": [],
        "seconds": SECONDS,
    }
    directory.summary.write_text(json.dumps(summary), encoding="utf-8")
    evaluation = SampleStore(directory.evaluation, "run")
    for version in (0, 1):
        _append(evaluation, [_evaluated(number, version, text, prompt) for number in range(prompts)], version)
    store = SampleStore(directory.own_store, "run")
    rows = [_sampled(round_, number, text, prompt) for round_ in range(2) for number in range(3)]
    store.append_groups(batch_from_rows(GROUPS, rows))
    ids = [row["group_id"] for row in rows]
    store.append_scores(scores("reward", {one: [0.0, 0.5] for one in ids}))
    store.append_scores(scores("prior", {one: [-1.0, -1.5] for one in ids}))
    with store.training():
        store.append_step(step(1, ids[:3]))
    return directory


def large_run(root: Path) -> RunDirectory:
    """Write a finished run of 1,000 steps and 2,000 samples, whose texts are as long as those of conversations."""
    words = "The quick brown fox jumps over the lazy dog, and says nothing of it. " * 14
    return finished_run(root, prompts=2000, steps=1000, text=lambda number, _: f"{number} {words}", prompt=3 * words)


def _step(number: int) -> dict[str, float]:
    """Return metrics that need all 17 digits."""
    return {
        "round": float((number - 1) // UPDATES),
        "loss": 1 / number,
        "reward_mean": np.sqrt(number) / 3,
        "kl_policy_prior": number / 7,
        "ess_alpha": 1 + 1 / number,
        "grad_norm": 0.1 * number,
        "sampled_tokens_per_second": 1000 / 3 + number,
    }


def result(version: int) -> dict[str, Any]:
    return {
        "train_rm_win_rate": 40.0 + version / 3,
        "train_rm_win_rate_ci95": 9.6,
        "ties": 0.0,
        "mean_reward": version / 3,
        "mean_gold_reward": 0.5,
        "truth_quality": 0.4 + version / 30,
        "gold_truth_quality": 0.5,
        "kl_to_prior": version / 7,
        "mean_tokens": 10.0 + version,
        "ended": 100.0,
        "prompts": 100,
        "failed": 0,
    }


def _reward(number: int, version: int) -> float:
    return number % 3 - 1.0 + version


def _tokens(number: int, version: int) -> int:
    return 2 + number % 4 + version


def _measured(version: int, prompts: int) -> dict[str, Any]:
    """Return the figures of the rows below, as a run's evaluation computes them."""
    numbers = range(prompts)
    wins = np.array([_reward(number, version) > 0.5 for number in numbers])
    return {
        **result(version),
        "train_rm_win_rate": 100 * float(wins.mean()),
        "train_rm_win_rate_ci95": 196 * float(np.sqrt(wins.mean() * (1 - wins.mean()) / prompts)),
        "mean_reward": float(np.mean([_reward(number, version) for number in numbers])),
        "truth_quality": 0.25 * (1 + version),
        "kl_to_prior": 0.25 * version,
        "mean_tokens": float(np.mean([_tokens(number, version) for number in numbers])),
        "ended": 100 * float(np.mean([number % 5 > 0 for number in numbers])),
        "prompts": prompts,
    }


def _evaluated(number: int, version: int, text: Text, prompt: str) -> dict[str, Any]:
    tokens = _tokens(number, version)
    output = {
        "token_ids": [7] * tokens,
        "token_logprobs": [-2.0 / tokens] * tokens,
        "text": text(number, version),
        "finish_reason": "stop" if number % 5 else "length",
    }
    return group(
        f"test-{version}-{number}",
        prompt_id=f"p{number}",
        prompt_text=f"{prompt} {number}",
        gold_text=f"reference {number}",
        round=version,
        proposal_version=version,
        lease_id=f"test-{version:04d}-0000",
        outputs=[output],
    )


def _append(store: SampleStore, rows: list[dict[str, Any]], version: int) -> None:
    store.append_groups(batch_from_rows(GROUPS, rows))
    ids = {row["group_id"]: number for number, row in enumerate(rows)}
    store.append_scores(scores("reward", {one: [_reward(number, version)] for one, number in ids.items()}))
    store.append_scores(scores("truth", {one: [0.25 * (1 + version)] for one in ids}))
    store.append_scores(scores("prior", {one: [-2.0 - 0.25 * version] for one in ids}))


def _sampled(round_: int, number: int, text: Text, prompt: str) -> dict[str, Any]:
    return group(
        f"train-{round_}-{number}",
        prompt_text=f"{prompt} {number} of round {round_}",
        round=round_,
        proposal_version=max(0, round_ - number % 2),
        lease_id=f"train-{round_:04d}-0000",
        outputs=[
            {"token_ids": [1, 2], "token_logprobs": [-0.5, -0.5], "text": text(number, 7), "finish_reason": "stop"},
            {"token_ids": [3], "token_logprobs": [-1.25], "text": text(number, 8), "finish_reason": "length"},
        ],
    )
