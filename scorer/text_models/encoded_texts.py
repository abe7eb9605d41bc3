"""Annotation of groups by scorers that read encoded texts."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import pyarrow as pa

from brain_align.common.data.conversations import is_conversation
from brain_align.scorer.scorer import (
    Annotation,
    Group,
    NoValueError,
    Scorer,
    annotation_of_texts,
    finite_or_null,
    scores_of,
)
from brain_align.scorer.text_models.one_by_one import values_or_reasons

Encode = Callable[[Group], Sequence[list[int] | NoValueError]]
"""The token ids of a group's texts, in the order of `texts_of`; instead of ids, the reason why a text has no value."""

_NO_TOKENS = NoValueError("it has no tokens")


class ValuesOfTexts(Protocol):
    """Computes the values of encoded texts."""

    def of(self, texts: Sequence[list[int]]) -> list[float]:
        """Return the value of each text; texts have at least one token."""
        ...


def annotate_texts(
    scorer: Scorer, batch: pa.RecordBatch, encode: Encode, values: ValuesOfTexts, *, together: bool, plain: bool
) -> pa.RecordBatch:
    """Annotate the GROUPS rows of a batch with a scorer that reads encoded texts.

    With `together`, forward passes are filled with the texts of several groups; without it, a group's values do not
    depend on the rest of the batch, not even in their rounding. A `plain` scorer reads prompts as plain text, so that
    conversations get no values.
    """
    groups = batch.to_pylist()
    parts = [groups] if together else [[group] for group in groups]
    return scores_of(scorer, batch, [one for part in parts for one in _annotations(part, encode, values, plain=plain)])


def _annotations(groups: list[Group], encode: Encode, values: ValuesOfTexts, *, plain: bool) -> Iterator[Annotation]:
    encoded = [None if plain and is_conversation(group["prompt_text"]) else encode(group) for group in groups]
    read = [text for texts in encoded for text in texts or () if isinstance(text, list) and text]
    found = iter(values_or_reasons(values.of, read))
    for group, texts in zip(groups, encoded, strict=True):
        if texts is None:
            reason = "the prompt is a conversation, and this scorer, which reads plain text, would see its JSON"
            yield Annotation([None] * len(group["outputs"]), errors=(reason,))
        else:
            given = [text if isinstance(text, NoValueError) else next(found) if text else _NO_TOKENS for text in texts]
            yield annotation_of_texts(group, *finite_or_null(given, "text"))
