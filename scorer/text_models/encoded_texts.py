"""Scorers that read encoded texts: which texts they read, and which go through the model together."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import pyarrow as pa

from brain_align.common.data.conversations import is_conversation
from brain_align.scorer.scorer import Annotation, Group, Scorer, annotation_of_texts, finite_or_null, scores_of

Encode = Callable[[Group], list[list[int]]]
"""The token ids of a group's texts, in the order of `texts_of`; a text may have none."""


class ValuesOfTexts(Protocol):
    """What computes the values of encoded texts."""

    def of(self, texts: Sequence[list[int]]) -> list[float]:
        """The value of each text; texts have at least one token."""
        ...


def annotate_texts(
    scorer: Scorer, batch: pa.RecordBatch, encode: Encode, values: ValuesOfTexts, *, together: bool, plain: bool
) -> pa.RecordBatch:
    """As `annotate`, for a scorer that reads encoded texts.

    Args:
        scorer: whose values they are.
        batch: GROUPS rows.
        encode: a group's texts.
        values: of encoded texts.
        together: whether the texts of all groups are computed together, as far as a forward pass has room; if not, a
            group's values depend not even in their rounding on what else is in the batch.
        plain: whether the scorer reads prompts as plain text, so that it has no values for conversations.
    """
    groups = batch.to_pylist()
    parts = [groups] if together else [[group] for group in groups]
    return scores_of(scorer, batch, [one for part in parts for one in _annotations(part, encode, values, plain=plain)])


def _annotations(groups: list[Group], encode: Encode, values: ValuesOfTexts, *, plain: bool) -> Iterator[Annotation]:
    encoded = [None if plain and is_conversation(group["prompt_text"]) else encode(group) for group in groups]
    found = iter(values.of([text for texts in encoded for text in texts or () if text]))
    for group, texts in zip(groups, encoded, strict=True):
        if texts is None:
            reason = "the prompt is a conversation, of which this scorer, which reads plain text, would see the JSON"
            yield Annotation([None] * len(group["outputs"]), errors=(reason,))
        else:
            kept, errors = finite_or_null([next(found) if text else None for text in texts], "text")
            yield annotation_of_texts(group, kept, errors)
