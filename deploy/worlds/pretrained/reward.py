"""A Bradley–Terry reward model: the base with a head of one value, trained by TRL's RewardTrainer, merged and saved."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from brain_align.common.config.run import PrepareSection
from brain_align.common.config.scorers import ClassifierSection
from brain_align.common.data.text_groups import text_group
from brain_align.common.durable import new_directory
from brain_align.common.errors import UserError
from brain_align.common.nn.models.sources import find_source
from brain_align.common.schemas import GROUPS, batch_from_rows
from brain_align.deploy.worlds.pretrained.base import Base
from brain_align.deploy.worlds.pretrained.pairs import Pair
from brain_align.deploy.worlds.pretrained.training import (
    Stage,
    adapter_config,
    common_arguments,
    device_of,
    merged,
    on_one_device,
    train,
    trained_dtype,
)
from brain_align.deploy.worlds.training import Progress
from brain_align.scorer.kinds.classifier import load_classifier
from brain_align.scorer.scorer import Resources
from brain_align.scorer.text_models.classifier_texts import ClassifierTexts

_CENTRE = 0.01  # keeps rewards near 0, where 16 bits are finest; Bradley–Terry leaves their offset open
_SCORED = 32  # pairs per call
_PASS_TOKENS = 4096


def make_reward_model(
    base: Base, settings: PrepareSection, pairs: Sequence[Pair], directory: Path, stage: Stage
) -> dict[str, Any]:
    """Train a reward model on pairs, and write it to `directory`; return facts."""
    from trl import RewardConfig, RewardTrainer  # an optional dependency

    tokenizer = reward_tokenizer(base)
    texts = reward_texts(tokenizer, base, settings)
    encoded = [(texts.encode(pair.prompt, pair.chosen), texts.encode(pair.prompt, pair.rejected)) for pair in pairs]
    model = _new_model(base, settings, tokenizer, stage.seed)
    longest = 2 * max(len(text) for pair in encoded for text in pair)
    arguments = common_arguments(settings, settings.reward, stage, len(pairs), longest)
    trainer = RewardTrainer(
        model=model,
        args=on_one_device(RewardConfig(**arguments, center_rewards_coefficient=_CENTRE)),
        train_dataset=_dataset(encoded),
        processing_class=tokenizer,
        peft_config=adapter_config(settings, model, task_type="SEQ_CLS", modules_to_save=["score"]),
    )
    facts = {"pairs": len(pairs), "parameters": model.num_parameters(), **train(trainer, stage)}
    with new_directory(directory) as target:
        merged(trainer.model, settings.dtype).save_pretrained(target)
        tokenizer.save_pretrained(target)
    return facts


def reward_tokenizer(base: Base) -> PreTrainedTokenizerBase:
    """Return the base's tokenizer with a padding token, by which a causal classifier finds a text's last token."""
    tokenizer = copy.deepcopy(base.tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.truncation_side = "left"
    return tokenizer


def reward_texts(tokenizer: PreTrainedTokenizerBase, base: Base, settings: PrepareSection) -> ClassifierTexts:
    """Return the encoding of texts for training, which is the classifier scorer's own."""
    return ClassifierTexts(tokenizer, base.templated, "left", settings.max_pair_tokens, tokenizer.pad_token_id)


def margins(
    directory: Path, base: Base, settings: PrepareSection, pairs: Sequence[Pair], label: str, progress: Progress
) -> list[float]:
    """Return r(chosen) − r(rejected) of pairs, by the scorer that serves the model in a run."""
    section = ClassifierSection(
        kind="classifier",
        path=str(directory),
        dtype=settings.dtype,
        chat_template=base.templated,
        max_tokens=settings.max_pair_tokens,
    )
    scorer = load_classifier(label, section, Resources([device_of(settings)], _PASS_TOKENS, together=True))
    found: list[float] = []
    for start in range(0, len(pairs), _SCORED):
        part = pairs[start : start + _SCORED]
        rows = [text_group(str(n), pair.prompt, [pair.chosen, pair.rejected]) for n, pair in enumerate(part)]
        for row in scorer.score(batch_from_rows(GROUPS, rows)).to_pylist():
            if row["error"]:
                raise UserError(f"{directory} cannot score a held-out pair: {row['error']}.")
            found.append(row["values"][0] - row["values"][1])
        progress(f"{label}: {len(found)}/{len(pairs)} held-out pairs scored")
    return found


def _new_model(base: Base, settings: PrepareSection, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    place = find_source(base.source, "The base")
    set_seed(seed)  # of the head
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            place.name, num_labels=1, dtype=getattr(torch, trained_dtype(settings)), **place.arguments()
        )
    except Exception as error:  # a user's files may bring anything about in transformers' code
        raise place.failure("base of a reward model", error) from error
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if not isinstance(getattr(model, "score", None), torch.nn.Linear):
        raise UserError(
            f"prepare.base={base.source}: a {model.config.model_type} classifier has no linear layer `score` on its "
            f"last token, which a reward model needs; give another base."
        )
    model.score.float()  # small updates need its precision
    return model


def _dataset(encoded: Sequence[tuple[list[int], list[int]]]) -> Any:
    from datasets import Dataset  # takes seconds to import

    return Dataset.from_dict(
        {
            "chosen_ids": [chosen for chosen, _ in encoded],
            "rejected_ids": [rejected for _, rejected in encoded],
            "length": [max(map(len, pair)) for pair in encoded],
        }
    )
