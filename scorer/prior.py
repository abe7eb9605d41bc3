"""The prior's log-probabilities log p(y|x), as just another scorer."""

from pathlib import Path

import pyarrow as pa
from transformers import PreTrainedModel

from common.identity import digest, digest_files
from common.nn.causal_lm import Dtype, load_causal_lm
from common.nn.logprobs import SequenceLogprobs, request_of
from common.schemas import PRIOR
from scorer.scorers import Annotation, Group, annotate, finite_or_null


class PriorScorer:
    """log p(y|x) of each output, from its token ids, with the learner's numerics; none of gold."""

    name = PRIOR

    def __init__(self, digest: str, model: PreTrainedModel, max_tokens: int) -> None:
        self.digest = digest
        self._logprobs = SequenceLogprobs(model)
        self._max_tokens = max_tokens

    def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """See `Scorer`."""
        return annotate(self, batch, self._score_group)

    def _score_group(self, group: Group) -> Annotation:
        outputs = [output["token_ids"] for output in group["outputs"]]
        try:
            logprobs = self._logprobs.in_parts(request_of(group["prompt_token_ids"], outputs), self._max_tokens)
        except ValueError as error:  # no prompt token, or more tokens than the model reads
            return Annotation([None] * len(outputs), errors=(str(error),))
        values, errors = finite_or_null(logprobs.tolist(), "output")
        return Annotation(values, errors=tuple(errors))


def load_prior(source: str, dtype: Dtype, device: str, max_tokens: int) -> PriorScorer:
    """Load the SFT model, from a directory or the hub, as the prior.

    Raises:
        UserError: it is missing or incompatible.
    """
    model = load_causal_lm(source, dtype, device)
    return PriorScorer(digest(PRIOR, _files(source, model), dtype, max_tokens), model, max_tokens)


def _files(source: str, model: PreTrainedModel) -> str:
    root = Path(source)
    if not root.is_dir():
        return digest(source, model.config._commit_hash)
    names = [file.name for pattern in ("config.json", "*.safetensors", "*.bin") for file in root.glob(pattern)]
    return digest_files(root, names)
