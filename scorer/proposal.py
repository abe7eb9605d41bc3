"""The proposals' log-probabilities log q'(y|x), computed again with the learner's numerics, as just another scorer.

The sampler's own (GROUPS, token_logprobs) are those that the outputs were drawn with. Where its kernels or precision
differ from the learner's, the ratios q_θ/q' and p/q' carry that difference; with these values they do not.
"""

from pathlib import Path

import pyarrow as pa
from peft import PeftModel
from transformers import PreTrainedModel

from common.config.recipe import PolicySection
from common.nn.adapters import load_adapter
from common.nn.causal_lm import load_causal_lm
from common.nn.logprobs import SequenceLogprobs
from common.policies import PolicyRegistry
from common.schemas import PROPOSAL
from scorer.prior import annotate_logprobs, logprobs_digest
from scorer.scorers import Annotation, Group, annotate


class ProposalScorer:
    """log q'(y|x) of each output under the very version that it was sampled from; none of gold.

    One version is held at a time: the groups of a lease have one, and leases of a version come one after the other.
    """

    name = PROPOSAL

    def __init__(self, policy: PolicySection, policies: Path, device: str, max_tokens: int) -> None:
        self._policy = policy
        self._registry = PolicyRegistry(policies)
        self._device = device
        self._max_tokens = max_tokens
        self._version: int | None = None
        self._model: PreTrainedModel | PeftModel = self._load(policy.model)
        self.digest = logprobs_digest(PROPOSAL, policy, self._model, max_tokens)
        self._logprobs: SequenceLogprobs

    def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """See `Scorer`."""
        return annotate(self, batch, self._score_group)

    def _score_group(self, group: Group) -> Annotation:
        if group["proposal_version"] != self._version:
            self._take_up(group["proposal_version"])
        return annotate_logprobs(self._logprobs, group, self._max_tokens)

    def _take_up(self, version: int) -> None:
        directory = self._registry.verify(version).path
        if self._policy.method == "full":
            self._model = self._load(str(directory))
        else:
            base = self._model.unload() if isinstance(self._model, PeftModel) else self._model
            self._model = load_adapter(base, directory)
        self._logprobs, self._version = SequenceLogprobs(self._model), version
        self._logprobs.pad_unless_exact()

    def _load(self, source: str) -> PreTrainedModel:
        return load_causal_lm(source, self._policy.dtype, self._device, self._policy.quantization)
