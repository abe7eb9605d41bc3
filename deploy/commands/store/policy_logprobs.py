"""A published version's log-probabilities of a stored group, which the store itself does not hold."""

import numpy as np

from brain_align.common.errors import UserError
from brain_align.common.nn.policy_versions import PolicyVersions
from brain_align.common.policies import PolicyRegistry
from brain_align.deploy.run.directory import saved_recipe
from brain_align.deploy.run.resolve import resolve
from brain_align.deploy.run.stored_source import Source
from brain_align.scorer.catalogue import MAX_TOKENS
from brain_align.scorer.kinds.prior import annotate_logprobs


def policy_logprobs(source: Source, group: str, version: int) -> np.ndarray:
    """Return log q_θ(y|x) of a group's outputs under a published version of its run, nats; NaN if unknown.

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
    logprobs = PolicyVersions(policy, "cpu").load(source.directory.policies, version)
    (row,) = source.store.groups([group]).to_pylist()
    return np.array(annotate_logprobs(logprobs, row, MAX_TOKENS).values, dtype=np.float64)  # None -> NaN
