"""Trains the small policy and reward model of a world of real data.

Both learn the language of the train part first (all text), then their task: the policy to give the gold outputs and
to end them, the reward model to rank. The reward model starts from a language model of its own, which helps where
pairs are few.
"""

from collections.abc import Sequence
from pathlib import Path
from random import Random

from transformers import PreTrainedTokenizerFast

from brain_align.deploy.worlds.corpus import Corpus
from brain_align.deploy.worlds.files import save_policy, save_prompts, save_reward_model
from brain_align.deploy.worlds.language_model import (
    Example,
    ModelSize,
    held_out_loss,
    new_gptj,
    new_llama,
    train_language_model,
)
from brain_align.deploy.worlds.packing import Group, batches_by_length
from brain_align.deploy.worlds.recording import Recorder
from brain_align.deploy.worlds.reward_model import RewardModel, encode, pair_accuracy, train_reward_model
from brain_align.deploy.worlds.training import Plan
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
    """Write prompts, policy and reward model of a corpus to `world`; returns the facts about them."""
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
    with recorder.stage("language"):
        plan = _plan(texts, _LANGUAGE_EPOCHS, _LANGUAGE_RATE)
        train_language_model(model, texts, plan, _BATCH_TOKENS, random, "policy: language", recorder.progress)
    with recorder.stage("sft"):
        plan = _plan(gold["train"], _SFT_EPOCHS, _SFT_RATE)
        loss = train_language_model(
            model, gold["train"], plan, _BATCH_TOKENS, random, "policy: gold outputs", recorder.progress
        )
    save_policy(world, model, tokenizer)
    return {
        "parameters": model.num_parameters(),
        "train_loss": round(loss, 3),
        "held_out_loss": round(held_out_loss(model, gold["test"], _BATCH_TOKENS), 3),
    }


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
        train_language_model(
            language_model, texts, plan, _BATCH_TOKENS, random, "reward model: language", recorder.progress
        )
    model = RewardModel(language_model.transformer)
    train, held_out = (
        encode(preferences, form, tokenizer, _SIZE.context)
        for preferences in (corpus.preferences, corpus.held_out_preferences)
    )
    with recorder.stage("reward"):
        steps = _steps([len(item.group) for item in train], _REWARD_EPOCHS)
        loss = train_reward_model(
            model, train, Plan(steps, _REWARD_RATE), _BATCH_TOKENS, random, "reward model: pairs", recorder.progress
        )
    save_reward_model(world, model, form, tokenizer)
    return {
        "measures": corpus.reward_meaning,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_loss": round(loss, 3),
        "held_out_pair_accuracy": round(pair_accuracy(model, held_out, _BATCH_TOKENS), 3),
        "held_out_pairs": sum(len(item.pairs) for item in held_out),
    }


def _example(
    tokenizer: PreTrainedTokenizerFast, prompt: str, outputs: Sequence[str], *, from_start: bool = False
) -> Example:
    """A prompt with outputs and their ends; the loss counts the prompt too if it is `from_start`."""
    prompt_ids = tokenizer(prompt)["input_ids"]
    rows = tuple((*prompt_ids, *ids, tokenizer.eos_token_id) for ids in tokenizer(list(outputs))["input_ids"])
    return Example(Group(rows, len(prompt_ids)), 1 if from_start else len(prompt_ids))


def _plan(examples: Sequence[Example], epochs: float, learning_rate: float) -> Plan:
    return Plan(_steps([len(example.group) for example in examples], epochs), learning_rate)


def _steps(lengths: Sequence[int], epochs: float) -> int:
    return max(1, round(epochs * len(list(batches_by_length(lengths, _BATCH_TOKENS, Random(0))))))
