"""The proposals' log-probabilities log q'(y|x), recomputed with the learner's numerics, as one more scorer.

The sampler's own values (GROUPS, token_logprobs) are those that the outputs were drawn with. If its kernels or
precision differ from the learner's, the ratios q_θ/q' and p/q' contain that difference; with these values they do not.
"""

from pathlib import Path

import pyarrow as pa
from peft import PeftModel
from transformers import PreTrainedModel
from typing_extensions import override

from brain_align.common.config.inputs import PolicySection
from brain_align.common.nn.logprobs import SequenceLogprobs
from brain_align.common.nn.models.adapters import load_adapter
from brain_align.common.nn.models.causal_lm import load_causal_lm
from brain_align.common.policies import PolicyRegistry
from brain_align.common.schemas import PROPOSAL
from brain_align.scorer.kinds.prior import annotate_logprobs, logprobs_digest
from brain_align.scorer.scorer import Annotation, Group, Scorer, annotate


class ProposalScorer(Scorer):
    """log q'(y|x) of each output under the version that it was sampled from; no value for gold.

    One version is in memory at a time: all groups of a lease have the same, and leases arrive in order of version.
    """

    name = PROPOSAL

    def __init__(self, policy: PolicySection, policies: Path, device: str, max_tokens: int) -> None:
        self.digest = logprobs_digest(PROPOSAL, policy, max_tokens)
        self._policy = policy
        self._registry = PolicyRegistry(policies)
        self._device = device
        self._max_tokens = max_tokens
        self._version: int | None = None
        self._logprobs: SequenceLogprobs | None = None
        self._base = None if policy.method == "full" else self._load(policy.model)  # of all versions' adapters

    @override
    def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return annotate(self, batch, self._score_group)

    def _score_group(self, group: Group) -> Annotation:
        return annotate_logprobs(self._of_version(group["proposal_version"]), group, self._max_tokens)

    def _of_version(self, version: int) -> SequenceLogprobs:
        if self._logprobs is None or version != self._version:
            directory = self._registry.verify(version).path
            self._release()  # before the next is loaded: two may not fit into memory
            model = self._load(str(directory)) if self._base is None else load_adapter(self._base, directory)
            self._logprobs, self._version = SequenceLogprobs(model), version
            self._logprobs.pad_unless_exact()
        return self._logprobs

    def _release(self) -> None:
        if self._logprobs is not None and isinstance(self._logprobs.model, PeftModel):
            self._base = self._logprobs.model.unload()
        self._logprobs = None

    def _load(self, source: str) -> PreTrainedModel:
        return load_causal_lm(source, self._policy.dtype, self._device, self._policy.quantization)
