"""Training from an existing store alone: the checks before anything starts, and the plan of the run.

The source store is only read. Scores that the run adds, and its steps, are kept in the run's own store.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.config.origin import Origin
from brain_align.common.config.recipe import Recipe
from brain_align.common.data.text_groups import NOBODY
from brain_align.common.errors import Problems, UserError
from brain_align.common.identity import digest
from brain_align.common.store.overlay import OverlaidStore
from brain_align.common.store.sample_store import SampleStore
from brain_align.common.uris import shown
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.run_plan import RunPlan, training_scorers
from brain_align.deploy.run.stored_source import Source, open_source
from brain_align.deploy.schedule.quarantine import Quarantine
from brain_align.deploy.schedule.round_prompts import StoredGroups
from brain_align.deploy.schedule.rounds import RecordedSteps, Rounds, Schedule


@dataclass(frozen=True)
class StoredInputs:
    """The groups that a run without samplers trains on, in place of prompts."""

    source: Source
    index: pa.Table  # one row per group of the recipe's rounds
    steps: list[list[str]] | None  # the groups of each step where recorded steps are trained again
    notes: list[str]  # for the user
    template: str | None = None  # the chat template of the recipe
    encoded: Mapping[str, str | None] = field(default_factory=dict)  # what identifies token ids of texts that it trains
    delivery: None = None  # no versions get into samplers

    def facts(self) -> dict[str, str | None]:
        """Return what must be the same whenever the run is resumed."""
        trained = self.index.select(["round", "group_id"]).to_pydict() if self.steps is None else self.steps
        return {"prompts": None, "source": digest(self.source.store.run_id, trained), **self.encoded}

    def trial(self) -> pa.RecordBatch | None:
        """Return groups to try scorers on."""
        first = self.index["group_id"].slice(0, 2).to_pylist()
        return next(self.source.store.batches(group_ids=first), None)

    def work(self, recipe: Recipe, run_id: str, directory: RunDirectory) -> RunPlan:
        """Plan training alone, with the scorers that have values to add."""
        store = OverlaidStore(SampleStore(directory.store, run_id), self.source.store, recipe.algorithm.rounds)
        needed = training_scorers(recipe)
        schedule: Schedule
        if self.steps is None:
            schedule = Rounds(recipe.algorithm, StoredGroups(self.index), recipe.seed)
        else:
            schedule = RecordedSteps(self.steps, recipe.algorithm.updates_per_round)
        lacking = [name for name in needed if store.unscored(name)]
        null = [name for name in needed if recipe.may_recover(name) and store.own_nulls(name).num_rows]
        started = list(dict.fromkeys([*lacking, *null]))
        return RunPlan(
            store=store,
            schedule=schedule,
            training_scorers=needed,
            started_scorers=started,
            requests=None,
            evaluation=None,
            quarantine=Quarantine(directory.quarantine),
            trial=self.trial() if started else None,
        )


def read_stored_inputs(recipe: Recipe, directory: RunDirectory, problems: Problems | None = None) -> StoredInputs:
    """Open the source store and check that it has what the recipe trains on.

    Mistakes that concern groups that can be read go to `problems`, if it is given, for the caller to raise.
    A store that cannot be read, lacks what the recipe trains on, or is the run's own is refused.
    """
    assert recipe.store.uri, "a recipe without samplers has it"
    source = open_source(recipe.store.uri)
    named = {str(source.store.root)} | ({str(source.directory.root)} if source.directory else set())
    if named & {str(directory.root), str(directory.store)}:
        raise UserError(
            f"store.uri={shown(recipe.store.uri)} is the store of this run itself, which training from it must not "
            f"change; set another run.dir."
        )
    index = source.store.index()
    index = index.filter(pc.less(index["round"], recipe.algorithm.rounds))
    steps = _recorded_steps(source) if recipe.store.replay else None
    found = problems or Problems()
    notes = _notes(recipe, source, index, steps)
    if steps is None:
        with found.noted():
            _check_rounds(recipe, source, index)
    with found.noted():
        _check_samples(recipe, source, index)
    with found.noted():
        notes += _check_versions(recipe, source, index, steps)
    if problems is None:
        found.raise_any()
    return StoredInputs(source, index, steps, notes)


def lacking_scores(recipe: Recipe, inputs: StoredInputs) -> dict[str, int]:
    """Count the groups that lack values, for each scorer that training needs; without those that lack none."""
    ids = inputs.index["group_id"]
    lacking = {
        name: pc.sum(pc.is_in(ids, value_set=pa.array(inputs.source.store.unscored(name), pa.string()))).as_py() or 0
        for name in training_scorers(recipe)
    }
    return {name: count for name, count in lacking.items() if count}


def _recorded_steps(source: Source) -> list[list[str]]:
    """Return the groups of all recorded steps; refuse a store that lacks a step or one of its groups."""
    rows = source.store.steps()
    if not rows:
        raise UserError(f"The store {source.store.root} records no step; there is nothing to replay.")
    for number, row in enumerate(rows, start=1):
        if row["step"] != number:
            raise UserError(
                f"The store {source.store.root} lacks the record of step {number}, so that its steps cannot be "
                f"replayed; train from its rounds instead (store.replay=false)."
            )
    steps = [row["group_ids"] for row in rows]
    there = set(source.store.index()["group_id"].to_pylist())
    lost = next((name for step in steps for name in step if name not in there), None)
    if lost is not None:
        raise UserError(f"The store {source.store.root} lacks group {lost}, which its steps were trained on.")
    return steps


def _check_rounds(recipe: Recipe, source: Source, index: pa.Table) -> None:
    counts = {row["values"]: row["counts"] for row in pc.value_counts(index["round"].combine_chunks()).to_pylist()}
    wanted, batch = recipe.algorithm.rounds, recipe.algorithm.batch_prompts
    short = [round_ for round_ in range(wanted) if counts.get(round_, 0) < batch]
    if short:
        raise UserError(
            f"The store {source.store.root} has {counts.get(short[0], 0)} groups of round {short[0]} (rounds count "
            f"from 0), fewer than algorithm.batch_prompts={batch}; algorithm.rounds={wanted} asks for rounds 0 to "
            f"{wanted - 1}: lower it{'' if short[0] else ', or name another store'}."
        )


def _check_samples(recipe: Recipe, source: Source, index: pa.Table) -> None:
    """Refuse imported texts (`brain store import-pairs`) where the objective relies on how outputs were sampled."""
    refusal = recipe.objective.refusal_of_texts(f"the texts of {source.store.root}")
    if refusal is None:
        return
    first = index["group_id"].slice(0, 1).to_pylist()
    for batch in source.store.batches(group_ids=first, columns=["proposal_digest"]):
        if batch["proposal_digest"][0].as_py() == NOBODY:
            raise UserError(f"{refusal}.")


def _check_versions(recipe: Recipe, source: Source, index: pa.Table, steps: list[list[str]] | None) -> list[str]:
    """Refuse outputs of newer versions where the loss takes them for the prior's; return a note where it may."""
    name, origin = recipe.objective.name, recipe.objective.ORIGIN
    if not origin.is_prior:
        return []
    if steps is not None:
        trained = pa.array({group for step in steps for group in step}, pa.string())
        index = index.filter(pc.is_in(index["group_id"], value_set=trained))
    newer = index.filter(pc.greater(index["proposal_version"], 0))
    if not newer.num_rows:
        return []
    found = (
        f"{newer.num_rows} of the {index.num_rows} groups to train on in {source.store.root} were sampled from newer "
        f"versions than the prior, on whose outputs objective.name={name} is defined"
    )
    if origin is Origin.PRIOR_BY_NAME:
        return [f"note: {found}; its loss is the same on these, but it is not the method of that name"]
    rounds = pc.min(newer["round"]).as_py()
    replay = "store.replay=false and " if steps is not None else ""
    earlier = f"train on the rounds before them alone ({replay}algorithm.rounds={rounds}), or " if rounds else ""
    raise UserError(f"{found}; {earlier}name a store that was sampled with algorithm.proposal=fixed.")


def _notes(recipe: Recipe, source: Source, index: pa.Table, steps: list[list[str]] | None) -> list[str]:
    what = f"{len(steps)} recorded steps" if steps is not None else f"{recipe.algorithm.rounds} rounds"
    notes = [
        f"training on {what} of {source.store.root} ({index.num_rows} groups), which is only read; nothing is sampled, "
        f"so nothing is evaluated"
    ]
    names = set(training_scorers(recipe))
    digests: dict[str, set[str]] = {}
    for facts in source.store.scorers():
        digests.setdefault(facts.name, set()).add(facts.digest)
    notes += [
        f"note: the store's values of {name} come from {len(found)} different scorers of that name"
        for name, found in sorted(digests.items())
        if name in names and len(found) > 1
    ]
    if source.recipe is not None and source.recipe.policy.dtype != recipe.policy.dtype:
        notes.append(
            f"note: the store's log-probabilities were computed in {source.recipe.policy.dtype}, the policy is trained "
            f"in {recipe.policy.dtype}"
        )
    return notes
