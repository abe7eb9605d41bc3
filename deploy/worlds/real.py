"""Trains the small policy and reward model of a toy task made from real data.

Both first learn the language of the training split (all text), then their task: the policy to write the reference
outputs and end them, the reward model to rank. The reward model starts from its own language model, which helps if
pairs are few.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random

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
from brain_align.deploy.worlds.training import OptimiserPlan, Packable, Recorder, optimise
from brain_align.scorer.text_models.formats import RewardFormat

_SIZE = ModelSize(layers=4, width=192, heads=3, context=512)
_BATCH_TOKENS = 2560
_LANGUAGE_RATE, _SFT_RATE, _REWARD_RATE = 3e-3, 1e-3, 1e-3
_LANGUAGE_EPOCHS, _SFT_EPOCHS, _REWARD_LANGUAGE_EPOCHS, _REWARD_EPOCHS = 1.0, 2.0, 0.5, 1.5


def build_real(
    world: Path,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    form: RewardFormat,
    random: Random,
    recorder: Recorder,
) -> dict[str, object]:
    """Write prompts, policy and reward model of a corpus to the directory `world`; return facts about them."""
    for split, rows in corpus.prompts.items():
        save_prompts(world, split, rows)
    texts = [_example(tokenizer, prompt, outputs, from_start=True) for prompt, outputs in corpus.texts]
    policy = _make_policy(world, corpus, texts, tokenizer, random, recorder)
    reward = _make_reward_model(world, corpus, texts, tokenizer, form, random, recorder)
    return {"rows": corpus.facts, "vocabulary": len(tokenizer), "policy": policy, "reward": reward}


def _make_policy(
    world: Path,
    corpus: Corpus,
    texts: Sequence[Example],
    tokenizer: PreTrainedTokenizerFast,
    random: Random,
    recorder: Recorder,
) -> dict[str, object]:
    gold = {
        split: [_example(tokenizer, row["prompt"], (row["label"],)) for row in rows]
        for split, rows in corpus.prompts.items()
    }
    model = new_llama(_SIZE, tokenizer)
    loss_of = partial(mean_token_loss, model)
    with recorder.stage("language"):
        plan = _plan(texts, _LANGUAGE_EPOCHS, _LANGUAGE_RATE)
        optimise(model, texts, loss_of, plan, _BATCH_TOKENS, random, "policy: language", recorder.progress)
    with recorder.stage("sft"):
        plan = _plan(gold["train"], _SFT_EPOCHS, _SFT_RATE)
        loss = optimise(
            model, gold["train"], loss_of, plan, _BATCH_TOKENS, random, "policy: gold outputs", recorder.progress
        )
    save_policy(world, model, tokenizer)
    return policy_facts(model, loss, gold["test"], _BATCH_TOKENS)


def _make_reward_model(
    world: Path,
    corpus: Corpus,
    texts: Sequence[Example],
    tokenizer: PreTrainedTokenizerFast,
    form: RewardFormat,
    random: Random,
    recorder: Recorder,
) -> dict[str, object]:
    language_model = new_gptj(_SIZE, tokenizer)
    with recorder.stage("reward language"):
        plan = _plan(texts, _REWARD_LANGUAGE_EPOCHS, _LANGUAGE_RATE)
        loss_of = partial(mean_token_loss, language_model)
        optimise(
            language_model, texts, loss_of, plan, _BATCH_TOKENS, random, "reward model: language", recorder.progress
        )
    model = RewardModel(language_model.transformer)
    train, held_out = (
        encode(preferences, form, tokenizer, _SIZE.context)
        for preferences in (corpus.preferences, corpus.held_out_preferences)
    )
    with recorder.stage("reward"):
        plan = _plan(train, _REWARD_EPOCHS, _REWARD_RATE)
        pairs_loss = partial(pair_loss, model)
        loss = optimise(model, train, pairs_loss, plan, _BATCH_TOKENS, random, "reward model: pairs", recorder.progress)
    save_reward_model(world, model, form, tokenizer)
    return {"measures": corpus.reward_meaning, **reward_facts(model, loss, held_out, _BATCH_TOKENS)}


def _example(
    tokenizer: PreTrainedTokenizerFast, prompt: str, outputs: Sequence[str], *, from_start: bool = False
) -> Example:
    """Return a prompt with its outputs, each ended by EOS; `from_start`: the loss counts the prompt, too."""
    prompt_ids = tokenizer(prompt)["input_ids"]
    rows = tuple((*prompt_ids, *ids, tokenizer.eos_token_id) for ids in tokenizer(list(outputs))["input_ids"])
    return Example(Group(rows, len(prompt_ids)), 1 if from_start else len(prompt_ids))


def _plan(items: Sequence[Packable], epochs: float, learning_rate: float) -> OptimiserPlan:
    batches = list(batches_by_length([len(item.group) for item in items], _BATCH_TOKENS, Random(0)))
    return OptimiserPlan(max(1, round(epochs * len(batches))), learning_rate)
