"""Rewards from an HTTP endpoint."""

import asyncio

import pyarrow as pa
from typing_extensions import override

from brain_align.common.config.scorers import EndpointSection
from brain_align.common.identity import digest
from brain_align.scorer.kinds.client import Client, RequestFailedError, annotate_by_asking, bearer_token
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


class EndpointScorer(Scorer):
    """The endpoint's value for every output of a group, and for its gold output.

    A request is `{"prompts": [...], "outputs": [...]}`, equally many, of one group; the answer is `{"scores": [...]}`,
    in which values may be null. The requests of all groups run concurrently.
    """

    def __init__(self, name: str, settings: EndpointSection) -> None:
        """Take the settings; no request is made.

        Raises:
            UserError: the token is not in the environment.
        """
        bearer_token(settings)
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
        values = [value for part, _ in answers for value in part]
        return annotation_of_texts(group, values, (error for _, part in answers for error in part))

    async def _ask(self, client: Client, prompt: str, outputs: list[str]) -> tuple[list[float | None], list[str]]:
        body = {"prompts": [prompt] * len(outputs), "outputs": outputs}
        try:
            answer = await client.post(self._settings.url, body)
        except RequestFailedError as error:
            return [None] * len(outputs), [str(error)]
        if "scores" not in answer:
            return [None] * len(outputs), [f"{self._settings.url} answered without `scores`, but {', '.join(answer)}"]
        return numbers_or_null(answer["scores"], len(outputs), self._settings.url, "output", nulls=True)


KIND = Kind(
    section=EndpointSection,
    load=lambda name, settings, _: EndpointScorer(name, settings),
    check=lambda _, settings: bearer_token(settings),
    tolerance=lambda _: ROUNDING["bfloat16"],  # the service may compute in 16 bits
    must_answer=True,
    reads_turns=lambda _: True,
    source=lambda settings: settings.url,
)
