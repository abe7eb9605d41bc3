"""Rewards from a language model that rates outputs."""

import asyncio
import re

import pyarrow as pa
from typing_extensions import override

from brain_align.common.config.scorers import JudgeSection
from brain_align.common.identity import digest
from brain_align.scorer.kinds.client import Client, RequestFailedError, annotate_by_asking, bearer_token
from brain_align.scorer.scorer import Annotation, Group, Kind, Scorer, annotation_of_texts, texts_of

_PLACE = re.compile(r"\{(prompt|output)\}")
_LONGEST_QUOTE = 80

Rating = float | str
"""A rating, or the reason why there is none."""


class JudgeScorer(Scorer):
    """A judge's rating of every output of a group, and of its gold output: one greedy request each.

    An answer without a rating in range gives null, and the row's error counts them.
    """

    def __init__(self, name: str, settings: JudgeSection) -> None:
        """Take the settings; no request is made.

        Raises:
            UserError: the token is not in the environment.
        """
        bearer_token(settings)
        asked = settings.model_dump(
            include={"url", "model", "instructions", "pattern", "lowest", "highest", "max_tokens"}
        )
        self.name = name
        self.digest = digest("judge", asked)
        self._settings = settings

    @override
    def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return annotate_by_asking(self, batch, self._settings, self._score_group)

    async def _score_group(self, client: Client, group: Group) -> Annotation:
        ratings = await asyncio.gather(*(self._rate(client, group["prompt_text"], text) for text in texts_of(group)))
        values = [None if isinstance(rating, str) else rating for rating in ratings]
        reasons = [rating for rating in ratings if isinstance(rating, str)]
        errors = (f"{len(reasons)} of {len(ratings)} outputs have no rating: {reasons[0]}",) if reasons else ()
        return annotation_of_texts(group, values, errors)

    async def _rate(self, client: Client, prompt: str, output: str) -> Rating:
        texts = {"prompt": prompt, "output": output}
        body = {
            "model": self._settings.model,
            # One pass: a text may itself contain "{output}".
            "messages": [
                {"role": "user", "content": _PLACE.sub(lambda place: texts[place[1]], self._settings.instructions)}
            ],
            "temperature": 0,
            "max_tokens": self._settings.max_tokens,
        }
        try:
            answer = await client.post(f"{self._settings.url.rstrip('/')}/chat/completions", body)
            return self._rating(answer["choices"][0]["message"]["content"])
        except RequestFailedError as error:
            return str(error)
        except (KeyError, IndexError, TypeError):
            return f"{self._settings.url} gave no chat completion"

    def _rating(self, text: str) -> Rating:
        found = list(re.finditer(self._settings.pattern, text))
        if not found:
            return f"the judge's answer has none: {text[-_LONGEST_QUOTE:]!r}"
        try:
            rating = float(found[-1][1])
        except (TypeError, ValueError):
            return f"the judge's rating {found[-1][1]!r} is not a number"
        if not self._settings.lowest <= rating <= self._settings.highest:
            return f"the judge's rating {rating:g} is not from {self._settings.lowest:g} to {self._settings.highest:g}"
        return rating


KIND = Kind(
    section=JudgeSection,
    load=lambda name, settings, _: JudgeScorer(name, settings),
    check=lambda _, settings: bearer_token(settings),
    tolerance=lambda _: None,
    must_answer=True,
    reads_turns=lambda _: True,
    source=lambda settings: settings.url,
)
