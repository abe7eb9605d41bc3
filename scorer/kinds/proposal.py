"""The proposals' log-probabilities log q'(y|x), recomputed with the learner's numerics, as one more scorer.

The sampler's own values (GROUPS, token_logprobs) are those that the outputs were drawn with. If its kernels or
precision differ from the learner's, the ratios q_θ/q' and p/q' contain that difference; with these values they do not.
"""

from pathlib import Path

import pyarrow as pa
from typing_extensions import override

from brain_align.common.config.inputs import PolicySection
from brain_align.common.nn.policy_versions import PolicyVersions
from brain_align.common.schemas import PROPOSAL
from brain_align.scorer.kinds.prior import annotate_logprobs, logprobs_digest
from brain_align.scorer.scorer import Annotation, Group, Scorer, annotate


class ProposalScorer(Scorer):
    """log q'(y|x) of each output under the version that it was sampled from; no value for gold.

    One version is in memory at a time: all groups of a lease have the same, and leases arrive in order of version.
    """

    name = PROPOSAL

    def __init__(
        self, policy: PolicySection, policies: Path, device: str, max_tokens: int, window: int | None = None
    ) -> None:
        self.digest = logprobs_digest(PROPOSAL, policy, max_tokens, window)
        self._policies = policies
        self._max_tokens = max_tokens
        self._versions = PolicyVersions(policy, device, window)

    @override
    def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return annotate(self, batch, self._score_group)

    def _score_group(self, group: Group) -> Annotation:
        logprobs = self._versions.load(self._policies, group["proposal_version"])
        return annotate_logprobs(logprobs, group, self._max_tokens)
