"""A world from a pretrained model, with a tiny random Llama in place of one: the whole preparation takes seconds."""

import json
from pathlib import Path
from random import Random

from brain_align.common.config.run import PrepareSection
from brain_align.deploy.worlds.build import ensure_world
from tests.unit.tiny_models import gpt2_like_tokenizer, llama, save

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "ate", "its", "text", "of", "rain"]


def chat_model(folder: Path, template: str | None = TEMPLATE) -> Path:
    tokenizer = gpt2_like_tokenizer()
    tokenizer.chat_template = template
    save(llama(vocabulary=300), folder)
    tokenizer.save_pretrained(folder)
    return folder


def dialogues(path: Path, count: int = 80) -> Path:
    random = Random(0)

    def said(words: int) -> str:
        return " ".join(random.choices(WORDS, k=words))

    with open(path, "w") as file:
        for number in range(count):
            prompt = f"\n\nHuman: {number} {said(3)}\n\nAssistant:"
            file.write(json.dumps({"chosen": f"{prompt} {said(4)}", "rejected": f"{prompt} {said(3)}"}) + "\n")
    return path


def settings(base: Path, **changes) -> PrepareSection:
    small = {
        "held_out_pairs": 20,
        "max_prompt_tokens": 64,
        "max_output_tokens": 40,
        "max_pair_tokens": 64,
        "sft": {"examples": 16},
        "reward": {"batch": 8},
    }
    return PrepareSection.model_validate({"kind": "hh", "base": str(base), "adapter": {"r": 2}, **small, **changes})


def test_the_whole_preparation(tmp_path):
    base, data = chat_model(tmp_path / "base"), dialogues(tmp_path / "pairs.jsonl")
    said: list[str] = []
    world = ensure_world(settings(base), tmp_path / "cache", str(data), said.append)
    print("\n".join(said))
    print((world / "world.json").read_text())
    print([str(p.relative_to(world)) for p in sorted(world.rglob("*"))])
    assert 0
