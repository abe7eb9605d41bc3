"""From the settings of a recipe to a scorer that is ready."""

from functools import partial
from math import ceil
from pathlib import Path

import torch

from brain_align.common.config.policy import PolicySection
from brain_align.common.config.scorers import (
    ClassifierSection,
    EndpointSection,
    FunctionSection,
    GPTJRewardSection,
    JudgeSection,
    ScorerPool,
)
from brain_align.common.config.training import PriorSection
from brain_align.common.schemas import PRIOR
from brain_align.scorer.kinds.classifier import load_classifier
from brain_align.scorer.kinds.endpoint import load_endpoint
from brain_align.scorer.kinds.function import load_function
from brain_align.scorer.kinds.gptj import load_reward_model
from brain_align.scorer.kinds.judge import load_judge
from brain_align.scorer.kinds.prior import load_prior
from brain_align.scorer.kinds.proposal import ProposalScorer
from brain_align.scorer.scorer import Scorer
from brain_align.scorer.text_models.formats import FORMATS

MAX_TOKENS = 16384
"""Tokens of one forward pass, padding included: the most that a 6B model and a common GPU have room for."""


def build_scorer(
    section: ScorerPool | PriorSection, name: str, policy: PolicySection, policies: Path, *, together: bool = False
) -> Scorer:
    """Load a scorer.

    Args:
        section: of the recipe.
        name: of the scorer; `prior` and `proposal` are the log-probabilities of these.
        policy: what prior and proposals are made of; no other scorer needs it.
        policies: where proposal versions are published; only `proposal` needs it.
        together: whether a reward model computes the groups of a call together, see `annotate_texts`.

    Raises:
        UserError: a model, tokenizer or function is missing or does not fit.
    """
    match section:
        case PriorSection():
            load = load_prior if name == PRIOR else partial(ProposalScorer, policies=policies)
            return load(policy=policy, device=_device(section.gpus), max_tokens=MAX_TOKENS)
        case FunctionSection():
            return load_function(name, section)
        case EndpointSection():
            return load_endpoint(name, section)
        case JudgeSection():
            return load_judge(name, section)
        case ClassifierSection():
            return load_classifier(name, section, _device(section.gpus), MAX_TOKENS, together=together)
        case GPTJRewardSection():
            format, devices = FORMATS[section.kind], _devices(section.gpus)
            return load_reward_model(name, section.path, format, section.dtype, devices, MAX_TOKENS, together=together)
    raise AssertionError(f"no scorer is made of a {type(section).__name__}")


def _device(gpus: float) -> str:
    return _devices(min(gpus, 1))[0]


def _devices(gpus: float) -> list[str]:
    # Ray leaves all GPUs visible to an actor that asked for none: only one that asked may use any.
    if not gpus or not torch.cuda.is_available():
        return ["cpu"]
    return [f"cuda:{index}" for index in range(ceil(gpus))]
