"""From the settings of a recipe to a scorer that is ready."""

from typing import Any

import torch
from pydantic import TypeAdapter

from common.config.recipe import PolicySection, PriorSection
from common.config.scorers import (
    ClassifierSection,
    EndpointSection,
    FunctionSection,
    GPTJRewardSection,
    JudgeSection,
    ScorerSection,
)
from common.schemas import PRIOR
from scorer.classifier import load_classifier
from scorer.endpoint import load_endpoint
from scorer.formats import FORMATS
from scorer.function import load_function
from scorer.judge import load_judge
from scorer.prior import load_prior
from scorer.reward_model import load_reward_model
from scorer.scorers import Scorer

_SECTION: TypeAdapter[ScorerSection] = TypeAdapter(ScorerSection)

MAX_TOKENS = 16384
"""Tokens of one forward pass, padding included: the most that a 6B model and a common GPU have room for."""


def build_scorer(name: str, settings: dict[str, Any], policy: dict[str, Any] | None = None) -> Scorer:
    """Load a scorer.

    Args:
        name: of the scorer; `prior` is the prior's log-probabilities.
        settings: the fields of its ScorerSection, or of the PriorSection.
        policy: the fields of the PolicySection: what the prior is; no other scorer needs it.

    Raises:
        UserError: a model, tokenizer or function is missing or does not fit.
    """
    if name == PRIOR:
        prior, model = PriorSection.model_validate(settings), PolicySection.model_validate(policy)
        return load_prior(model.model, model.dtype, _device(prior.gpus), MAX_TOKENS)
    section = _SECTION.validate_python(settings)
    match section:
        case FunctionSection():
            return load_function(name, section.function)
        case EndpointSection():
            return load_endpoint(name, section)
        case JudgeSection():
            return load_judge(name, section)
        case ClassifierSection():
            return load_classifier(name, section, _device(section.gpus), MAX_TOKENS)
        case GPTJRewardSection():
            device = _device(section.gpus)
            return load_reward_model(name, section.path, FORMATS[section.kind], section.dtype, device, MAX_TOKENS)


def _device(gpus: float) -> str:
    # Ray leaves all GPUs visible to an actor that asked for none: only one that asked may use one.
    return "cuda" if gpus > 0 and torch.cuda.is_available() else "cpu"
