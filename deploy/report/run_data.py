"""One run as its directory tells it: settings, state, learning curves, results, samples, warnings and time."""

import contextlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import DamagedPartError, UserError
from brain_align.common.inference import PairedDifference
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.monitor.status import OVER, Liveness, read_status, state_of
from brain_align.deploy.report.groups import round_columns, stored_groups
from brain_align.deploy.report.metrics import Columns, Metrics, read_metrics
from brain_align.deploy.report.outcomes import Outcomes, differences, read_outcomes
from brain_align.deploy.run.directory import RunDirectory, saved_recipe
from brain_align.deploy.run.stored_source import GroupLogprobs, open_source
from brain_align.deploy.run.summary import read_summary

GROUPS_SHOWN = 120
"""The most stored groups that a page shows of a run."""

_WARNINGS_SHOWN = 50
_WARNING = re.compile(r"^\S+ \S+ (?:INFO \S+: (?=WARNING: )|WARNING \S+: )", re.MULTILINE)


@dataclass(frozen=True)
class Evaluated:
    """Two versions on the same held-back prompts: the SFT model, which is version 0, and the result."""

    split: str
    version: int
    before: dict[str, Any]  # `Result` by field
    after: dict[str, Any]
    differences: dict[str, PairedDifference] = field(default_factory=dict)  # by field of `Result`
    outcomes: tuple[Outcomes, Outcomes] = ({}, {})  # before, after


@dataclass(frozen=True)
class RunData:
    """What the page tells of a run."""

    label: str  # what the page calls it
    place: Path
    recipe: Recipe  # as it was saved
    state: str  # one sentence
    finished: bool
    summary: dict[str, Any]  # empty until the run has ended
    metrics: Metrics
    rounds: Columns
    evaluated: Evaluated | None
    groups: list[dict[str, Any]]
    warnings: list[str]

    @property
    def shows_texts(self) -> bool:
        """Whether prompts and outputs may be shown: `evaluation.examples: 0` keeps them out of everything."""
        return self.recipe.evaluation.examples > 0


def read_run(root: Path, label: str, logprobs: GroupLogprobs | None = None) -> RunData:
    """Read a run, finished or not; `logprobs` see `stored_groups`.

    Raises:
        UserError: the directory holds no run that this version can read.
    """
    directory = RunDirectory(root)
    recipe = saved_recipe(directory)
    summary = read_summary(directory) or {}
    metrics = read_metrics(directory.metrics)
    state, warnings = _state(directory, finished=bool(summary))
    damaged: list[str] = []
    rounds, groups = _stored(root, recipe, logprobs, damaged)
    evaluated = _evaluated(directory, recipe, summary, metrics, damaged)
    return RunData(
        label=label,
        place=root,
        recipe=recipe,
        state=state,
        finished=bool(summary),
        summary=summary,
        metrics=metrics,
        rounds=rounds,
        evaluated=evaluated,
        groups=groups,
        warnings=list(dict.fromkeys([*_warnings_of(summary), *warnings, *damaged, *_logged(directory)])),
    )


def _state(directory: RunDirectory, *, finished: bool) -> tuple[str, list[str]]:
    """Return a sentence on how far the run is, and what it goes on without."""
    if finished:
        return "The run has finished.", []
    try:
        status = read_status(directory)
    except UserError:
        return "The run has not started yet: nothing was sampled.", []
    state, done = state_of(status, Liveness(directory)), f"step {status.progress.step} of {status.progress.steps}"
    left_out = [f"quarantined: {one.purpose} round {one.round} prompt {one.prompt_id}" for one in status.quarantined]
    if state == "failed":
        return f"The run failed at {done}: {status.failure}", left_out
    if state in OVER or state == "dead":
        return f"The run was interrupted at {done}; the same `brain run` command resumes it.", left_out
    return f"The run is still going: {done} when this page was written; it shows the figures so far.", left_out


def _warnings_of(summary: dict[str, Any]) -> list[str]:
    left_out = summary.get("left_out", [])
    return [*summary.get("warnings", []), *(f"quarantined: {item} (brain status says why)" for item in left_out)]


def _logged(directory: RunDirectory) -> list[str]:
    """Return the warnings in the run's own log, those of steps among them."""
    try:
        log = directory.log("brain").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = [log[match.end() :].partition("\n")[0] for match in _WARNING.finditer(log)]
    found = list(dict.fromkeys(found))
    more = len(found) - _WARNINGS_SHOWN
    return found if more <= 0 else [*found[:_WARNINGS_SHOWN], f"{more} more are in {directory.log('brain')}."]


def _stored(
    root: Path, recipe: Recipe, logprobs: GroupLogprobs | None, damaged: list[str]
) -> tuple[Columns, list[dict[str, Any]]]:
    """Return figures by round, and some groups, where there is a store and texts may be shown; note what is damaged."""
    try:
        source = open_source(str(root))
    except UserError:  # nothing was sampled yet, or its store is elsewhere and cannot be reached
        return {}, []
    groups: list[dict[str, Any]] = []
    with contextlib.suppress(DamagedPartError):  # noted with all others, also those found when the store was opened
        groups = stored_groups(source, GROUPS_SHOWN, logprobs) if recipe.evaluation.examples else []
    damaged += source.store.damaged
    return round_columns(source.store), groups


def _evaluated(
    directory: RunDirectory, recipe: Recipe, summary: dict[str, Any], metrics: Metrics, damaged: list[str]
) -> Evaluated | None:
    """Return before and after: of the summary, or, until there is one, of the newest version on validation prompts."""
    if "after" in summary:
        version = summary["best_version"]
        split, before, after = "test", summary["before"], summary["after"]
    else:
        version = max(metrics.validation.get("version", [0]))
        before, after = metrics.evaluated("validation", 0), metrics.evaluated("validation", version)
        if before is None or after is None or not version:
            return None
        split = "validation"
    found = Evaluated(split, version, before, after)
    try:
        store = SampleStore(directory.evaluation, None, read_only=True)
    except UserError:  # removed to save space, say
        return found
    try:
        outcomes = (read_outcomes(store, recipe, split, 0), read_outcomes(store, recipe, split, version))
    except DamagedPartError:
        return found
    finally:
        damaged += store.damaged
    return Evaluated(split, version, before, after, differences(*outcomes, recipe.evaluation.truth), outcomes)
