"""The kind of each scorer, and scorers made from the settings of a recipe."""

import importlib
from math import ceil
from pathlib import Path
from typing import Any

from brain_align.common.config.inputs import PolicySection
from brain_align.common.config.scorers import ScorerPool
from brain_align.common.config.training import PriorSection
from brain_align.common.schemas import PRIOR
from brain_align.scorer import kinds
from brain_align.scorer.scorer import Kind, Resources, Scorer

MAX_TOKENS = 16384
"""Tokens per forward pass, padding included: as many as a 6B model and a common GPU have room for."""


def kind_of(section: ScorerPool) -> Kind[Any]:
    """Return the kind of a scorer: the `KIND` of the file that its section names.

    A new kind is a section class (common/config/scorers.py) and a file of scorer/kinds. Only the kinds that a recipe
    has are imported: a function needs no torch.
    """
    return importlib.import_module(f"{kinds.__name__}.{section.FILE}").KIND


def check_scorer(name: str, section: ScorerPool) -> None:
    """Raise UserError for a scorer whose function, files, tokenizer or token are missing or do not fit."""
    kind_of(section).check(name, section)


def build_scorer(
    section: ScorerPool | PriorSection,
    name: str,
    policy: PolicySection,
    policies: Path,
    *,
    together: bool = False,
    window: int | None = None,
) -> Scorer:
    """Load a scorer; `prior` and `proposal` are the names of the scorers of these log-probabilities.

    Only these read the policy, and only `proposal` reads `policies`, the directory of published versions. For
    `together` see `annotate_texts`, for `window`, which counts for the policy, `load_causal_lm`.

    Raises:
        UserError: a model, tokenizer or function is missing or does not fit.
    """
    resources = Resources(_devices(section.gpus), MAX_TOKENS, together)
    if isinstance(section, ScorerPool):
        return kind_of(section).load(name, section, resources)
    if name == PRIOR:
        from brain_align.scorer.kinds.prior import load_prior

        return load_prior(policy, resources.devices[0], MAX_TOKENS, window)
    from brain_align.scorer.kinds.proposal import ProposalScorer

    return ProposalScorer(policy, policies, resources.devices[0], MAX_TOKENS, window)


def _devices(gpus: float) -> list[str]:
    if gpus:  # Ray leaves all GPUs visible to an actor that asked for none: only one that asked may use any
        import torch

        if torch.cuda.is_available():
            return [f"cuda:{index}" for index in range(ceil(gpus))]
    return ["cpu"]
