"""Rewards as read from the store: the values of one scorer, or a combination of several scorers.

Stored values never change. They are combined when they are read, so another combination needs no new scores.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from brain_align.common.config.scorers import CombinationSection
from brain_align.common.schemas import LOGPROBS
from brain_align.common.store.overlay import Store

_COLUMNS = ("values", "gold_value")

Values = npt.NDArray[np.float64]

_EDGE = 1e-6
"""Relative tolerance below a bin's lower edge: as float32, 0.7 is 6.9999998 bins of width 0.1."""


def stored_rewards(store: Store, group_ids: list[str], reward: str | CombinationSection) -> pa.Table:
    """Return the rewards of groups, in the given order: the values of a scorer, or a combination of several scorers'.

    Returns:
        `values`, list<float32>, one per output, and `gold_value`, float32; null where a required value is null.

    Raises:
        KeyError: a group, or a scorer's values for it, is not in the store.
    """
    if isinstance(reward, str):
        return store.scores(group_ids, reward, _COLUMNS)
    tables = [store.scores(group_ids, name, _COLUMNS).to_pylist() for name in reward.weights]
    rows = []
    for group in zip(*tables, strict=True):
        # The reference is one more text of its group: where only the order counts, it is ranked with the outputs.
        values = np.array([[*row["values"], row["gold_value"]] for row in group], dtype=np.float64)
        rows.append([None if np.isnan(value) else value for value in combine(values, reward)])
    return pa.table(
        {
            "values": pa.array([row[:-1] for row in rows], LOGPROBS),
            "gold_value": pa.array([row[-1] for row in rows], pa.float32()),
        }
    )


def combine(values: Values, combination: CombinationSection) -> Values:
    """Combine the values of one group.

    Args:
        values: of each scorer, in the order of `combination.weights`; NaN if missing.  # [scorers, texts]
        combination: the weights and the kind of combination.

    Returns:
        [texts]; NaN where any of a text's values is NaN.
    """
    weighted = values * np.array(list(combination.weights.values()))[:, None]
    if combination.kind == "weighted-sum":
        return weighted.sum(axis=0)
    if combination.kind == "min":
        return weighted.min(axis=0)
    return _worse_texts(_bins(weighted, combination.step) if combination.step else weighted)


def _bins(values: Values, width: float) -> Values:
    bins = values / width
    return np.floor(bins + _EDGE * np.maximum(1, np.abs(bins)))


def _worse_texts(values: Values) -> Values:
    """Return for each text how many distinct tuples of values are below its own, in lexicographic order."""
    known = ~np.isnan(values).any(axis=0)
    ranks = np.full(values.shape[1], np.nan)
    if known.any():
        # np.unique sorts rows lexicographically.
        ranks[known] = np.unique(values[:, known].T, axis=0, return_inverse=True)[1].reshape(-1)
    return ranks
