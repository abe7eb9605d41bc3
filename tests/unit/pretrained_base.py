"""A tiny chat model and a few dialogues: a whole preparation from them takes seconds."""

import json
from pathlib import Path
from random import Random
from typing import Any

from transformers import BertConfig, BertForSequenceClassification

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.run import PrepareSection
from brain_align.deploy.worlds.pretrained.quality import shortcoming
from tests.unit.factories import recipe_settings
from tests.unit.tiny_models import gpt2_like_tokenizer, llama, save

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "ate", "its", "text", "of", "rain"]
SFT = {"examples": 32, "batch": 8, "learning_rate": 1e-2}
REWARD = {"batch": 8, "learning_rate": 1e-2}
SMALL = {
    "held_out_pairs": 20,
    "max_prompt_tokens": 56,
    "max_output_tokens": 40,
    "max_pair_tokens": 64,
    "dtype": "float32",
    "adapter": {"r": 2, "alpha": 4},
    "sft": SFT,
    "reward": REWARD,
}


_CLASSIFIER = {"kind": "classifier", "chat_template": True, "max_tokens": 64, "dtype": "float32"}


def chat_model(folder: Path, template: str | None = TEMPLATE) -> Path:
    tokenizer = gpt2_like_tokenizer()
    tokenizer.chat_template = template
    save(llama(vocabulary=300), folder)
    tokenizer.save_pretrained(folder)
    return folder


def dialogues(path: Path, count: int = 80) -> Path:
    """Pairs in HH's format; the chosen answers are one word longer."""
    random = Random(0)

    def said(words: int) -> str:
        return " ".join(random.choices(_WORDS, k=words))

    with open(path, "w") as file:
        for number in range(count):
            prompt = f"\n\nHuman: {number} {said(3)}\n\nAssistant:"
            file.write(json.dumps({"chosen": f"{prompt} {said(4)}", "rejected": f"{prompt} {said(3)}"}) + "\n")
    return path


def summaries(path: Path, count: int = 80) -> Path:
    with open(path, "w") as file:
        for number in range(count):
            words = " ".join(Random(number).choices(_WORDS, k=8))
            row = {"prompt": f"POST: {number} {words}\nTL;DR:", "label": f" {number} {words[:8]}"}
            file.write(json.dumps(row) + "\n")
    return path


def settings(base: Path | str | None, **changes) -> PrepareSection:
    return PrepareSection.model_validate({"kind": "hh", "base": base and str(base), **SMALL, **changes})


def recipe_of(base: Path, data: str, cache: Path) -> Recipe:
    splits = {split: f"{{world}}/prompts/{split}.jsonl" for split in ("train", "validation", "test")}
    return Recipe.model_validate(
        {
            "name": "tiny",
            "run": {"dir": str(cache / "run")},
            "prepare": {**settings(base).model_dump(exclude_unset=True), "cache": str(cache)},
            "data": {"path": data, **splits, "chat_template": "model", "max_prompt_tokens": 56},
            "policy": {"model": "{world}/policy", "dtype": "float32"},
            "sampling": {"max_tokens": 8},
            "scorers": {
                "reward": {**_CLASSIFIER, "path": "{world}/reward"},
                "gold": {**_CLASSIFIER, "path": "{world}/gold", "use": "evaluation"},
            },
            "objective": {"reward": "reward"},
            "algorithm": {"prompts_per_round": 4, "batch_prompts": 4},
        }
    )


_POOR = {
    "pairs": 600, "accuracy": 0.58, "accuracy_ci95": 0.04, "above_length": -0.01, "above_length_ci95": 0.03,
    "length_accuracy": 0.59, "length_prefers": "longer",
}  # fmt: skip
USELESS = shortcoming("reward", _POOR) or ""
"""What is said of the reward model of `recipe_with_useless_reward`."""


def recipe_with_useless_reward(folder: Path, **changes: Any) -> Recipe:
    """A recipe whose inputs are all there, and whose reward model is called useless by the facts beside it."""
    chat_model(folder / "policy")
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=300, num_labels=1, pad_token_id=0, max_position_embeddings=32, **size)
    (folder / "world").mkdir()
    save(BertForSequenceClassification(config), folder / "world" / "reward")
    gpt2_like_tokenizer().save_pretrained(folder / "world" / "reward")
    (folder / "world" / "world.json").write_text(json.dumps({"reward": {"quality": _POOR}}))
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": word, "label": "x"}) + "\n" for word in _WORDS))
    data = {split: str(prompts) for split in ("train", "validation", "test")}
    settings = recipe_settings(
        run={"dir": str(folder / "run")},
        data={**data, "max_prompt_tokens": 40},
        policy={"model": str(folder / "policy")},
        sampling={"n": 8, "max_tokens": 8},
        scorers={
            "reward": {"kind": "classifier", "path": str(folder / "world" / "reward")},
            "length": {"kind": "function", "function": "builtins:len", "use": "evaluation"},
        },
        objective={"reward": "reward"},
        algorithm={"prompts_per_round": 2, "updates_per_round": 1, "batch_prompts": 2},
        evaluation={"validation_prompts": 2, "test_prompts": 2},
    )
    return Recipe.model_validate({**settings, **changes})
