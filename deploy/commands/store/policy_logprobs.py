"""A published version's log-probabilities of a stored group, which the store itself does not hold."""

import numpy as np
import pyarrow as pa

from brain_align.common.errors import UserError
from brain_align.common.policies import PolicyRegistry
from brain_align.deploy.run.directory import saved_recipe
from brain_align.deploy.run.resolve import resolve
from brain_align.deploy.run.stored_source import Source
from brain_align.scorer.catalogue import MAX_TOKENS
from brain_align.scorer.kinds.proposal import ProposalScorer


def policy_logprobs(source: Source, group: str, version: int) -> np.ndarray:
    """The log q_θ(y|x) of a group's outputs under a published version of its run; NaN where it has none.

    Returns:
        [n] float64

    Raises:
        UserError: only a store was named, or its run has published no such version.
    """
    if source.directory is None:
        raise UserError("--policy needs the versions that a run has published; name the run's directory.")
    versions = PolicyRegistry(source.directory.policies).versions()
    if version not in versions:
        there = f"versions {versions[0]} to {versions[-1]}" if versions else "none"
        raise UserError(f"--policy {version}: {source.directory.root} has published {there}.")
    policy = resolve(saved_recipe(source.directory), None, begun=source.directory).recipe.policy
    rows = source.store.groups([group])
    place = rows.column_names.index("proposal_version")
    asked = rows.set_column(place, rows.schema.field(place), pa.array([version], pa.int32()))
    scorer = ProposalScorer(policy, source.directory.policies, "cpu", MAX_TOKENS)
    values = scorer.score(asked.combine_chunks().to_batches()[0])["values"][0]
    return np.array(values.as_py(), dtype=np.float64)  # null -> NaN
