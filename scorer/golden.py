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
from brain_align.common.errors import UserError, first_line, unreadable
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
    """The file's content: the scorer's name and digest when the values were computed, and the value of each text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scorer: str
    digest: str
    values: list[float | None]


def check_golden(scorer: Scorer, section: ScorerPool | PolicySection, path: Path) -> None:
    """Score the golden texts and compare the values with those in `path`; the first time, write them there.

    The section is the scorer's in the recipe; for the prior, the policy's.

    Raises:
        UserError: a value has moved (with both numbers), the file is damaged, or a remote scorer cannot be reached.
    """
    row = scorer.score(_golden_groups()).to_pylist()[0]
    values = row["values"]
    if isinstance(section, ScorerPool):
        kind = kind_of(section)
        if kind.must_answer and values.count(None) == len(values):
            raise UserError(f"scorers.{scorer.name} returns no values: {row['error']}")
        tolerance = kind.tolerance(section)
    else:
        tolerance = ROUNDING[section.dtype]
    if tolerance is None:
        return
    if path.exists():
        _compare(scorer, values, _read(path), path, tolerance)
    else:
        kept = _Golden(scorer=scorer.name, digest=scorer.digest, values=values)
        write_file(path, kept.model_dump_json(indent=1))


def _compare(scorer: Scorer, values: list[float | None], kept: _Golden, path: Path, tolerance: float) -> None:
    for output, before, now in zip(_OUTPUTS, kept.values, values, strict=True):
        if before is None and now is None:
            continue
        if before is None or now is None or not abs(before - now) <= tolerance * (1 + abs(before)):
            files = "its files are the same" if kept.digest == scorer.digest else "its files have changed"
            raise UserError(
                f"The scorer {scorer.name!r} has drifted: the golden text {output!r} had the value {before}, now it "
                f"has {now} (rounding explains {tolerance:g} of it); {files}. Restore the scorer, or, if the "
                f"change is intended, start another run; the values are in {path}."
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
