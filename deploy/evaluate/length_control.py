"""The length-controlled win rate of AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475); pure functions on arrays."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RIDGE = 0.01
"""Weight of the squared coefficients: they stay finite where every prompt is won, or length decides every prompt."""

_STEPS, _LONGEST_STEP, _SMALL = 100, 4.0, 1e-9


@dataclass(frozen=True)
class LengthControlled:
    """The win rate that is expected if both outputs had the same length, in percent, with its 95 % interval."""

    rate: float
    low: float
    high: float
    length_effect: float  # φ: by how much the log-odds of a win rise with a longer output; its range is −φ to φ


def length_controlled(preferences: Floats, differences: Floats) -> LengthControlled:
    """Fit a logistic regression of preferences on the difference in length, and read it where that is zero.

    The model is log-odds(win) = θ + φ·tanh(d / std(d)), the paper's terms of model and length. Its third term, the
    difficulty of a prompt, needs many models' preferences on the same prompts, and is left out. The interval is
    θ ± 1.96 standard errors, as probabilities.

    Args:
        preferences: 1 for a win, 0.5 for a tie, 0 for a loss.  # [prompts]
        differences: our length minus theirs, in characters.  # [prompts]

    Example:
        60 wins of 100 prompts with outputs of equal length: 60 %, as without control.
    """
    spread = differences.std()
    covariate = np.tanh(differences / spread) if spread else np.zeros_like(differences)
    design = np.stack([np.ones_like(covariate), covariate], axis=1)  # [prompts, 2]
    coefficients = np.zeros(2)
    for _ in range(_STEPS):
        gradient, curvature = _derivatives(design, preferences, coefficients)
        step = np.linalg.solve(curvature, gradient)
        step *= min(1.0, _LONGEST_STEP / max(np.abs(step).max(), _SMALL))
        coefficients = coefficients + step
        if np.abs(step).max() < _SMALL:
            break
    _, curvature = _derivatives(design, preferences, coefficients)
    error = float(np.sqrt(np.linalg.inv(curvature)[0, 0]))
    theta, phi = map(float, coefficients)
    low, rate, high = (100 * _probability(theta + shift * error) for shift in (-1.96, 0.0, 1.96))
    return LengthControlled(float(rate), float(low), float(high), phi)


def _derivatives(design: Floats, preferences: Floats, coefficients: Floats) -> tuple[Floats, Floats]:
    """Return gradient [2] and negative second derivative [2, 2] of the penalised log-likelihood."""
    chance = _probability(design @ coefficients)
    gradient = design.T @ (preferences - chance) - RIDGE * coefficients
    curvature = (design * (chance * (1 - chance))[:, None]).T @ design + RIDGE * np.eye(2)
    return gradient, curvature


def _probability(log_odds: npt.ArrayLike) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(np.asarray(log_odds, np.float64) / 2)))  # without overflow
