"""Trains the small policy and reward model of a toy task made from real data.

Both first learn the language of the training split (all text), then their task: the policy to write the reference
outputs and end them, the reward model to rank. The reward model starts from its own language model, which helps if
pairs are few.
"""

from collections.abc import Callable, Sequence
from functools import partial
from random import Random

import torch
from transformers import PreTrainedTokenizerFast

from brain_align.deploy.worlds.corpus import Corpus
from brain_align.deploy.worlds.files import save_policy, save_prompts, save_reward_model
from brain_align.deploy.worlds.language_model import (
    Example,
    ModelSize,
    mean_token_loss,
    new_gptj,
    new_llama,
    policy_facts,
)
from brain_align.deploy.worlds.packing import Group, batches_by_length
from brain_align.deploy.worlds.reward_model import RewardModel, encode, pair_loss, reward_facts
from brain_align.deploy.worlds.training import Item, OptimiserPlan, Preparation, optimise
from brain_align.scorer.text_models.formats import RewardFormat

_SIZE = ModelSize(layers=4, width=192, heads=3, context=512)
_BATCH_TOKENS = 2560
_LANGUAGE_RATE, _SFT_RATE, _REWARD_RATE = 3e-3, 1e-3, 1e-3
_LANGUAGE_EPOCHS, _SFT_EPOCHS, _REWARD_LANGUAGE_EPOCHS, _REWARD_EPOCHS = 1.0, 2.0, 0.5, 1.5


def build_real(task: Preparation, corpus: Corpus, form: RewardFormat) -> dict[str, object]:
    """Write prompts, policy and reward model of a corpus to the task's directory; return facts about them."""
    for split, rows in corpus.prompts.items():
        save_prompts(task.world, split, rows)
    texts = [_example(task.tokenizer, prompt, outputs, from_start=True) for prompt, outputs in corpus.texts]
    policy = _make_policy(task, corpus, texts)
    reward = _make_reward_model(task, corpus, texts, form)
    return {"rows": corpus.facts, "vocabulary": len(task.tokenizer), "policy": policy, "reward": reward}


def _make_policy(task: Preparation, corpus: Corpus, texts: Sequence[Example]) -> dict[str, object]:
    gold = {
        split: [_example(task.tokenizer, row["prompt"], (row["label"],)) for row in rows]
        for split, rows in corpus.prompts.items()
    }
    model = new_llama(_SIZE, task.tokenizer)
    loss_of = partial(mean_token_loss, model)
    with task.recorder.stage("language"):
        _optimise(task, model, texts, loss_of, _LANGUAGE_EPOCHS, _LANGUAGE_RATE, "policy: language")
    with task.recorder.stage("sft"):
        loss = _optimise(task, model, gold["train"], loss_of, _SFT_EPOCHS, _SFT_RATE, "policy: gold outputs")
    save_policy(task.world, model, task.tokenizer)
    return policy_facts(model, loss, gold["test"], _BATCH_TOKENS)


def _make_reward_model(
    task: Preparation, corpus: Corpus, texts: Sequence[Example], form: RewardFormat
) -> dict[str, object]:
    body = new_gptj(_SIZE, task.tokenizer)
    loss_of = partial(mean_token_loss, body)
    with task.recorder.stage("reward language"):
        _optimise(task, body, texts, loss_of, _REWARD_LANGUAGE_EPOCHS, _LANGUAGE_RATE, "reward model: language")
    model = RewardModel(body.transformer)
    train, held_out = (
        encode(preferences, form, task.tokenizer, _SIZE.context)
        for preferences in (corpus.preferences, corpus.held_out_preferences)
    )
    with task.recorder.stage("reward"):
        pairs_loss = partial(pair_loss, model)
        loss = _optimise(task, model, train, pairs_loss, _REWARD_EPOCHS, _REWARD_RATE, "reward model: pairs")
    save_reward_model(task.world, model, form, task.tokenizer)
    return {"measures": corpus.reward_meaning, **reward_facts(model, loss, held_out, _BATCH_TOKENS)}


def _example(
    tokenizer: PreTrainedTokenizerFast, prompt: str, outputs: Sequence[str], *, from_start: bool = False
) -> Example:
    """Return a prompt with its outputs, each ended by EOS; `from_start`: the loss counts the prompt, too."""
    prompt_ids = tokenizer(prompt)["input_ids"]
    rows = tuple((*prompt_ids, *ids, tokenizer.eos_token_id) for ids in tokenizer(list(outputs))["input_ids"])
    return Example(Group(rows, len(prompt_ids)), 1 if from_start else len(prompt_ids))


def _optimise(
    task: Preparation,
    model: torch.nn.Module,
    items: Sequence[Item],
    batch_loss: Callable[[list[Item]], torch.Tensor],
    epochs: float,
    learning_rate: float,
    label: str,
) -> float:
    """Train a model for a number of epochs, see `optimise`."""
    batches = list(batches_by_length([len(item.group) for item in items], _BATCH_TOKENS, Random(0)))
    plan = OptimiserPlan(max(1, round(epochs * len(batches))), learning_rate)
    return optimise(model, items, batch_loss, plan, _BATCH_TOKENS, task.random, label, task.recorder.progress)
