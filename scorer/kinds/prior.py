"""The prior's log-probabilities log p(y|x), as one more scorer."""

from collections.abc import Sequence

import pyarrow as pa
from peft import PeftModel
from transformers import PreTrainedModel
from typing_extensions import override

from brain_align.common.config.inputs import PolicySection
from brain_align.common.identity import digest, digest_files
from brain_align.common.nn.logprobs import SequenceLogprobs, request_of
from brain_align.common.nn.models.adapters import CONFIG, WEIGHTS, find_adapter
from brain_align.common.nn.models.configuration import load_config
from brain_align.common.nn.models.policy_model import load_prior_model
from brain_align.common.nn.models.rotary import rotary_switch
from brain_align.common.schemas import PRIOR
from brain_align.scorer.scorer import Annotation, Group, Scorer, annotate, finite_or_null
from brain_align.scorer.text_models.checkpoints import digest_of_loaded
from brain_align.scorer.text_models.one_by_one import values_or_reasons


class PriorScorer(Scorer):
    """log p(y|x) of each output, from its token ids, with the learner's numerics; no value for gold."""

    name = PRIOR

    def __init__(self, digest: str, model: PreTrainedModel | PeftModel, max_tokens: int) -> None:
        self.digest = digest
        self._logprobs = SequenceLogprobs(model)
        self._logprobs.decoder.pad_unless_exact()
        self._max_tokens = max_tokens

    @override
    def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return annotate(self, batch, self._score_group)

    def _score_group(self, group: Group) -> Annotation:
        return annotate_logprobs(self._logprobs, group, self._max_tokens)


def annotate_logprobs(logprobs: SequenceLogprobs, group: Group, max_tokens: int) -> Annotation:
    """Return a group's sequence log-probabilities under a model; null where the model cannot read a sequence."""
    outputs = [output["token_ids"] for output in group["outputs"]]

    def sums(some: Sequence[list[int]]) -> list[float]:
        return list(logprobs.in_parts(request_of(group["prompt_token_ids"], some), max_tokens).tolist())

    kept, errors = finite_or_null(values_or_reasons(sums, outputs), "output")
    return Annotation(kept, errors=tuple(errors))


def load_prior(policy: PolicySection, device: str, max_tokens: int, window: int | None = None) -> PriorScorer:
    """Load the prior: the model that the learner starts from; for `window` see `load_causal_lm`.

    Raises:
        UserError: model or adapter is missing or incompatible.
    """
    model = load_prior_model(policy, device, window=window)
    return PriorScorer(logprobs_digest(PRIOR, policy, max_tokens, window), model, max_tokens)


def logprobs_digest(name: str, policy: PolicySection, max_tokens: int, window: int | None = None) -> str:
    """Return the digest of a scorer of log-probabilities: of model files and numerics."""
    config = load_config(policy.model)
    files = [digest_of_loaded(policy.model, config)]
    if policy.sft_adapter:
        adapter = find_adapter(policy.sft_adapter)
        files.append(digest_files(adapter, [CONFIG, WEIGHTS]))
    numerics: list[str | int | None] = [policy.dtype, policy.quantization, max_tokens]
    switch = rotary_switch(config)
    if switch is not None and window is not None and window > switch:
        numerics.append("long rotary factors")
    return digest(name, files, *numerics)
