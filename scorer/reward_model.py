"""Rewards from one of the two GPT-J reward models."""

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from common.identity import digest
from common.nn.causal_lm import check_tokenizer, load_tokenizer
from scorer.checkpoints import find_checkpoint
from scorer.formats import RewardFormat
from scorer.gptj_reward import Dtype, GPTJReward, load_gptj_reward
from scorer.scorers import Annotation, Group, annotate, finite_or_null


class RewardModelScorer:
    """r(x, y) of every output of a group, and of its gold output.

    A group is one padded batch of texts, encoded by the reward model's own tokenizer.
    """

    def __init__(
        self,
        name: str,
        digest: str,
        model: GPTJReward,
        format: RewardFormat,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
    ) -> None:
        self.name = name
        self.digest = digest
        self._model = model
        self._format = format
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """See `Scorer`."""
        return annotate(self, batch, self._score_group)

    def _score_group(self, group: Group) -> Annotation:
        prompt, gold = group["prompt_text"], group["gold_text"]
        texts = [self._format.text(prompt, output["text"]) for output in group["outputs"]]
        if gold is not None:
            texts.append(self._format.gold_text(prompt, gold))
        encoded = self._format.encode(self._tokenizer, texts, self._model.config.n_positions)
        values, errors = finite_or_null(self._model.rewards(encoded, self._format, self._max_tokens), "text")
        gold_value = values.pop() if gold is not None else None
        return Annotation(values, gold_value, tuple(errors))


def load_reward_model(
    name: str, source: str, format: RewardFormat, dtype: Dtype, device: str, max_tokens: int
) -> RewardModelScorer:
    """Load a reward model from a directory or the hub.

    Args:
        name: of the scorer.
        source: directory or hub id.
        format: TLDR or HH.
        dtype: of the weights.
        device: "cpu" or "cuda".
        max_tokens: tokens of one forward pass, padding included.

    Raises:
        UserError: a file is missing, or does not fit the format.
    """
    checkpoint = find_checkpoint(source, format)
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    format.check_tokenizer(tokenizer, checkpoint.tokenizer)
    model = load_gptj_reward(checkpoint, dtype, device)
    check_tokenizer(tokenizer, model.config, checkpoint.tokenizer)
    identity = digest("reward model", checkpoint.digest(), dtype, max_tokens)
    return RewardModelScorer(name, identity, model, format, tokenizer, max_tokens)
