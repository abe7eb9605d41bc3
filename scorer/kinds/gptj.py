"""Rewards from one of the two GPT-J reward models."""

from dataclasses import dataclass

import pyarrow as pa
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from typing_extensions import override

from brain_align.common.config.scorers import GPTJRewardSection
from brain_align.common.errors import UserError
from brain_align.common.identity import digest
from brain_align.common.nn.models.causal_lm import check_tokenizer, load_tokenizer
from brain_align.common.nn.models.configuration import context_length
from brain_align.scorer.scorer import ROUNDING, Group, Kind, Resources, Scorer
from brain_align.scorer.text_models.checkpoints import find_checkpoint
from brain_align.scorer.text_models.encoded_texts import annotate_texts
from brain_align.scorer.text_models.formats import FORMATS, RewardFormat
from brain_align.scorer.text_models.gptj_model import load_gptj_reward
from brain_align.scorer.text_models.text_values import TextValues


@dataclass
class RewardModelScorer(Scorer):
    """r(x, y) of every output of a group, and of its gold output, from texts encoded by the model's own tokenizer."""

    name: str
    digest: str
    _values: TextValues
    _format: RewardFormat
    _tokenizer: PreTrainedTokenizerBase
    _together: bool  # see `annotate_texts`

    @override
    def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return annotate_texts(self, batch, self._texts, self._values, together=self._together, plain=True)

    def _texts(self, group: Group) -> list[list[int]]:
        prompt, gold = group["prompt_text"], group["gold_text"]
        texts = [self._format.text(prompt, output["text"]) for output in group["outputs"]]
        if gold is not None:
            texts.append(self._format.gold_text(prompt, gold))
        encoded = self._format.encode(self._tokenizer, texts, context_length(self._values.decoder.config))
        return [text.read for text in encoded]


def load_reward_model(name: str, settings: GPTJRewardSection, resources: Resources) -> RewardModelScorer:
    """Load a reward model from a directory or the hub.

    Raises:
        UserError: a file is missing, or does not fit the format.
    """
    format, max_tokens = FORMATS[settings.kind], resources.max_tokens
    checkpoint = find_checkpoint(settings.path, format)
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    format.check_tokenizer(tokenizer, checkpoint.tokenizer)
    model = load_gptj_reward(checkpoint, settings.dtype, resources.devices)
    _check_tokenizer(tokenizer, model.config, checkpoint.tokenizer)
    identity = digest("reward model", checkpoint.digest(), settings.dtype, max_tokens)
    values = TextValues(model.transformer, model.v_head, max_tokens)
    return RewardModelScorer(name, identity, values, format, tokenizer, resources.together)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, where: str) -> None:
    """Refuse a tokenizer that does not fit the model: these formats were trained with one tokenizer alone."""
    if misfit := check_tokenizer(tokenizer, config, where):
        raise UserError(misfit[0].removeprefix("note: "))
    if config.eos_token_id not in (None, tokenizer.eos_token_id):
        raise UserError(
            f"The tokenizer in {where} ends texts with token {tokenizer.eos_token_id}, the model with "
            f"{config.eos_token_id}; give the tokenizer that the model was trained with."
        )


def _check(_name: str, settings: GPTJRewardSection) -> None:
    form = FORMATS[settings.kind]
    tokenizer = find_checkpoint(settings.path, form).tokenizer
    form.check_tokenizer(load_tokenizer(tokenizer), tokenizer)


KIND = Kind(
    section=GPTJRewardSection,
    load=load_reward_model,
    check=_check,
    tolerance=lambda settings: ROUNDING[settings.dtype],
    must_answer=False,
    reads_turns=lambda _: False,
    reading=lambda _: None,
    source=lambda settings: settings.path,
)
