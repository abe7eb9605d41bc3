"""The recipe's scorers, one section class a kind, and how the rewards of several make one."""

import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from brain_align.common.config.section import Name, Section

Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class ScorerPool(Section):
    """What every scorer has: what it is for, and what its replicas get."""

    FILE: ClassVar[str]
    """The file of scorer/kinds that computes the values: each kind names its own."""

    kind: str = Field(description="what computes the values (docs/scorers.md)")
    use: Literal["training", "evaluation"] = Field("training", description="evaluation: only reported")
    replicas: int = Field(1, ge=1)
    gpus: float = Field(
        0, ge=0, description="GPUs a replica; over several, the layers of a tldr or hh reward model are spread"
    )
    cpus: float = Field(1, gt=0)
    threads: int = Field(1, ge=1)

    @field_validator("gpus")
    @classmethod
    def _several_gpus_are_whole_ones(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"gpus={gpus:g} is more than one GPU, and no whole number of them")
        return gpus


class GPTJRewardSection(ScorerPool):
    """A GPT-J reward model in CarperAI's (tldr) or Dahoas' (hh) format."""

    FILE = "gptj"
    kind: Literal["tldr", "hh"]
    path: str = Field(description="checkpoint directory or hub id")
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"


class ClassifierSection(ScorerPool):
    """A reward model that transformers loads as a sequence classifier with one label."""

    FILE = "classifier"
    kind: Literal["classifier"]
    path: str = Field(description="HF directory or hub id, of model and tokenizer")
    gpus: float = Field(0, ge=0, le=1, description="GPUs a replica, one at most")
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    chat_template: bool = Field(
        False, description="prompt and output become a user's and an assistant's turn in the tokenizer's chat template"
    )
    max_tokens: int = Field(2048, ge=1, description="longer texts are truncated")
    truncation: Literal["left", "right"] = Field("left", description="the side that loses tokens; left keeps outputs")


class FunctionSection(ScorerPool):
    """A Python function of prompts and outputs."""

    FILE = "function"
    kind: Literal["function"]
    function: str = Field(description="import path module:function")
    timeout: float = Field(60, gt=0, description="seconds that a call may take, which is for the outputs of one group")

    @property
    def seconds_a_group(self) -> float:
        """That a group may take: its outputs are one call, and its gold output is another."""
        return 2 * self.timeout


class RemotePool(ScorerPool):
    """What scorers behind HTTP have in common."""

    url: Url
    token_variable: Variable | None = Field(
        None, description="environment variable that holds the bearer token; a recipe never holds the token itself"
    )
    timeout: float = Field(60, gt=0, description="seconds that one request may take")
    attempts: int = Field(4, ge=1, description="tries of a request, before its values are null with the error")
    backoff: float = Field(1, ge=0, description="seconds before the second try; doubled before each further one")
    concurrency: int = Field(8, ge=1, description="requests of a replica under way at a time")


class EndpointSection(RemotePool):
    """An HTTP endpoint: POST {"prompts": […], "outputs": […]}, answered by {"scores": […]}."""

    FILE = "endpoint"
    kind: Literal["http"]
    batch_size: int = Field(32, ge=1, description="outputs a request; those of one request are of one prompt")


class JudgeSection(RemotePool):
    """A language model behind an OpenAI-compatible endpoint (such as vLLM's) that rates outputs."""

    FILE = "judge"
    kind: Literal["judge"]
    url: Url = Field(description="up to and with /v1")
    model: str = Field(description="name under which the endpoint serves it")
    instructions: str = Field(description="what the judge is asked, with {prompt} and {output} in it")
    pattern: str = Field(
        r"\[\[(-?\d+(?:\.\d+)?)\]\]", description="regular expression; group 1 of its last match is the rating"
    )
    lowest: float = Field(1, description="a rating below it is no valid answer")
    highest: float = Field(10, description="a rating above it is no valid answer")
    max_tokens: int = Field(512, ge=1, description="of an answer")

    @model_validator(mode="after")
    def _can_be_asked_and_understood(self) -> Self:
        missing = [name for name in ("{prompt}", "{output}") if name not in self.instructions]
        if missing:
            raise ValueError(f"instructions lack {' and '.join(missing)}: the judge would not see what it rates")
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise ValueError(f"pattern={self.pattern!r} is no regular expression ({error})") from None
        if groups < 1:
            raise ValueError(f"pattern={self.pattern!r} has no group; put the rating in parentheses")
        if self.lowest >= self.highest:
            raise ValueError(f"lowest={self.lowest:g} must be less than highest={self.highest:g}")
        return self


ScorerSection = Annotated[
    GPTJRewardSection | ClassifierSection | FunctionSection | EndpointSection | JudgeSection,
    Field(discriminator="kind"),
]
"""One scorer."""


class CombinationSection(Section):
    """One reward from the stored values of several scorers.

    It is applied when values are read: another combination needs no new scores. Where one of the values that it needs
    is null, so is the reward.
    """

    kind: Literal["weighted-sum", "min", "lexicographic"] = Field(
        description="weighted-sum, min: of weight × value. lexicographic: how many different outputs of the group are "
        "worse, where the first scorer decides, and each further one only between outputs that tie so far"
    )
    weights: dict[Name, float] = Field(
        min_length=2, description="a weight for each scorer, in order of priority; negative: less is better"
    )
    step: float = Field(
        0, ge=0, description="lexicographic: weight × value is compared in bins of this width; 0: as is"
    )

    @model_validator(mode="after")
    def _uses_what_it_names(self) -> Self:
        unused = [name for name, weight in self.weights.items() if weight == 0]
        if unused:
            raise ValueError(f"weights.{unused[0]}=0 has no effect; remove it, or give it a weight")
        if self.step and self.kind != "lexicographic":
            raise ValueError(f"step is for kind lexicographic, not for {self.kind}; remove it")
        return self
