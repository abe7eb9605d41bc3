"""Annotation of groups by scorers that read encoded texts."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import pyarrow as pa

from brain_align.common.data.conversations import is_conversation
from brain_align.scorer.scorer import Annotation, Group, Scorer, annotation_of_texts, finite_or_null, scores_of

Encode = Callable[[Group], Sequence[list[int] | str]]
"""The token ids of a group's texts, in the order of `texts_of`; instead of ids, the reason why a text has no value."""


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
    found = iter(values.of([text for texts in encoded for text in texts or () if text and not isinstance(text, str)]))
    for group, texts in zip(groups, encoded, strict=True):
        if texts is None:
            reason = "the prompt is a conversation, and this scorer, which reads plain text, would see its JSON"
            yield Annotation([None] * len(group["outputs"]), errors=(reason,))
        else:
            reasons = {place: text for place, text in enumerate(texts) if isinstance(text, str)}
            given = [0.0 if place in reasons else next(found) if text else None for place, text in enumerate(texts)]
            kept, errors = finite_or_null(given, "text")
            kept = [None if place in reasons else value for place, value in enumerate(kept)]
            yield annotation_of_texts(group, kept, [*reasons.values(), *errors])
