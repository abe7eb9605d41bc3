"""From the settings of a recipe to a scorer that is ready."""

from pathlib import Path
from typing import Any

import torch

from common.config.recipe import PolicySection, PriorSection, ScorerSection
from common.schemas import PRIOR, PROPOSAL
from scorer.formats import FORMATS
from scorer.function import load_function
from scorer.prior import load_prior
from scorer.proposal import ProposalScorer
from scorer.reward_model import load_reward_model
from scorer.scorers import Scorer

MAX_TOKENS = 16384
"""Tokens of one forward pass, padding included: the most that a 6B model and a common GPU have room for."""


def build_scorer(
    name: str, settings: dict[str, Any], policy: dict[str, Any] | None = None, policies: Path | None = None
) -> Scorer:
    """Load a scorer.

    Args:
        name: of the scorer; `prior` and `proposal` are the log-probabilities of these.
        settings: the fields of its ScorerSection, or of the PriorSection.
        policy: the fields of the PolicySection: what the prior is; only `prior` and `proposal` need it.
        policies: where proposal versions are published; only `proposal` needs it.

    Raises:
        UserError: a model, tokenizer or function is missing or does not fit.
    """
    if name in (PRIOR, PROPOSAL):
        model, device = PolicySection.model_validate(policy), _device(PriorSection.model_validate(settings).gpus)
        if name == PRIOR:
            return load_prior(model, device, MAX_TOKENS)
        assert policies, "the proposals are published somewhere"
        return ProposalScorer(model, policies, device, MAX_TOKENS)
    section = ScorerSection.model_validate(settings)
    if section.kind == "function":
        assert section.function, "ScorerSection requires it"
        return load_function(name, section.function)
    assert section.path, "ScorerSection requires it"
    return load_reward_model(
        name, section.path, FORMATS[section.kind], section.dtype, _device(section.gpus), MAX_TOKENS
    )


def _device(gpus: float) -> str:
    # Ray leaves all GPUs visible to an actor that asked for none: only one that asked may use one.
    return "cuda" if gpus > 0 and torch.cuda.is_available() else "cpu"
