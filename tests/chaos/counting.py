"""What is wrong with a finished run's store, in numbers that are all 0 after a good run."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.chaos.stored import Row, Stored


@dataclass(frozen=True)
class Plan:
    """What the run was to do. Each group is trained once: rounds train on their own groups, in one pass."""

    rounds: int
    prompts_per_round: int
    updates_per_round: int
    outputs: int
    max_staleness: int
    scorers: Sequence[str]  # whose values a trained group needs

    @property
    def last_step(self) -> int:
        return self.rounds * self.updates_per_round


@dataclass(frozen=True)
class Seen:
    """The groups and steps that were in the store at some moment of the run, so that they must be there at its end."""

    groups: frozenset[str] = frozenset()
    steps: frozenset[int] = frozenset()

    def joined(self, stored: Stored) -> "Seen":
        return Seen(
            self.groups | {row["group_id"] for row in stored.groups}, self.steps | {row["step"] for row in stored.steps}
        )


def count(stored: Stored, plan: Plan, seen: Seen) -> dict[str, int]:
    """Return the figures; each says how many groups, steps or files are wrong in one way."""
    groups = first_of_each(stored.groups, "group_id")
    steps = first_of_each(stored.steps, "step")
    trained = [group for row in steps.values() for group in row["group_ids"]]
    drawn = {(row["round"], row["prompt_id"]) for row in groups.values()}
    return {
        # A lost group may be known by its name, or only be missing in its round, or both.
        "groups_lost": max(len((seen.groups | set(trained)) - groups.keys()), _not_sampled(drawn, plan)),
        "groups_duplicated": (len(stored.groups) - len(groups)) + (len(groups) - len(drawn)),
        "groups_not_trained": len(groups.keys() - set(trained)),
        "groups_trained_twice": sum(times - 1 for times in Counter(trained).values()),
        "groups_incomplete": sum(row["outputs"] != plan.outputs for row in groups.values()),
        "groups_too_stale": sum(not _fresh(row, plan) for row in groups.values()),
        "steps_missing": len((set(range(1, plan.last_step + 1)) | seen.steps) - _training_steps(steps.values())),
        "steps_duplicated": len(stored.steps) - len(steps),
        "null_groups_trained": _null_groups(stored.scores, trained, plan),
        "damaged_files": len(stored.damaged),
    }


def first_of_each(rows: Iterable[Row], key: str) -> dict[object, Row]:
    """Return the rows that count: of several with one key the first in the order of commitment."""
    found: dict[object, Row] = {}
    for row in rows:
        found.setdefault(row[key], row)
    return found


def _not_sampled(drawn: set[tuple[int, str]], plan: Plan) -> int:
    there = Counter(round_ for round_, _ in drawn)
    return sum(max(0, plan.prompts_per_round - there[round_]) for round_ in range(plan.rounds))


def _fresh(group: Row, plan: Plan) -> bool:
    return 0 <= group["round"] - group["proposal_version"] <= plan.max_staleness


def _training_steps(steps: Iterable[Row]) -> set[int]:
    """A step that trained no group is no step."""
    return {row["step"] for row in steps if row["group_ids"] and dict(row["metrics"]).get("trained_prompts")}


def _null_groups(scores: Iterable[Row], trained: Iterable[str], plan: Plan) -> int:
    """Return how many trained groups have an output without a value that the objective needs."""
    values: dict[tuple[str, str], list[float | None]] = {}
    for row in scores:
        values.setdefault((row["group_id"], row["scorer"]), row["values"])
    return sum(
        any(not _complete(values.get((group, scorer), []), plan.outputs) for scorer in plan.scorers)
        for group in set(trained)
    )


def _complete(values: Sequence[float | None], outputs: int) -> bool:
    return len(values) == outputs and all(value is not None and math.isfinite(value) for value in values)
