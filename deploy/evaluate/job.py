"""An evaluation, prepared: what is sampled from, on which prompts, and what the outputs are compared with."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from brain_align.common.config.recipe import Recipe
from brain_align.common.durable import write_file
from brain_align.common.errors import UserError
from brain_align.common.requests import Prompt
from brain_align.common.schemas import PRIOR
from brain_align.deploy.evaluate.candidates import Candidate, Named, candidate, parse, refuse_repeated
from brain_align.deploy.evaluate.output import EvaluationDirectory
from brain_align.deploy.evaluate.plan import Series, make_series
from brain_align.deploy.evaluate.prompts import (
    Encoded,
    also_in_training_data,
    chosen,
    encode,
    refuse_trained_on,
    select,
)
from brain_align.deploy.evaluate.report import Opponent
from brain_align.deploy.run.directory import RunDirectory, rendered_at
from brain_align.deploy.run.prompt_data import named as data_name
from brain_align.deploy.schedule.evaluation import Split


@dataclass(frozen=True)
class Options:
    """What is to be evaluated, and how."""

    whats: Sequence[Named]
    recipe: str | None = None  # default: that of the first WHAT that is a run
    overrides: Sequence[str] = ()
    split: Split = "test"
    prompts: int | None = None  # default: as many as the recipe's evaluation has
    greedy: bool = False  # also greedy
    output: Path | None = None  # default: evaluations/NAME


@dataclass(frozen=True)
class Job:
    """An evaluation, prepared."""

    recipe: Recipe
    split: Split
    prompts: list[Prompt]
    series: list[Series]
    opponent: Opponent
    notes: list[str]  # for the user, and for the document


@dataclass(frozen=True)
class Preparation:
    """Prepares an evaluation; raises a UserError for whatever cannot be used."""

    recipe: Recipe  # the evaluation's: prompts, sampling, scorers and prior
    options: Options
    directory: EvaluationDirectory
    report: Callable[[str], object]

    def job(self) -> Job:
        """Find the candidates and their prompts."""
        from brain_align.scorer.catalogue import check_scorer  # torch and transformers

        for name, scorer in self.recipe.scorers.items():
            check_scorer(name, scorer)
        candidates = [self._candidate(what) for what in self.options.whats]
        candidates, opponent, notes = self._with_opponent(candidates)
        refuse_repeated(candidates)
        encoded = self._encoded(candidates, self._moment(candidates), notes)
        ids = self._ids(encoded[1:], notes)
        prompts = select(encoded[1].prompts, ids)
        notes += self._trained_on(candidates, prompts)
        series = self._series(candidates, encoded, ids, notes)
        return Job(self.recipe, self.options.split, prompts, series, opponent, notes)

    @property
    def _data(self) -> str:
        return data_name(getattr(self.recipe.data, self.options.split))

    def _candidate(self, what: Named) -> Candidate:
        if what.kind != "run":
            self.report(f"{what.what}: reading its weights …")
        return candidate(what, self.recipe, self.directory.published)

    def _with_opponent(self, candidates: list[Candidate]) -> tuple[list[Candidate], Opponent, list[str]]:
        """Return what outputs are compared with: the reference column, else the prior, which is sampled from, too."""
        column = self.recipe.data.gold_column
        if column is not None:
            return candidates, Opponent(f"column {column!r}", is_column=True), []
        prior = self._prior(candidates)
        note = (
            f"{self._data} has no reference outputs (data.gold_column=null): each output is compared with that of the "
            f"prior, {prior.label}"
        )
        return [*candidates, *([] if prior in candidates else [prior])], Opponent(prior.label, is_column=False), [note]

    def _prior(self, candidates: Sequence[Candidate]) -> Candidate:
        """Return version 0 of the first run; without a run, the recipe's model with its SFT adapter, if it has one."""
        run = next((one for one in candidates if one.run is not None), None)
        if run is not None:
            prior = self._candidate(parse(f"{run.place}@0"))
            label = f"{run.label.rpartition('@')[0]}@0"
            return next((one for one in candidates if one.label == label), replace(prior, label=label))
        prior = self._candidate(parse(self.recipe.policy.sft_adapter or self.recipe.policy.model))
        alike = (one for one in candidates if one.published.path == prior.published.path)
        return next(alike, replace(prior, label="prior"))

    def _moment(self, candidates: Sequence[Candidate]) -> datetime:
        """Return the time that chat templates write: that of the first run, else of this evaluation's first start."""
        of_runs = next((found for one in candidates if one.run and (found := rendered_at(one.run.facts))), None)
        moment = of_runs or rendered_at(self.directory.facts) or datetime.now().replace(microsecond=0)
        write_file(self.directory.facts, json.dumps({"rendered_at": moment.isoformat()}))
        return moment

    def _encoded(self, candidates: Sequence[Candidate], moment: datetime, notes: list[str]) -> list[Encoded]:
        """Return the prompts as the prior reads them, and then as each candidate does."""
        known: dict[tuple[str, str | None], Encoded] = {}
        found = []
        for recipe in (self.recipe, *(one.recipe for one in candidates)):
            key = recipe.policy.model, recipe.policy.tokenizer
            if key not in known:
                read: list[str] = []
                known[key] = encode(recipe, self.options.split, moment, read)
                notes += [one for one in read if one not in notes]
            found.append(known[key])
        return found

    def _ids(self, encoded: Sequence[Encoded], notes: list[str]) -> list[str]:
        """Return the ids of the prompts: the first ones that all candidates can read."""
        sizes = self.recipe.evaluation
        default = sizes.test_prompts if self.options.split == "test" else sizes.validation_prompts
        count = default if self.options.prompts is None else self.options.prompts
        ids = chosen(encoded[0].prompts, [one.prompts for one in encoded[1:]], count)
        if not ids:
            raise UserError(f"{self._data}: no prompt is short enough for all WHATs; raise data.max_prompt_tokens.")
        if len(ids) < count:
            notes.append(f"{self.options.split}: only {len(ids)} prompts, {count} were asked for")
        return ids

    def _trained_on(self, candidates: Sequence[Candidate], prompts: Sequence[Prompt]) -> list[str]:
        """Refuse prompts that a run was trained on; return a warning where only the recipe's data can tell."""
        runs = [one.run.root for one in candidates if one.run is not None]
        if self.options.recipe is not None and RunDirectory(Path(self.options.recipe)).config.is_file():
            runs.append(Path(self.options.recipe).absolute())
        for run in dict.fromkeys(runs):
            refuse_trained_on(run, prompts, self.recipe, self.options.split)
        if runs:
            return []
        warning = also_in_training_data(self.recipe, prompts)
        return [warning] if warning else []

    def _series(
        self, candidates: Sequence[Candidate], encoded: Sequence[Encoded], ids: Sequence[str], notes: list[str]
    ) -> list[Series]:
        recipe, split = self.recipe, self.options.split
        prior, *each = encoded
        series = []
        for one, texts in zip(candidates, each, strict=True):
            shares = texts.tokens == prior.tokens
            if not shares:
                notes.append(f"note: {one.label} has other tokens than the prior: its KL to the prior is not computed")
            scorers = [*([PRIOR] if shares else []), *recipe.scorers]
            prompts = select(texts.prompts, ids)
            for greedy in (False, True) if self.options.greedy else (False,):
                series.append(make_series(one, prompts, recipe, split, scorers, greedy=greedy))
        return series
