"""The golden self-test: a few fixed texts must keep the values that a scorer gave them when its run began.

Silent changes to a reward model (another revision, library, device or precision) are found here, before they change the
rewards of a run.
"""

import json
from pathlib import Path

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from brain_align.common.config.inputs import PolicySection
from brain_align.common.config.scorers import ScorerPool
from brain_align.common.data.text_groups import text_group
from brain_align.common.durable import write_file
from brain_align.common.errors import ScorerAwayError, UserError, first_line, unreadable
from brain_align.common.schemas import GROUPS, batch_from_rows
from brain_align.scorer.catalogue import kind_of
from brain_align.scorer.scorer import ROUNDING, Scorer

_PROMPT = "SUBREDDIT: r/cats\nTITLE: The mat\nPOST: My cat sat on the mat all day. What does it want?\nTL;DR:"
_OUTPUTS = (
    " My cat sat on the mat all day.",
    "",
    " Où est le chat ? 猫はどこ",
    " The dog did it, and nobody asked about dogs.",
)
_PROMPT_TOKENS = (3, 1, 4, 1, 5)  # for scorers of token ids, in any vocabulary
_TOKENS = ((9, 2, 6), (5,), (3, 5, 8, 9, 7), ())


class _Golden(BaseModel):
    """The file's content: the scorer's name, its digest when values were last added, and the value of each text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scorer: str
    digest: str
    values: list[float | None]


def check_golden(scorer: Scorer, section: ScorerPool | PolicySection, path: Path) -> None:
    """Score the golden texts and compare the values with those in `path`; the first time, write them there.

    The section is the scorer's in the recipe; for the prior, the policy's.

    A scorer that gives a golden text no value may be right, unless it has given it one before: there is nothing to
    compare then, and null is never kept. A later start adds what is missing.

    Raises:
        UserError: a value has moved (with both numbers), or the file is damaged.
        ScorerAwayError: there is no value where there must be one, or was one: the service cannot be reached, say.
    """
    if isinstance(section, ScorerPool):
        kind = kind_of(section)
        must_answer, tolerance = kind.must_answer, kind.tolerance(section)
    else:
        must_answer, tolerance = False, ROUNDING[section.dtype]
    kept = _read(path) if tolerance is not None and path.exists() else None
    values, reason = _values(scorer)
    if values.count(None) == len(values) and (must_answer or kept is not None):
        raise ScorerAwayError(f"scorers.{scorer.name} returns no values: {reason}")
    if tolerance is None:
        return
    before = [None] * len(_OUTPUTS) if kept is None else kept.values
    if kept is not None:
        _compare(scorer, values, reason, kept, path, tolerance)
    known = [now if former is None else former for former, now in zip(before, values, strict=True)]
    if known != before:
        write_file(path, _Golden(scorer=scorer.name, digest=scorer.digest, values=known).model_dump_json(indent=1))


def _values(scorer: Scorer) -> tuple[list[float | None], str]:
    """Return the value of each golden text, None where there is none, and why."""
    try:
        row = scorer.score(_golden_groups()).to_pylist()[0]
    except ScorerAwayError as away:
        if away.rows is None:
            return [None] * len(_OUTPUTS), str(away)
        row = away.rows.to_pylist()[0]
    return row["values"], row["error"] or "they are null"


def _compare(
    scorer: Scorer, values: list[float | None], reason: str, kept: _Golden, path: Path, tolerance: float
) -> None:
    for output, before, now in zip(_OUTPUTS, kept.values, values, strict=True):
        if before is None or now is None or abs(before - now) <= tolerance * (1 + abs(before)):
            continue
        files = "its files are the same" if kept.digest == scorer.digest else "its files have changed"
        raise UserError(
            f"The scorer {scorer.name!r} has drifted: the golden text {output!r} had the value {before}, now it has "
            f"{now} (rounding explains {tolerance:g} of it); {files}. Restore the scorer, or, if the change is "
            f"intended, start another run; the values are in {path}."
        )
    for output, before, now in zip(_OUTPUTS, kept.values, values, strict=True):
        if before is not None and now is None:
            raise ScorerAwayError(
                f"scorers.{scorer.name} returns no value for the golden text {output!r}, which had {before}: {reason}"
            )


def _read(path: Path) -> _Golden:
    try:
        kept = _Golden.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        gone = f"{path} is gone; restore it, or start another run."
        raise UserError(f"The golden values: {unreadable(path, error, path.parent, gone)}") from None
    except (ValueError, ValidationError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); restore or delete it.") from None
    if len(kept.values) != len(_OUTPUTS):
        raise UserError(f"{path} holds {len(kept.values)} values for {len(_OUTPUTS)} texts; restore or delete it.")
    return kept


def _golden_groups() -> pa.RecordBatch:
    row = text_group("golden", _PROMPT, _OUTPUTS, prompt_token_ids=_PROMPT_TOKENS, output_token_ids=_TOKENS)
    return batch_from_rows(GROUPS, [row])
