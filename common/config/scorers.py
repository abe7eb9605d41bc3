"""The recipe's scorers, one section class per kind, and combinations of several scorers into one reward."""

import re
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from brain_align.common.config.section import Name, Section

Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+")]
Dtype = Literal["float32", "bfloat16", "float16"]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class ScorerPool(Section):
    """A scorer: its values per output are stored under its name. These settings belong to every kind."""

    FILE: ClassVar[str]
    """The file of scorer/kinds that computes the values: each kind names its own."""
    NULLS_MAY_RECOVER: ClassVar[bool] = False
    """True if a text that got null may get a value when it is asked for again: services and programs may recover."""

    kind: str = Field(description="what computes the values (docs/scorers.md)")
    use: Literal["training", "evaluation"] = Field(
        "training", description="training: values may be the reward; evaluation: values are only reported"
    )
    replicas: int = Field(1, ge=1, description="number of replicas, each a process of its own")
    gpus: float = Field(
        0, ge=0, description="GPUs per replica; the layers of a tldr or hh model are spread over several"
    )
    cpus: float = Field(1, gt=0, description="CPU cores that Ray reserves per replica")
    threads: int = Field(1, ge=1, description="CPU threads per replica")

    @property
    def seconds_per_group(self) -> float | None:
        """The most time that one group may take, if the kind has a limit per group."""
        return None

    @override
    def problems(self) -> Iterator[str]:
        if self.gpus > 1 and self.gpus != int(self.gpus):
            yield f"gpus={self.gpus:g} is more than one GPU, but not a whole number of them"


class GPTJRewardSection(ScorerPool):
    """A GPT-J reward model in CarperAI's (tldr) or Dahoas' (hh) format.

    Example:
        scorers: {reward: {kind: hh, path: "Dahoas/gptj-rm-static", gpus: 1}}
    """

    FILE = "gptj"
    kind: Literal["tldr", "hh"]
    path: str = Field(
        description="directory or hub id of the checkpoint, followed by `@revision` unless the newest is meant"
    )
    dtype: Dtype = Field("bfloat16", description="type of the model's weights")


class ClassifierSection(ScorerPool):
    """A reward model that transformers loads as a sequence classifier with a single label.

    Example:
        scorers: {reward: {kind: classifier, path: org/reward-model, gpus: 1, chat_template: true}}
    """

    FILE = "classifier"
    kind: Literal["classifier"]
    path: str = Field(
        description="directory or hub id of model and tokenizer, followed by `@revision` unless the newest is meant"
    )
    gpus: float = Field(0, ge=0, le=1, description="GPUs per replica, at most one")
    dtype: Dtype = Field("bfloat16", description="type of the model's weights")
    chat_template: bool = Field(
        False, description="prompt and output become turns of user and assistant in the tokenizer's chat template"
    )
    max_tokens: int = Field(
        2048,
        ge=1,
        description="texts are truncated to this many tokens; by default to fewer where the model reads fewer",
    )
    truncation: Literal["left", "right"] = Field("left", description="the side that is cut off; left keeps outputs")


class FunctionSection(ScorerPool):
    """A Python function f(prompts, outputs) that returns a list of numbers.

    Example:
        scorers: {reward: {kind: function, function: "my_rewards:score", timeout: 10}}
    """

    FILE = "function"
    NULLS_MAY_RECOVER = True
    kind: Literal["function"]
    function: str = Field(description="import path, module:function; the current directory is searched, too")
    timeout: float = Field(60, gt=0, description="seconds per call, which has the outputs of one group")

    @property
    @override
    def seconds_per_group(self) -> float:
        return 2 * self.timeout  # its outputs are one call, and its gold output is another


class RemotePool(ScorerPool):
    """Scorers behind HTTP."""

    NULLS_MAY_RECOVER = True
    url: Url = Field(description="where requests are posted to")
    token_variable: Variable | None = Field(
        None, description="environment variable with the bearer token; recipes never contain the token itself"
    )
    timeout: float = Field(60, gt=0, description="seconds per request")
    attempts: int = Field(4, ge=1, description="attempts per request, before the service counts as away")
    backoff: float = Field(
        1,
        ge=0,
        description="seconds before the second attempt; doubled before each further one; a service's "
        "own `Retry-After` is observed, up to `timeout`",
    )
    concurrency: int = Field(8, ge=1, description="concurrent requests per replica")


class EndpointSection(RemotePool):
    """An HTTP endpoint: POST {"prompts": […], "outputs": […]}, answered by {"scores": […]}.

    Example:
        scorers: {reward: {kind: http, url: "http://localhost:8000/score"}}
    """

    FILE = "endpoint"
    kind: Literal["http"]
    batch_size: int = Field(32, ge=1, description="outputs per request, all of one prompt")


class JudgeSection(RemotePool):
    """A language model behind an OpenAI-compatible endpoint (such as vLLM's) that rates outputs.

    Example:
        scorers:
          reward:
            kind: judge
            url: http://localhost:8000/v1
            model: org/judge
            instructions: "Rate this answer from 1 to 10, as [[7]]. Question: {prompt} Answer: {output}"
    """

    FILE = "judge"
    kind: Literal["judge"]
    url: Url = Field(description="address of the API, up to and including /v1")
    model: str = Field(description="the model's name at the endpoint")
    instructions: str = Field(description="the judge's message, with {prompt} and {output} in it")
    pattern: str = Field(
        r"\[\[(-?\d+(?:\.\d+)?)\]\]",
        description="regular expression; group 1 of its last match in an answer is the rating",
    )
    quote: bool = Field(
        False,
        description="mark prompt and output as data, between tags that they cannot contain, so that instructions in "
        "an output are not followed",
    )
    lowest: float = Field(1, description="lowest valid rating")
    highest: float = Field(10, description="highest valid rating")
    max_tokens: int = Field(512, ge=1, description="most tokens per answer")

    @override
    def problems(self) -> Iterator[str]:
        yield from super().problems()
        missing = [name for name in ("{prompt}", "{output}") if name not in self.instructions]
        if missing:
            yield f"instructions lack {' and '.join(missing)}: the judge would not see what it rates"
        try:
            if re.compile(self.pattern).groups < 1:
                yield f"pattern={self.pattern!r} has no group; put the rating in parentheses"
        except re.error as error:
            yield f"pattern={self.pattern!r} is not a regular expression ({error})"
        if self.lowest >= self.highest:
            yield f"lowest={self.lowest:g} must be less than highest={self.highest:g}"


ScorerSection = Annotated[
    GPTJRewardSection | ClassifierSection | FunctionSection | EndpointSection | JudgeSection,
    Field(discriminator="kind"),
]
"""One scorer. `scorer/kinds` has a file for each of these kinds."""


class CombinationSection(Section):
    """One reward from the stored values of several scorers.

    It is applied when values are read, so that another combination needs no new scores. The reward is null if one of
    its values is.

    Example:
        rewards: {both: {kind: weighted-sum, weights: {helpful: 1, length: -0.1}}}
    """

    kind: Literal["weighted-sum", "min", "lexicographic"] = Field(
        description="weighted-sum, min: of weight × value. lexicographic: the number of different outputs of the group "
        "that are worse; the first scorer decides, and each further one only between outputs that tie so far"
    )
    weights: dict[Name, float] = Field(
        min_length=2, description="a weight per scorer, in order of priority; negative: less is better"
    )
    step: float = Field(
        0, ge=0, description="lexicographic: weight × value is compared in bins of this width; 0: exactly"
    )

    @override
    def problems(self) -> Iterator[str]:
        for name, weight in self.weights.items():
            if weight == 0:
                yield f"weights.{name}=0 has no effect; remove it, or give it a weight"
        if self.step and self.kind != "lexicographic":
            yield f"step is for kind lexicographic, not for {self.kind}; remove it"
