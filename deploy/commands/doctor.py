"""Check a recipe before running it.

Checks prompts, policy, the files of scorers and the cluster's size, loads every scorer as a run does, and tries it on
prompts and references of the data; samplers and learner are not started. Reports all that is wrong; the exit status is
2 if anything is.

Examples:
  brain doctor my.yaml
  brain doctor my.yaml scorers.reward.path=models/reward
"""

import argparse
import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.training import PriorSection
from brain_align.common.errors import PipelineError, UserError
from brain_align.common.schemas import PRIOR
from brain_align.deploy.actors.pool import Pool
from brain_align.deploy.commands.arguments import add_overrides, add_recipe
from brain_align.deploy.commands.scoring import take_over_golden
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.run.directory import RunDirectory, has_begun
from brain_align.deploy.run.recipe_files import load_recipe
from brain_align.deploy.run.resolve import resolve, run_directory
from brain_align.deploy.run.start import reporter
from brain_align.deploy.services.scoring_pools import scoring_pools
from brain_align.deploy.services.trial import Trial, try_scorers

GROUP = "Train"

TryScorers = Callable[[Recipe, RunDirectory, pa.RecordBatch | None], Mapping[str, Trial]]
"""Loads the scorers of a recipe with their logs in a directory, and tries them on groups."""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_recipe(parser)
    add_overrides(parser)


def run(options: argparse.Namespace) -> int:
    """Check a recipe."""
    return 2 if examine(load_recipe(options.recipe, options.overrides), PlainConsole()) else 0


class Findings:
    """A printed list of what was checked, with the number of failures."""

    def __init__(self, console: PlainConsole) -> None:
        self.failed = 0
        self._console = console

    def say(self, subject: str, problem: str | None, note: str = "") -> None:
        """Print that a subject is in order, or each of its problems on a line."""
        problems = [] if problem is None else problem.splitlines()
        self.failed += len(problems)
        for text in [f"FAILED  {subject}: {one}" for one in problems] or [f"ok      {subject}{note}"]:
            self._console.print(text, soft_wrap=True)

    @contextmanager
    def check(self, subject: str) -> Iterator[None]:
        """Report the block's error as the problem of a subject."""
        try:
            yield
        except (UserError, PipelineError) as error:
            self.say(subject, str(error))
        else:
            self.say(subject, None)


def examine(recipe: Recipe, console: PlainConsole, try_them: TryScorers | None = None) -> int:
    """Check a recipe's inputs, the cluster's size, and every scorer; report all problems, and return their number.

    `try_them` loads the scorers of a recipe, by default on the cluster, and tries them on groups. Data that cannot be
    prepared is a UserError, as there is nothing to check without it.
    """
    from brain_align.deploy.run.preflight import check_inputs  # torch: not for a recipe that is refused

    findings = Findings(console)
    directory = run_directory(recipe)
    prepared = resolve(recipe, reporter(console), begun=directory if has_begun(directory) else None)
    resolved = prepared.recipe
    trial: pa.RecordBatch | None = None
    with findings.check("prompts, policy, and files of scorers"):
        inputs = check_inputs(resolved, directory)
        trial = inputs.trial()
        for note in inputs.notes:
            console.print(f"        {note}", soft_wrap=True)
    scratch = RunDirectory(Path(tempfile.mkdtemp(prefix="brain-doctor-")))
    with findings.check("the cluster has room for all services"):
        names = [PRIOR, *recipe.scorers]
        compared = take_over_golden(recipe, names, scratch)
        results = (try_them or _try_on_cluster)(resolved, scratch, trial)
        for name in names:
            does = "agrees with the run's golden values" if name in compared else "scores the self-test texts"
            if trial is not None and name != PRIOR:
                does = f"{does} and {trial.num_rows} prompts of the data"
            findings.say(f"scorer {name}", results[name].problem, f" loads and {does}: {_described(resolved, name)}")
            if results[name].note:
                console.print(f"        scorer {name} {results[name].note}", soft_wrap=True)
    if not findings.failed or not scratch.logs.exists():
        shutil.rmtree(scratch.root)  # else its logs say more
    return findings.failed


def _described(recipe: Recipe, name: str) -> str:
    """Describe a scorer and the use of its values."""
    from brain_align.scorer.catalogue import kind_of  # torch and transformers

    scorer = recipe.scorer(name)
    if isinstance(scorer, PriorSection):
        return f"log-probabilities of {recipe.policy.model}"
    rewards = [reward for reward, made in recipe.rewards.items() if name in made.weights]
    part = f", part of {', '.join(rewards)}" if rewards else ""
    return f"{scorer.kind}, {kind_of(scorer).source(scorer)}, for {scorer.use}{part}"


def _try_on_cluster(recipe: Recipe, logs: RunDirectory, groups: pa.RecordBatch | None) -> dict[str, Trial]:
    with scoring_pools(recipe, [PRIOR, *recipe.scorers], logs, room_for_run=True) as pools:

        async def started(pool: Pool) -> Trial:
            try:
                await pool.start()
            except (UserError, PipelineError) as error:
                return Trial(None, None, str(error))
            return Trial(None, None)

        async def tried() -> dict[str, Trial]:
            trials = await asyncio.gather(*(started(pool) for pool in pools.values()))
            found = dict(zip(pools, trials, strict=True))
            up = {name: pool for name, pool in pools.items() if found[name].problem is None}
            return found | await try_scorers(up, groups, recipe.timeouts.lease)

        return asyncio.run(tried())
