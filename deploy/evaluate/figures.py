"""The figures of an evaluation, from outputs and their scores; pure functions.

All outputs of one WHAT in one way of decoding are `Outputs`; the references, or a model's outputs in their place, are
`Opponent`. A value that is missing is NaN, and its prompt is left out of the figures that need it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from brain_align.common.inference import clustered_mean, mcnemar, paired_bootstrap
from brain_align.common.statistics import win_rate
from brain_align.deploy.evaluate.length_control import length_controlled
from brain_align.deploy.evaluate.text_figures import distinct, repetition

Floats = npt.NDArray[np.float64]

DISTINCT = (1, 2, 3)
"""The n of the distinct-n that are reported."""


@dataclass(frozen=True)
class Texts:
    """Texts for the same prompts, one each, with their values under each measure."""

    texts: Sequence[str | None]  # None where there is none
    values: Mapping[str, Floats]  # by measure: a scorer, or a combination of several.  # [prompts]

    @property
    def lengths(self) -> Floats:
        """The number of characters.  # [prompts]."""
        return np.array([np.nan if text is None else len(text) for text in self.texts])


@dataclass(frozen=True)
class Outputs(Texts):
    """The outputs of one WHAT."""

    tokens: Floats  # [prompts]
    finished: Floats  # 1 where EOS ended the output, 0 where the limit on its length did.  # [prompts]
    log_ratios: Floats  # log q(y|x) − log p(y|x), nats, of sampled outputs; NaN for greedy ones.  # [prompts]


def own_figures(outputs: Outputs) -> dict[str, Any]:
    """Return what is said of outputs alone: rewards, KL, length, share finished, variety and repetition."""
    kl = _interval(outputs.log_ratios)
    return {
        "prompts": sum(text is not None for text in outputs.texts),
        "failed": sum(text is None for text in outputs.texts),
        "mean": {name: _interval(values) for name, values in outputs.values.items()},
        "kl_to_prior": kl,
        "tokens": _interval(outputs.tokens),
        "finished": _interval(100 * outputs.finished),
        **text_figures(outputs),
    }


def text_figures(texts: Texts) -> dict[str, Any]:
    """Return length, variety and repetition of texts."""
    known = [text for text in texts.texts if text is not None]
    repeated = [share for text in known if (share := repetition(text)) is not None]
    return {
        "characters": _interval(texts.lengths),
        **{f"distinct_{n}": distinct(known, n) for n in DISTINCT},
        "repetition_4": _interval(100 * np.array(repeated)),
    }


def duel(ours: Texts, theirs: Texts, measure: str) -> dict[str, Any] | None:
    """Compare two texts for each prompt under a measure; None if no prompt has both values.

    Returns:
        wins, ties, losses: percent of the prompts on which ours is better, equal, or worse.
        win_rate: the wins, with the half-width of their 95 % interval (the paper's).
        sign_p: exact two-sided p-value that wins and losses are equally frequent; ties say nothing.
        difference: mean of ours − theirs over the same prompts, with a bootstrap's 95 % interval and p-value.
        length_controlled: the win rate at equal lengths, ties counted as half a win.
    """
    first, second = ours.values[measure], theirs.values[measure]
    known = ~np.isnan(first) & ~np.isnan(second)
    if not known.any():
        return None
    first, second = first[known], second[known]
    better, worse = first > second, first < second
    wins = win_rate(first.tolist(), second.tolist())
    difference = paired_bootstrap((first - second)[None, :])
    preferences = 0.5 + 0.5 * better - 0.5 * worse
    controlled = length_controlled(preferences, (ours.lengths - theirs.lengths)[known])
    return {
        "prompts": wins.prompts,
        "wins": wins.rate,
        "ties": wins.ties,
        "losses": 100 * float(worse.mean()),
        "win_rate": {"mean": wins.rate, "half_width": wins.ci95},
        "sign_p": mcnemar(better, worse),
        "difference": {
            "mean": difference.difference,
            "low": difference.low,
            "high": difference.high,
            "p_value": difference.p_value,
        },
        "length_controlled": asdict(controlled),
    }


def _interval(values: Floats) -> dict[str, float] | None:
    """Return the mean of the values that there are, and the half-width of its 95 % interval."""
    known = values[~np.isnan(values)]
    return asdict(clustered_mean(known[None, :])) if len(known) else None
