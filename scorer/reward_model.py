"""Rewards from one of the two GPT-J reward models."""

from collections.abc import Sequence

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from common.identity import digest
from common.nn.causal_lm import check_tokenizer, context_length, load_tokenizer
from scorer.checkpoints import find_checkpoint
from scorer.formats import RewardFormat
from scorer.gptj_reward import Dtype, load_gptj_reward
from scorer.scorers import Annotation, Group, annotate, annotation_of_texts, finite_or_null
from scorer.text_values import TextValues


class RewardModelScorer:
    """r(x, y) of every output of a group, and of its gold output.

    Texts are encoded by the reward model's own tokenizer. A group is computed on its own, so that its values do not
    depend, not even in their rounding, on what else is scored.
    """

    def __init__(
        self,
        name: str,
        digest: str,
        values: TextValues,
        format: RewardFormat,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.name = name
        self.digest = digest
        self._values = values
        self._format = format
        self._tokenizer = tokenizer

    def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """See `Scorer`."""
        return annotate(self, batch, self._score_group)

    def _score_group(self, group: Group) -> Annotation:
        prompt, gold = group["prompt_text"], group["gold_text"]
        texts = [self._format.text(prompt, output["text"]) for output in group["outputs"]]
        if gold is not None:
            texts.append(self._format.gold_text(prompt, gold))
        encoded = self._format.encode(self._tokenizer, texts, context_length(self._values.decoder.config))
        values, errors = finite_or_null(self._values.of([text.read for text in encoded]), "text")
        return annotation_of_texts(group, values, errors)


def load_reward_model(
    name: str, source: str, format: RewardFormat, dtype: Dtype, devices: Sequence[str], max_tokens: int
) -> RewardModelScorer:
    """Load a reward model from a directory or the hub.

    Args:
        name: of the scorer.
        source: directory or hub id.
        format: TLDR or HH.
        dtype: of the weights.
        devices: over which the model's layers are spread: "cpu", or GPUs.
        max_tokens: tokens of one forward pass, padding included.

    Raises:
        UserError: a file is missing, or does not fit the format.
    """
    checkpoint = find_checkpoint(source, format)
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    format.check_tokenizer(tokenizer, checkpoint.tokenizer)
    model = load_gptj_reward(checkpoint, dtype, devices)
    check_tokenizer(tokenizer, model.config, checkpoint.tokenizer)
    identity = digest("reward model", checkpoint.digest(), dtype, max_tokens)
    return RewardModelScorer(name, identity, TextValues(model.transformer, model.v_head, max_tokens), format, tokenizer)
