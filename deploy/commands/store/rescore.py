"""Score stored groups with another scorer.

Scores the groups that lack a scorer's values, or have null ones, and commits the values to the store as they come:
running it again continues where it stopped. The scorer is one of the recipe's; a new one gets a name of its own.

Examples:
  brain store rescore runs/demo --scorer second scorers.second.kind=hh scorers.second.path=DIR
"""

import argparse
import asyncio
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.common.store.sample_store import SampleStore
from brain_align.common.uris import shown
from brain_align.deploy.actors.pool import Pool
from brain_align.deploy.commands.arguments import add_overrides
from brain_align.deploy.commands.scoring import Advance, progress_bar, resolved_for_scoring
from brain_align.deploy.commands.store.parts.terminal import add_store
from brain_align.deploy.conductor.group_scorer import scorers_at_work
from brain_align.deploy.console import say, terminal
from brain_align.deploy.run.recipe_files import load_recipe, overridden
from brain_align.deploy.run.resolve import run_directory
from brain_align.deploy.run.start import reporter
from brain_align.deploy.run.stored_source import Location, locate
from brain_align.deploy.services.scoring_pools import scoring_pools

GROUP = "Use"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_store(parser)
    parser.add_argument("--scorer", required=True, metavar="NAME", help="the scorer whose values are wanted")
    parser.add_argument("--recipe", help="the recipe that has the scorer; default: the run's own")
    add_overrides(parser)
    parser.set_defaults(resumes=True)


def run(options: argparse.Namespace) -> None:
    """Score the groups that lack values."""
    location = locate(options.place)
    if location.recipe is not None and not location.recipe.sampler.replicas:
        source = shown(location.recipe.store.uri or "")
        raise UserError(f"{location.name} holds no groups of its own: its run trains from {source}; name that store.")
    recipe = _recipe(location, options.recipe, options.overrides)
    name: str = options.scorer
    if name not in recipe.scorers:
        raise UserError(
            f"{name} does not name a scorer of the recipe, which has {', '.join(recipe.scorers)}; add "
            f"scorers.{name}.kind and its other settings."
        )
    console = terminal(stderr=True)
    store = SampleStore(location.uri, None)
    unscored, null = store.unscored(name), store.nulls(name)["group_id"].to_pylist()
    missing = [*unscored, *null]
    wanted = missing or list(store.group_ids)[:1]  # one again, to see that the values are this scorer's
    if wanted:
        directory = location.directory or run_directory(recipe)
        resolved = resolved_for_scoring(recipe, [name], directory, console)
        with progress_bar(name, console) as bar, scoring_pools(resolved, [name], directory) as pools:
            task = bar.add_task("", total=len(wanted))

            def advance(rows: int) -> None:
                bar.advance(task, rows)

            asyncio.run(score_missing(store, name, wanted, pools[name], resolved, advance, reporter(console)))
    _report(store, name, len(unscored), null)


def _recipe(location: Location, path: str | None, overrides: list[str]) -> Recipe:
    if path is not None:
        return load_recipe(path, overrides)
    if location.recipe is None:
        without = location.problem or f"{location.name} is a store without its run's recipe."
        raise UserError(f"{without} Name a recipe with --recipe{'' if location.problem else ', or the run directory'}.")
    return overridden(location.recipe.model_dump(mode="json"), overrides, f"the recipe of {location.name}")


async def score_missing(
    store: SampleStore,
    name: str,
    missing: list[str],
    pool: Pool,
    recipe: Recipe,
    advance: Advance,
    say: Callable[[str], object],
) -> None:
    """Score groups and commit their values as they come; those that keep failing get null values at the end.

    The scorer's pool is not yet started; `advance` counts groups that are committed, and `say` shows a sentence.

    Raises:
        UserError: the store has values of another scorer under this name; none was committed.
        PipelineError: the scorer failed for good, or for too many groups; what was committed stays, and what failed
            still lacks values.
    """
    room = asyncio.Semaphore(2 * recipe.scorers[name].replicas)
    rows = recipe.sampler.lease_prompts
    without: list[pa.RecordBatch] = []

    async def score(groups: pa.RecordBatch) -> None:
        try:
            scores = await scorer.score(groups)
        finally:
            room.release()
        if scorer.failed_groups:
            failed = pc.is_in(scores["group_id"], value_set=pa.array(list(scorer.failed_groups), pa.string()))
            without.append(scores.filter(failed))
            scores = scores.filter(pc.invert(failed))
        if scores.num_rows:
            store.append_scores(scores)
        advance(groups.num_rows)

    async with scorers_at_work({name: pool}, recipe, say, _trial(store, name, missing)) as scorers:
        scorer = scorers[name]
        async with asyncio.TaskGroup() as tasks:
            for batch in store.batches(group_ids=missing):
                for start in range(0, batch.num_rows, rows):
                    await room.acquire()
                    tasks.create_task(score(batch.slice(start, rows)))
    if scorer.failed_groups:
        store.append_scores(pa.concat_batches(without))


def _trial(store: SampleStore, name: str, missing: list[str]) -> pa.RecordBatch | None:
    """Return groups to try the scorer on: those that it has given null are tried only if there are no others."""
    null = set(store.nulls(name)["group_id"].to_pylist())
    others = [group for group in (*missing, *store.group_ids) if group not in null]
    return next(store.batches(group_ids=(others or missing)[:2]), None)


def _report(store: SampleStore, name: str, new: int, null: list[str]) -> None:
    facts = [one for one in store.scorers() if one.name == name]
    total, nulls = sum(one.groups for one in facts), sum(one.nulls for one in facts)
    without = f"; {nulls} outputs have no value (brain store show says why)" if nulls else ""
    filled = len(set(null).difference(store.nulls(name)["group_id"].to_pylist()))
    again = f"; {filled} of {len(null)} groups that had null values have all of them now" if null else ""
    say(f"{store.root}: {name} has values for {total} groups, {new} of them new{again}{without}")
