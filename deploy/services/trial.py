"""A trial of scorers on real texts before anything is sampled: a scorer that cannot score them would score nothing."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa

from brain_align.common.errors import PipelineError, ScorerAwayError, UserError
from brain_align.common.schemas import PRIOR, PROPOSAL
from brain_align.deploy.actors.pool import Pool

_LONGEST_QUOTE = 80


@dataclass(frozen=True)
class Trial:
    """The outcome of the trial of one scorer."""

    groups: pa.RecordBatch | None  # those that it could score; None if there are none, like the next
    scores: pa.RecordBatch | None
    problem: str | None = None  # why the scorer is of no use
    note: str | None = None  # what the user should know of one that is


async def try_scorers(pools: Mapping[str, Pool], groups: pa.RecordBatch | None, timeout: float) -> dict[str, Trial]:
    """Have scorers, whose pools are started, score groups; `timeout` is that of a call. No groups: nothing is tried."""
    if groups is None or not groups.num_rows:
        return {}
    names = [name for name in pools if name not in (PRIOR, PROPOSAL)]  # these read token ids, and are tried by `ready`
    tried = await asyncio.gather(*(_try(pools[name], groups, timeout) for name in names))
    return dict(zip(names, tried, strict=True))


def raise_problems(trials: Mapping[str, Trial]) -> None:
    """Raise a UserError with all problems, if there are any."""
    problems = [f"The scorer {name!r} {trial.problem}" for name, trial in trials.items() if trial.problem]
    if problems:
        raise UserError("\n".join(problems))


def notes_of(trials: Mapping[str, Trial]) -> Iterable[str]:
    """Return what the user should know of scorers that are of use."""
    return [f"NOTE: the scorer {name!r} {trial.note}" for name, trial in trials.items() if trial.note]


async def _try(pool: Pool, groups: pa.RecordBatch, timeout: float) -> Trial:
    found = await _ask(pool, groups, timeout)
    if isinstance(found, Exception) and groups.num_rows > 1:  # one group may be why
        alone = [await _ask(pool, groups.slice(place, 1), timeout) for place in range(groups.num_rows)]
        scored = [place for place, one in enumerate(alone) if isinstance(one, pa.RecordBatch)]
        if scored:
            groups = groups.take(pa.array(scored))
            found = pa.concat_batches([one for one in alone if isinstance(one, pa.RecordBatch)])
    if isinstance(found, Exception):
        return Trial(None, None, f"cannot score texts of the data: {found}")
    values = [value for row in found["values"].to_pylist() for value in row]
    if not (missing := values.count(None)):
        return Trial(groups, found)
    place = next(place for place, row in enumerate(found["values"].to_pylist()) if None in row)
    reason = f"{found['error'][place].as_py() or 'it gave null'} (tried on the prompt {_quoted(groups, place)})"
    if missing == len(values):
        return Trial(None, None, f"gives no values: {reason}. Mend it, then run the same command again.")
    return Trial(
        groups, found, note=f"has no value for {missing} of {len(values)} outputs that it was tried on: {reason}."
    )


async def _ask(pool: Pool, groups: pa.RecordBatch, timeout: float) -> pa.RecordBatch | Exception:
    """Return SCORES rows, or the error because of which there are none."""
    try:
        async with pool.slot() as slot:
            scores: pa.RecordBatch = await slot.call("score", groups, timeout=timeout)
    except ScorerAwayError as error:
        return error if error.rows is None else error.rows
    except (PipelineError, UserError) as error:
        pool.raise_failure()
        return error
    return scores


def _quoted(groups: pa.RecordBatch, place: int) -> str:
    text = groups["prompt_text"][place].as_py()
    return repr(text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "…")
