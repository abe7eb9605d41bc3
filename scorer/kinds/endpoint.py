"""Rewards from an HTTP endpoint."""

import asyncio
from operator import attrgetter

import pyarrow as pa
from typing_extensions import override

from brain_align.common.config.scorers import EndpointSection
from brain_align.common.identity import digest
from brain_align.common.uris import shown
from brain_align.scorer.kinds.client import Client, RequestFailedError, annotate_by_asking, check_service
from brain_align.scorer.scorer import (
    ROUNDING,
    Annotation,
    Group,
    Kind,
    Scorer,
    annotation_of_texts,
    numbers_or_null,
    texts_of,
)

_ERRORS, _AWAY = attrgetter("errors"), attrgetter("away")


class EndpointScorer(Scorer):
    """The endpoint's value for every output of a group, and for its gold output.

    A request is `{"prompts": [...], "outputs": [...]}`, equally many, of one group; the answer is `{"scores": [...]}`,
    in which values may be null. The requests of all groups run concurrently.
    """

    def __init__(self, name: str, settings: EndpointSection) -> None:
        """Take the settings; no request is made.

        Raises:
            UserError: the token is not in the environment, or is none; the address is not valid.
        """
        check_service(settings)
        self.name = name
        self.digest = digest("http", settings.url)
        self._settings = settings

    @override
    def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return annotate_by_asking(self, batch, self._settings, self._score_group)

    async def _score_group(self, client: Client, group: Group) -> Annotation:
        texts, size = texts_of(group), self._settings.batch_size
        parts = [texts[start : start + size] for start in range(0, len(texts), size)]
        answers = await asyncio.gather(*(self._ask(client, group["prompt_text"], part) for part in parts))
        values = [value for answer in answers for value in answer.values]
        errors, away = ([one for answer in answers for one in reasons(answer)] for reasons in (_ERRORS, _AWAY))
        return annotation_of_texts(group, values, errors, away)

    async def _ask(self, client: Client, prompt: str, outputs: list[str]) -> Annotation:
        """Return the values of some outputs of a group."""
        nothing: list[float | None] = [None] * len(outputs)
        url = shown(self._settings.url)
        try:
            answer = await client.post(self._settings.url, {"prompts": [prompt] * len(outputs), "outputs": outputs})
        except RequestFailedError as error:
            reasons = (str(error),)
            return Annotation(nothing, away=reasons) if error.away else Annotation(nothing, errors=reasons)
        if "scores" not in answer:
            return Annotation(
                nothing, errors=(f"{url} answered without `scores`, but {', '.join(answer) or 'nothing':.120}",)
            )
        values, errors = numbers_or_null(answer["scores"], len(outputs), url, "output", nulls=True)
        return Annotation(values, errors=tuple(errors))


KIND = Kind(
    section=EndpointSection,
    load=lambda name, settings, _: EndpointScorer(name, settings),
    check=lambda _, settings: check_service(settings),
    tolerance=lambda _: ROUNDING["bfloat16"],  # the service may compute in 16 bits
    must_answer=True,
    reads_turns=lambda _: True,
    reading=lambda _: None,
    source=lambda settings: settings.url,
)
