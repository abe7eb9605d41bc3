"""docs/metrics.md explains every metric that the code writes, and no other."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import torch

from brain_align.common.config.objectives import OBJECTIVE_NAMES
from brain_align.common.config.recipe import Recipe
from brain_align.deploy.conductor.tracker import Tracker
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.run.trackers.open_trackers import Trackers
from brain_align.deploy.schedule.evaluation import Result
from brain_align.learner.objectives.catalogue import make_objective
from brain_align.learner.steps.batches import group_batch
from brain_align.learner.steps.gradients import BatchResult
from brain_align.learner.steps.metrics import masked_metrics, sampler_gap, step_metrics
from tests.locations import ROOT
from tests.unit.factories import recipe_settings
from tests.unit.learner.train_batches import random_rows, train_batch

PAGE = (ROOT / "docs/metrics.md").read_text()
JUDGE = {"kind": "function", "function": "m:f", "use": "evaluation"}


def on_the_page() -> set[str]:
    """The names in the first column of the tables of steps and evaluations."""
    tables = PAGE.split("\n## Optimizer steps", 1)[1].split("\n## Warnings", 1)[0]
    first = [line.split("|")[1] for line in tables.splitlines() if line.startswith("| `")]
    return {name for cell in first for name in re.findall(r"`([^`]+)`", cell)}


def learner_metrics(name: str) -> dict[str, float]:
    """The metrics of a step with one objective, taken and skipped, without a model."""
    settings = recipe_settings(objective={"name": name, "reward": "reward"}, logprobs={"proposal": "recomputed"})
    recipe = Recipe.model_validate(settings)
    objective = make_objective(recipe.objective)
    stored = group_batch(train_batch(*random_rows(1, n=16)))
    groups = stored.narrowed(objective.used(stored.stored_values()))
    policy = torch.cat([stored.sampler_logprobs + 0.1, torch.full((len(stored.golds), 1), -3.0)], dim=1)
    objective.observe(groups.stored_values())
    result = BatchResult(policy[:, :-1], objective(groups.values(policy)))
    metrics = step_metrics(stored, groups, result, 1e-3, None) | step_metrics(stored, groups, result, 1e-3, 1.0)
    metrics |= masked_metrics(stored, stored) | sampler_gap(recipe, groups, policy[:, :-1], None)
    return metrics | {"seconds": 1.0}  # the trainer's own


class Recording(Trackers):
    """Notes the names that it is sent."""

    def __init__(self, sent: list[str]) -> None:
        super().__init__([])
        self.sent = sent

    def log(self, kind: str, number: int, figures: Mapping[str, float]) -> None:
        self.sent.extend(figures)


def written(root: Path, metrics: dict[str, float]) -> set[str]:
    """The names that a run writes into metrics.jsonl."""
    scorers = {"reward": {"kind": "tldr", "path": "r"}, "NAME": JUDGE}
    recipe = Recipe.model_validate(recipe_settings(scorers=scorers))
    sent: list[str] = []
    tracker = Tracker(recipe, root / "metrics.jsonl", Recording(sent), PlainConsole(quiet=True))
    tracker.stepped(1, 0, 8, metrics, 0)
    result = Result(50.0, 5.0, 0.0, 1.0, 1.0, 0.5, 0.5, 1.0, 20.0, 99.0, 100, 0)
    tracker.evaluated("validation", 1, result, pa.table({"reward": [1.0], "scores.NAME": [2.0]}))
    tracker.close()
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    names = {name for line in lines for name in line} - {"kind", "step", "version", "time"}
    assert names == set(sent)  # trackers get the same
    return names


def test_every_metric_that_is_written_is_explained_and_every_one_explained_is_written(tmp_path: Path) -> None:
    metrics: dict[str, float] = {}
    for name in OBJECTIVE_NAMES:
        if name != "dpo":  # trains on human pairs, with dpo-sft's metrics
            metrics |= learner_metrics(name)
    assert written(tmp_path, metrics) == on_the_page()


def test_trackers_may_be_none(tmp_path: Path) -> None:
    tracker = Tracker(Recipe.model_validate(recipe_settings()), tmp_path / "m", Trackers([]), PlainConsole(quiet=True))
    tracker.close()
