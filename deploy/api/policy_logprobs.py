"""The log-probabilities of stored outputs under a published version, which no store holds."""

from collections.abc import Callable

import pyarrow as pa

from brain_align.common.errors import UserError
from brain_align.common.nn.policy_versions import PolicyVersions
from brain_align.common.policies import PolicyRegistry
from brain_align.deploy.run.directory import saved_recipe
from brain_align.deploy.run.resolve import resolve
from brain_align.deploy.run.stored_source import Source
from brain_align.scorer.catalogue import MAX_TOKENS
from brain_align.scorer.kinds.prior import annotate_logprobs

GroupLogprobs = Callable[[pa.RecordBatch], list[list[float | None]]]
"""GROUPS rows to log q_θ(y|x) of each output of each group; None where the model cannot read an output."""


def policy_logprobs(source: Source, version: int, device: str = "cpu") -> GroupLogprobs:
    """Load a published version of a run's policy, and return what computes its log-probabilities.

    Raises:
        UserError: only a store was named, or its run has not published this version.
    """
    if source.directory is None:
        raise UserError("A version of the policy needs the run that has published it; name the run's directory.")
    versions = PolicyRegistry(source.directory.policies).versions()
    if version not in versions:
        there = f"versions {versions[0]} to {versions[-1]}" if versions else "none"
        raise UserError(f"There is no version {version} of the policy: {source.directory.root} has published {there}.")
    policy = resolve(saved_recipe(source.directory), None, begun=source.directory).recipe.policy
    loaded = PolicyVersions(policy, device).load(source.directory.policies, version)
    return lambda groups: [annotate_logprobs(loaded, row, MAX_TOKENS).values for row in groups.to_pylist()]
