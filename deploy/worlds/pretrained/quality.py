"""How good a reward model is on held-out pairs: accuracy, calibration, and what length alone would achieve."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_BINS = 10
_Z = 1.96  # of a 95 % interval


def quality(margins: Sequence[float], longer: Sequence[int], longer_in_training: Sequence[int]) -> dict[str, Any]:
    """Return the figures of a reward model on held-out pairs.

    Args:
        margins: r(chosen) − r(rejected) of each held-out pair.
        longer: tokens of chosen minus tokens of rejected, of each held-out pair.
        longer_in_training: the same of the pairs that the model was trained on, which decide whether the length-only
            baseline prefers the longer or the shorter output.

    Returns:
        accuracy: share of pairs with a positive margin, with the half-width of its 95 % interval; ties count as wrong.
        log_loss: mean −log σ(margin), in nats; a coin has 0.693.
        confidence: mean of σ(|margin|): the accuracy that the model expects of itself.
        calibration_error: expected calibration error, over ten bins of σ(|margin|) between 0.5 and 1.
        length_accuracy: the same share for length alone; pairs of equal length count half.
        above_length: difference of the two shares, with its paired 95 % half-width.
        spread: standard deviation of the margins over √2: that of the rewards of one prompt's outputs.
    """
    margin = np.asarray(margins, dtype=np.float64)
    right = (margin > 0).astype(np.float64)
    baseline, prefers = _length_alone(np.asarray(longer), np.asarray(longer_in_training))
    above = right - baseline
    expected = 1 / (1 + np.exp(-np.abs(margin)))
    return {
        "pairs": len(margin),
        "accuracy": _rounded(right.mean()),
        "accuracy_ci95": _rounded(_half_width(right)),
        "ties": _rounded(float((margin == 0).mean())),
        "log_loss": _rounded(np.logaddexp(0, -margin).mean()),
        "confidence": _rounded(expected.mean()),
        "calibration_error": _rounded(_calibration_error(expected, right)),
        "length_prefers": prefers,
        "length_accuracy": _rounded(baseline.mean()),
        "above_length": _rounded(above.mean()),
        "above_length_ci95": _rounded(_half_width(above)),
        "spread": _rounded(margin.std() / math.sqrt(2)),
    }


def agreement(margins: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Return how far two reward models agree: share of pairs that both order alike, and the margins' correlation."""
    one, other = np.asarray(margins), np.asarray(others)
    alike = (np.sign(one) == np.sign(other)).astype(np.float64)
    moves = one.std() > 0 and other.std() > 0
    return {
        "share": _rounded(alike.mean()),
        "share_ci95": _rounded(_half_width(alike)),
        "correlation": _rounded(np.corrcoef(one, other)[0, 1]) if moves else None,
    }


def shortcoming(name: str, figures: dict[str, Any]) -> str | None:
    """Return a sentence if a reward model is not shown to be better than a coin and than length; else None."""
    low = figures["accuracy"] - figures["accuracy_ci95"]
    accuracy = f"{100 * figures['accuracy']:.1f} ± {100 * figures['accuracy_ci95']:.1f} %"
    if low <= 0.5:
        return (
            f"THE {name.upper()} MODEL IS NO BETTER THAN A COIN on {figures['pairs']} held-out pairs (accuracy "
            f"{accuracy}): what is trained on it learns nothing of these preferences; use more pairs, or a larger base."
        )
    above, interval = figures["above_length"], figures["above_length_ci95"]
    if above - interval <= 0:
        return (
            f"THE {name.upper()} MODEL IS NOT SHOWN TO BE BETTER THAN LENGTH on {figures['pairs']} held-out pairs: "
            f"accuracy {accuracy}, against {100 * figures['length_accuracy']:.1f} % for always preferring the "
            f"{figures['length_prefers']} output (difference {100 * above:.1f} ± {100 * interval:.1f}); use more "
            f"pairs, or a larger base."
        )
    return None


def _length_alone(longer: np.ndarray, in_training: np.ndarray) -> tuple[np.ndarray, str]:
    """Return, for each held-out pair, 1, 0 or (equal lengths) 0.5, and which output length alone prefers.

    One feature without an intercept: of the logistic regression on it, only the sign matters.
    """
    sign = 1 if np.sign(in_training).sum() >= 0 else -1
    return (np.sign(sign * longer) + 1) / 2, "longer" if sign > 0 else "shorter"


def _calibration_error(expected: np.ndarray, right: np.ndarray) -> float:
    bins = np.minimum(((expected - 0.5) * 2 * _BINS).astype(int), _BINS - 1)
    gaps = [(bins == b).mean() * abs((expected[bins == b] - right[bins == b]).mean()) for b in np.unique(bins)]
    return float(sum(gaps))


def _half_width(values: np.ndarray) -> float:
    return float(_Z * values.std() / math.sqrt(len(values)))


def _rounded(value: float) -> float:
    return round(float(value), 4)
