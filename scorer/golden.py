"""The golden self-test: a scorer still gives a few fixed texts the values that it gave them when its run began.

What changes a reward model silently (another revision, library, device or precision) shows here, before it shows in a
run whose rewards are no longer those that it began with.
"""

import json
from pathlib import Path

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from brain_align.common.config.policy import PolicySection
from brain_align.common.config.scorers import (
    ClassifierSection,
    EndpointSection,
    FunctionSection,
    GPTJRewardSection,
    JudgeSection,
    RemotePool,
    ScorerPool,
)
from brain_align.common.data.text_groups import text_group
from brain_align.common.durable import write_file
from brain_align.common.errors import UserError, first_line
from brain_align.common.schemas import GROUPS, batch_from_rows
from brain_align.scorer.scorer import Scorer

_PROMPT = "SUBREDDIT: r/cats\nTITLE: The mat\nPOST: My cat sat on the mat all day. What does it want?\nTL;DR:"
_OUTPUTS = (
    " My cat sat on the mat all day.",
    "",
    " Où est le chat ? 猫はどこ",
    " The dog did it, and nobody asked about dogs.",
)
_PROMPT_TOKENS = (3, 1, 4, 1, 5)  # for scorers of token ids, in any vocabulary
_TOKENS = ((9, 2, 6), (5,), (3, 5, 8, 9, 7), ())
_EXACT = 1e-6
_IN_32_BITS = 1e-3
_IN_16_BITS = 0.05


class _Golden(BaseModel):
    """What is kept: the scorer's name and digest when the values were made, and the value of each text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scorer: str
    digest: str
    values: list[float | None]


def check_golden(scorer: Scorer, section: ScorerPool | PolicySection, path: Path) -> None:
    """Score the golden texts, and compare with what is kept in `path`; on first use keep them there.

    Args:
        scorer: ready.
        section: its section of the recipe; for the prior, the policy's.
        path: of the file.

    Raises:
        UserError: a value has moved, with both numbers; the file is damaged; or a remote scorer cannot be reached.
    """
    row = scorer.score(_golden_groups()).to_pylist()[0]
    values = row["values"]
    if isinstance(section, RemotePool) and values.count(None) == len(values):
        raise UserError(f"scorers.{scorer.name} gives no values: {row['error']}")
    if (tolerance := _tolerance(section)) is None:
        return
    if not path.exists():
        kept = _Golden(scorer=scorer.name, digest=scorer.digest, values=values)
        write_file(path, kept.model_dump_json(indent=1))
        return
    _compare(scorer, values, _read(path), path, tolerance)


def _compare(scorer: Scorer, values: list[float | None], kept: _Golden, path: Path, tolerance: float) -> None:
    for output, before, now in zip(_OUTPUTS, kept.values, values, strict=True):
        if before is None and now is None:
            continue
        if before is None or now is None or not abs(before - now) <= tolerance * (1 + abs(before)):
            files = "its files are the same" if kept.digest == scorer.digest else "its files have changed"
            raise UserError(
                f"The scorer {scorer.name!r} has drifted: the golden text {output!r} had the value {before}, now it "
                f"has {now} (rounding explains {tolerance:g} of it); {files}. Bring back what it was, or, if it "
                f"is meant to change, start another run; the values are kept in {path}."
            )


def _read(path: Path) -> _Golden:
    try:
        kept = _Golden.model_validate(json.loads(path.read_text()))
    except (OSError, ValueError, ValidationError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); restore or delete it.") from None
    if len(kept.values) != len(_OUTPUTS):
        raise UserError(f"{path} holds {len(kept.values)} values for {len(_OUTPUTS)} texts; restore or delete it.")
    return kept


def _tolerance(section: ScorerPool | PolicySection) -> float | None:
    """How far a value may move, relative to one more than itself; None: it is not repeatable."""
    match section:
        case JudgeSection():
            return None
        case EndpointSection():
            return _IN_16_BITS  # whatever computes there
        case FunctionSection():
            return _EXACT
        case GPTJRewardSection() | ClassifierSection() | PolicySection():
            return _IN_32_BITS if section.dtype == "float32" else _IN_16_BITS
    raise AssertionError(f"no tolerance for {type(section).__name__}")


def _golden_groups() -> pa.RecordBatch:
    row = text_group("golden", _PROMPT, _OUTPUTS, prompt_token_ids=_PROMPT_TOKENS, output_token_ids=_TOKENS)
    return batch_from_rows(GROUPS, [row])
