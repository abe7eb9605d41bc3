"""Training from an existing store alone: what is checked before anything starts, and the work that is then to do.

The source store is only read. What the run adds (scores that were missing, its steps) stands in the run's own store.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.config.objective_sections import Origin
from brain_align.common.config.recipe import Recipe
from brain_align.common.data.text_groups import NOBODY
from brain_align.common.errors import UserError
from brain_align.common.identity import digest
from brain_align.common.store.files.backends import shown
from brain_align.common.store.overlay import OverlaidStore
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.run_plan import RunPlan, training_scorers
from brain_align.deploy.run.stored_source import Source, open_source
from brain_align.deploy.schedule.quarantine import Quarantine
from brain_align.deploy.schedule.round_prompts import StoredGroups
from brain_align.deploy.schedule.rounds import RecordedSteps, Rounds, Schedule


@dataclass(frozen=True)
class StoredInputs:
    """The groups that a run without samplers trains on, in place of prompts.

    Attributes:
        source: the store that has them.
        index: one row a group, those of the rounds that the recipe has.
        steps: the groups of each step, where recorded ones are trained again; else None.
        notes: what the user should know.
    """

    source: Source
    index: pa.Table
    steps: list[list[str]] | None
    notes: list[str]

    def facts(self) -> dict[str, str | None]:
        """What must be the same whenever the run is resumed."""
        trained = self.index.select(["round", "group_id"]).to_pydict() if self.steps is None else self.steps
        return {"prompts": None, "source": digest(self.source.store.run_id, trained)}

    def work(self, recipe: Recipe, run_id: str, directory: RunDirectory) -> RunPlan:
        """Training alone, with the scorers that have anything to add."""
        store = OverlaidStore(SampleStore(directory.store, run_id), self.source.store, recipe.algorithm.rounds)
        needed = training_scorers(recipe)
        schedule: Schedule
        if self.steps is None:
            schedule = Rounds(recipe.algorithm, StoredGroups(self.index), recipe.seed)
        else:
            schedule = RecordedSteps(self.steps, recipe.algorithm.updates_per_round)
        return RunPlan(
            store=store,
            schedule=schedule,
            training_scorers=needed,
            started_scorers=[name for name in needed if store.unscored(name)],
            requests=None,
            evaluation=None,
            quarantine=Quarantine(directory.quarantine),
        )


def read_stored_inputs(recipe: Recipe, directory: RunDirectory) -> StoredInputs:
    """Open the source store and check that it has what the recipe trains on.

    Raises:
        UserError: it has not, or is the run's own.
    """
    assert recipe.store.uri, "a recipe without samplers has it"
    source = open_source(recipe.store.uri)
    named = {str(source.store.root)} | ({str(source.directory.root)} if source.directory else set())
    if named & {str(directory.root), str(directory.store)}:
        raise UserError(
            f"store.uri={shown(recipe.store.uri)} is the store of this run itself, which is not to change by "
            f"training from it; set another run.dir."
        )
    index = source.store.index()
    index = index.filter(pc.less(index["round"], recipe.algorithm.rounds))
    steps = _recorded_steps(source) if recipe.store.replay else None
    if steps is None:
        _check_rounds(recipe, source, index)
    _check_samples(recipe, source, index)
    notes = [*_notes(recipe, source, index, steps), *_check_versions(recipe, source, index, steps)]
    return StoredInputs(source, index, steps, notes)


def lacking_scores(recipe: Recipe, inputs: StoredInputs) -> dict[str, int]:
    """How many of the groups lack the values of a scorer that training needs, by scorer; only where any does."""
    ids = inputs.index["group_id"]
    lacking = {
        name: pc.sum(pc.is_in(ids, value_set=pa.array(inputs.source.store.unscored(name), pa.string()))).as_py() or 0
        for name in training_scorers(recipe)
    }
    return {name: count for name, count in lacking.items() if count}


def _recorded_steps(source: Source) -> list[list[str]]:
    """The groups of all recorded steps, which must be there without a gap."""
    rows = source.store.steps()
    if not rows:
        raise UserError(f"The store {source.store.root} records no step, so that there is nothing to replay.")
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
    """Refuse texts that nobody sampled (`brain store import-pairs`) where the objective relies on who did."""
    refusal = recipe.objective.refusal_of_texts(f"the texts of {source.store.root}")
    if refusal is None:
        return
    first = index["group_id"].slice(0, 1).to_pylist()
    for batch in source.store.batches(group_ids=first, columns=["proposal_digest"]):
        if batch["proposal_digest"][0].as_py() == NOBODY:
            raise UserError(f"{refusal}.")


def _check_versions(recipe: Recipe, source: Source, index: pa.Table, steps: list[list[str]] | None) -> list[str]:
    """Refuse outputs of newer versions where the loss takes them for the prior's; returns what else to say of them."""
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
    return notes + list(_notes_on_policy(recipe, source))


def _notes_on_policy(recipe: Recipe, source: Source) -> Iterable[str]:
    if source.recipe is not None and source.recipe.policy.dtype != recipe.policy.dtype:
        yield (
            f"note: the store's log-probabilities were computed in {source.recipe.policy.dtype}, the policy is trained "
            f"in {recipe.policy.dtype}"
        )
