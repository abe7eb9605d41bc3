"""Warnings while a run trains: they watch every step and evaluation, and say what goes wrong, and what to do."""

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from brain_align.common.config.recipe import Recipe
from brain_align.deploy.schedule.evaluation import Result, Split
from brain_align.deploy.schedule.guard_rules import (
    LEAST_FINISHED,
    STEP_RULES,
    Judged,
    Means,
    Window,
    far,
    kl_budget,
    overoptimised,
    unfinished,
)

_STEPS = 16  # of a window; half of the run's if that is fewer


@dataclass
class Alarm:
    """One kind of warning: the first and last step or version that it holds for, and its newest sentence."""

    unit: str  # step or version
    first: int
    last: int
    text: str

    def __str__(self) -> str:
        where = f"{self.unit} {self.first}" if self.first == self.last else f"{self.unit}s {self.first} to {self.last}"
        return f"WARNING: {where}: {self.text}."


class Guards:
    """Follows a run's metrics. Each kind of warning is returned once, when it first holds; `warnings` has all of them.

    They depend only on what is recorded, so that a resumed run comes to the same ones.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        steps = recipe.algorithm.rounds * recipe.algorithm.updates_per_round
        self._size = max(1, min(_STEPS, steps // 2))
        self._recent: deque[Mapping[str, float]] = deque(maxlen=self._size)
        self._first: Means | None = None
        self._seen = 0  # steps
        self._log_gammas: list[float] = []  # of the steps of round 0
        self._judged: dict[int, Judged] = {}  # by version, on validation prompts
        self._alarms: dict[str, Alarm] = {}

    @property
    def warnings(self) -> list[str]:
        """All warnings up to now, in the order in which they were first raised."""
        return [str(alarm) for alarm in self._alarms.values()]

    @property
    def suggested_gamma(self) -> float | None:
        """The γ at which half of round 0's outputs share α's weight: geometric mean over its steps; None if unknown."""
        return math.exp(float(np.mean(self._log_gammas))) if self._log_gammas else None

    def stepped(self, step: int, round_: int, metrics: Mapping[str, float]) -> list[str]:
        """Look at a step's metrics; return new warnings."""
        self._seen += 1
        self._recent.append(self._fair(round_, metrics))
        if round_ == 0 and "gamma_half_ess" in metrics:
            self._log_gammas.append(math.log(metrics["gamma_half_ess"]))
        if self._seen < self._size:
            return []
        now = _means(self._recent)
        if self._seen == self._size:
            self._first = now
        window = Window(self._recipe, now, self._first if self._seen >= 2 * self._size else None, self.suggested_gamma)
        found = {kind: rule(window) for kind, rule in STEP_RULES.items()}
        return self._raise("step", step, found)

    def _fair(self, round_: int, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """Return a step's metrics without α's effective sample size where it would say nothing of the steps to come.

        The prior is farther from the posterior than any later proposal. Where it is left within a window, only what
        follows is judged.
        """
        algorithm = self._recipe.algorithm
        passing = round_ == 0 and algorithm.rounds > 1 and algorithm.updates_per_round < self._size
        return {name: value for name, value in metrics.items() if name != "ess_alpha"} if passing else metrics

    def evaluated(self, split: Split, version: int, result: Result, outcomes: pa.Table | None) -> list[str]:
        """Look at an evaluation; return new warnings. `outcomes` are `Evaluation.outcomes` of validation prompts."""
        found: dict[str, str | None] = {}
        if result.ended < LEAST_FINISHED:
            found["finished"] = unfinished(result.ended, split, self._recipe)
        if result.kl_to_prior > kl_budget(self._recipe):
            found["kl"] = far(result.kl_to_prior, self._recipe)
        if outcomes is not None:
            self._judged[version] = dict(self._judges(outcomes))
            found["judges"] = overoptimised(self._judged, version, self._judged[version])
        return self._raise("version", version, found)

    def judges(self, outcomes: pa.Table) -> dict[str, float]:
        """Return the means of the scorers that training never sees, as metrics."""
        return {
            f"judge_{name}": float(np.nanmean(values)) for name, values in self._judges(outcomes) if name != "reward"
        }

    def _judges(self, outcomes: pa.Table) -> Iterator[tuple[str, np.ndarray]]:
        held_out = [name for name, scorer in self._recipe.scorers.items() if scorer.use == "evaluation"]
        columns = {"reward": "reward", **{name: f"scores.{name}" for name in held_out}}
        for name, column in columns.items():
            if column in outcomes.column_names and outcomes[column].null_count < len(outcomes):
                yield name, outcomes[column].to_numpy()

    def _raise(self, unit: str, number: int, found: Mapping[str, str | None]) -> list[str]:
        new = []
        for kind, text in found.items():
            if text is None:
                continue
            alarm = self._alarms.get(f"{unit} {kind}")
            if alarm is None:
                alarm = self._alarms[f"{unit} {kind}"] = Alarm(unit, number, number, text)
                new.append(str(alarm))
            alarm.first, alarm.last, alarm.text = min(alarm.first, number), max(alarm.last, number), text
        return new


def _means(steps: deque[Mapping[str, float]]) -> Means:
    """Return the means of the metrics that all of the steps have."""
    names = set(steps[0]).intersection(*steps)
    return {name: sum(step[name] for step in steps) / len(steps) for name in names}
