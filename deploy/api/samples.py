"""Stored samples as tables for Python: one row per output, with its reward and its weights α and β."""

import importlib
import warnings
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.errors import UserError
from brain_align.common.policies import PolicyRegistry
from brain_align.common.schemas import PRIOR, PROPOSAL
from brain_align.common.store.flat_rows import FlatRows, readable, rewards_of, values_by_output
from brain_align.common.store.posterior import log_weights, masked, self_normalised
from brain_align.deploy.run.directory import saved_recipe
from brain_align.deploy.run.resolve import resolve
from brain_align.deploy.run.stored_source import GroupLogprobs, Source, goodness_of, open_source, ranking

if TYPE_CHECKING:
    import pandas
    import polars

_CHUNK = 256  # groups in memory at a time
_LOGPROBS = (PRIOR, PROPOSAL)
_WEIGHED = [
    pa.field("reward", pa.float32()),  # r(x, y) of the run's objective
    pa.field("prior_logprob", pa.float32()),  # log p(y|x)
    pa.field("proposal_logprob", pa.float32()),  # log q'(y|x)
    pa.field("policy_logprob", pa.float32()),  # log q_θ(y|x)
    pa.field("alpha", pa.float64()),
    pa.field("beta", pa.float64()),
]


class Samples:
    """The stored outputs of a run, as they were when the store was opened; every group once.

    A table has one row per output, in the order of groups and outputs. Its columns are those of `brain store export`,
    with the log-probabilities under names of their own, and the weights of the posterior and of the policy:

    * `reward`: of the scorer or combination that the run's objective names, or of the one that was asked for;
    * `prior_logprob`, `proposal_logprob`: log p(y|x), and log q'(y|x) as it was sampled, or as the learner's numerics
      computed it again where the run did so (`logprobs.proposal: recomputed`);
    * `alpha`: p(G=1|x,y)·p/q', normalised over the group (paper, eq. 20), at the run's γ and goodness model; γ = 1 and
      `bradley-terry` where only a store was named;
    * `policy_logprob`, `beta`: log q_θ(y|x), and q_θ/q' normalised over the group (eq. 11). No store holds them; they
      are computed where a version of the policy is named, and null otherwise.

    A value that is not known is null. An output without all of what α needs takes no part in its group's weights.
    """

    def __init__(self, source: Source, scorer: str | None = None) -> None:
        """Read from an opened store; `open_store` opens one."""
        self._source = source
        self._store = source.store
        names = {facts.name for facts in self._store.scorers()}
        self._ranking = ranking(source, scorer) if scorer or names.difference(_LOGPROBS) else None
        self._flat = FlatRows(self._store, sorted(names))
        log_columns = {column for name in _LOGPROBS for column in (f"score_{name}", f"gold_score_{name}")}
        weighed = {field.name for field in _WEIGHED}
        kept = [field for field in self._flat.schema if field.name not in log_columns | weighed]
        self.schema = pa.schema([*kept, *_WEIGHED])
        """The columns of every table."""

    @property
    def damaged(self) -> list[str]:
        """A sentence for each damaged part that was met so far: its groups are missing, its scores are null."""
        return self._store.damaged

    def batches(self, policy: int | None = None, *, device: str = "cpu") -> Iterator[pa.RecordBatch]:
        """Give the table piece by piece, some hundred groups at a time, for stores that do not fit into memory.

        With `policy`, that version of the run's policy is loaded, and computes log q_θ(y|x) and β. A warning names each
        damaged part.

        Raises:
            UserError: only a store was named and not its run, or the run has not published this version.
        """
        logprobs = None if policy is None else policy_logprobs(self._source, policy, device)
        ids = pc.unique(self._store.index()["group_id"])
        for start in range(0, len(ids), _CHUNK):
            for table in readable(self._store.groups, ids[start : start + _CHUNK].to_pylist()):
                for groups in table.combine_chunks().to_batches():
                    yield self._weighed(groups, logprobs(groups) if logprobs else None)
        for damage in self.damaged:
            warnings.warn(f"left out, as it is damaged: {damage}", stacklevel=2)

    def to_arrow(self, policy: int | None = None, *, device: str = "cpu") -> pa.Table:
        """Return the table; see `batches`."""
        return pa.Table.from_batches(self.batches(policy, device=device), self.schema)

    def to_pandas(self, policy: int | None = None, *, device: str = "cpu") -> "pandas.DataFrame":
        """Return the table as a pandas data frame; see `batches`."""
        _library("pandas")
        return self.to_arrow(policy, device=device).to_pandas()

    def to_polars(self, policy: int | None = None, *, device: str = "cpu") -> "polars.DataFrame":
        """Return the table as a polars data frame; see `batches`."""
        return _library("polars").from_arrow(self.to_arrow(policy, device=device))

    def _weighed(self, groups: pa.RecordBatch, policy: list[list[float | None]] | None) -> pa.RecordBatch:
        """Return the rows of some groups."""
        rows = self._flat.rows(groups)
        ids = groups["group_id"].to_pylist()
        counts = pc.list_value_length(groups["outputs"]).to_pylist()
        reward = self._ranking and self._ranking.reward
        found = rewards_of(self._store, ids, reward) if reward else {}
        rewards = np.array(values_by_output(found, ids, counts), dtype=np.float64)  # null -> NaN
        prior = _column(rows, f"score_{PRIOR}")
        proposal = _column(rows, "proposal_logprob")
        if f"score_{PROPOSAL}" in rows.schema.names:  # what the learner takes where there is any
            again = np.repeat(self._store.has_scores(ids, PROPOSAL), counts)
            proposal = np.where(again, _column(rows, f"score_{PROPOSAL}"), proposal)
        log_q = np.full(len(rewards), np.nan) if policy is None else np.array([*chain(*policy)], dtype=np.float64)
        goodness, finished = goodness_of(self._source), pc.equal(rows["finish_reason"], "stop").to_numpy(False)
        logs = log_weights(rewards, prior, proposal, goodness, finished)
        policy_logs = np.where(masked(finished, goodness), np.nan, log_q - proposal)
        figures = (rewards, prior, proposal, log_q, _by_group(logs, counts), _by_group(policy_logs, counts))
        columns = dict(zip((field.name for field in _WEIGHED), figures, strict=True))
        arrays = [
            pa.array(columns[field.name], field.type, mask=np.isnan(columns[field.name]))
            if field.name in columns
            else rows[field.name]
            for field in self.schema
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)


def open_store(path: str | Path, *, scorer: str | None = None) -> Samples:
    """Open stored samples for reading, also while a run writes to them.

    Args:
        path: a run directory, a store directory, or a store's URI.
        scorer: whose values are the rewards; a scorer, or a name under the recipe's `rewards`. Default: the one of the
            run's objective, or the only one there is.

    Raises:
        UserError: there is no such store, it has no such scorer, or it has several and none is named.
    """
    source = open_source(str(path))
    if source.location.problem is not None:
        warnings.warn(f"{source.location.problem} The store is read without it.", stacklevel=2)
    return Samples(source, scorer)


def policy_logprobs(source: Source, version: int, device: str = "cpu") -> GroupLogprobs:
    """Return what computes log-probabilities under a published version; refuse one that the run has not published."""
    from brain_align.common.nn.policy_versions import PolicyVersions  # torch and transformers
    from brain_align.scorer.catalogue import MAX_TOKENS
    from brain_align.scorer.kinds.prior import annotate_logprobs

    if source.directory is None:
        raise UserError("A version of the policy needs the run that has published it; name the run's directory.")
    versions = PolicyRegistry(source.directory.policies).versions()
    if version not in versions:
        there = f"versions {versions[0]} to {versions[-1]}" if versions else "none"
        raise UserError(f"There is no version {version} of the policy: {source.directory.root} has published {there}.")
    recipe = resolve(saved_recipe(source.directory), None, begun=source.directory).recipe
    loaded = PolicyVersions(recipe.policy, device, recipe.window).load(source.directory.policies, version)
    return lambda groups: [annotate_logprobs(loaded, row, MAX_TOKENS).values for row in groups.to_pylist()]


def _column(rows: pa.RecordBatch, name: str) -> np.ndarray:
    """Return a column of floats, NaN where it is null or missing."""
    if name not in rows.schema.names:
        return np.full(rows.num_rows, np.nan)
    return rows[name].cast(pa.float64()).to_numpy(zero_copy_only=False)


def _by_group(logs: np.ndarray, counts: list[int]) -> np.ndarray:
    """Normalise log weights within each group.  # [outputs] -> [outputs]."""
    return np.concatenate([self_normalised(group) for group in np.split(logs, np.cumsum(counts)[:-1])])


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"to_{name} needs the package {name}, which is not installed: pip install {name}, or use to_arrow."
        ) from None
