"""The model card of a result: what it was made of, what came out, and how it is loaded."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import yaml

from brain_align.common.config.inputs import PromptSource
from brain_align.common.config.recipe import Recipe
from brain_align.common.printable import code_span, fenced
from brain_align.common.uris import shown

FIGURES = (
    ("win rate vs. reference (training reward), %", "train_rm_win_rate", "{:.1f}"),
    ("  ± 95 % interval", "train_rm_win_rate_ci95", "{:.1f}"),
    ("mean reward", "mean_reward", "{:.3f}"),
    ("ground-truth score", "truth_quality", "{:.3f}"),
    ("KL to the prior, nats", "kl_to_prior", "{:z.2f}"),
    ("output length, tokens", "mean_tokens", "{:.1f}"),
    ("finished (EOS), %", "ended", "{:.0f}"),
)
"""Labels, names and forms of an evaluation's figures."""

_SECTIONS = ("seed", "policy", "sampling", "objective", "rewards", "algorithm", "logprobs", "learner")
_PLACES = ("path", "function", "model", "url")
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_HERE = "path/to/this/directory"


@dataclass(frozen=True)
class Base:
    """The model that was trained: a directory, or a hub id with its revision."""

    name: str
    revision: str | None
    local: bool


@dataclass(frozen=True)
class Card:
    """The contents of a card. `rank` is that of an adapter, None for a whole model."""

    recipe: Recipe
    version: int
    step: int
    summary: dict[str, Any] | None
    base: Base
    rank: int | None


def model_card(card: Card) -> str:
    """Return the text of README.md."""
    what = "whole model" if card.rank is None else f"LoRA adapter of rank {card.rank}"
    lines = [
        *_front_matter(card),
        f"# {card.recipe.name}",
        "",
        f"A {what}, aligned with brain-align{_release()} (objective {code_span(card.recipe.objective.name)}, reward "
        f"{code_span(card.recipe.objective.reward)}) from {_named(card.base)}. This is version {card.version} of the "
        f"run, after {card.step} optimiser steps.",
        "",
        "## Results",
        "",
        *_results(card),
        "",
        "## Loading",
        "",
        *_loading(card),
        "",
        "## Data",
        "",
        *_data(card.recipe),
        "",
        "## Recipe",
        "",
        *fenced(yaml.safe_dump(_settings(card.recipe), sort_keys=False, allow_unicode=True).rstrip()),
    ]
    return "\n".join(lines) + "\n"


def _release() -> str:
    try:
        return f" {metadata.version('brain-align')}"
    except metadata.PackageNotFoundError:  # run from its sources
        return ""


def _front_matter(card: Card) -> list[str]:
    facts: dict[str, Any] = {} if card.base.local else {"base_model": card.base.name}
    facts |= {
        "library_name": "transformers" if card.rank is None else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["brain-align", card.recipe.objective.name, *([] if card.rank is None else ["lora"])],
    }
    return ["---", yaml.safe_dump(facts, sort_keys=False, allow_unicode=True).rstrip(), "---", ""]


def _named(base: Base) -> str:
    return code_span(base.name if base.revision is None else f"{base.name}@{base.revision}")


def _results(card: Card) -> Iterator[str]:
    columns, on = _evaluated(card)
    if not columns:
        yield "This version was not evaluated."
        return
    decoding = card.recipe.sampling
    yield f"On {on}, sampled at temperature {decoding.temperature:g} with at most {decoding.max_tokens} tokens:"
    yield ""
    yield f"| | {' | '.join(columns)} |"
    yield f"|---|{'---:|' * len(columns)}"
    for label, name, form in FIGURES:
        values = [figures.get(name) for figures in columns.values()]
        if None not in values:
            yield f"| {label.strip()} | {' | '.join(form.format(value) for value in values)} |"


def _evaluated(card: Card) -> tuple[dict[str, dict[str, Any]], str]:
    """Return the figures of the model before and after, and the prompts that they are of; none if there are none."""
    summary = card.summary or {}
    after = f"version {card.version}"
    if card.version == summary.get("best_version") and "after" in summary:
        return {"SFT model": summary["before"], after: summary["after"]}, _prompts("test", summary["after"])
    validation = summary.get("validation", {})
    if str(card.version) not in validation:
        return {}, ""
    figures = {"SFT model": validation["0"]} if "0" in validation and card.version else {}
    figures[after] = validation[str(card.version)]
    return figures, _prompts("validation", figures[after])


def _prompts(split: str, figures: dict[str, Any]) -> str:
    return f"{figures.get('prompts', 'the')} {split} prompts"


def _loading(card: Card) -> Iterator[str]:
    template = card.recipe.data.chat_template
    if template == "none":
        yield "Prompts are plain texts, without a chat template, as in training."
    else:
        yield "Prompts are conversations in this directory's chat template, which is the one of training."
    if card.rank is None:
        yield from _code(
            "python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{_HERE}", dtype="auto")',
            f'tokenizer = AutoTokenizer.from_pretrained("{_HERE}")',
        )
        yield from _code("bash", f"vllm serve {_HERE}")
        return
    yield from _adapter_loading(card, card.rank)


def _adapter_loading(card: Card, rank: int) -> Iterator[str]:
    quantized = card.recipe.policy.quantization is not None
    dtype = card.recipe.policy.dtype
    four_bits = (
        "BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant=True, "
        f"bnb_4bit_compute_dtype='{dtype}')"
    )
    extra = f", quantization_config={four_bits}" if quantized else ""
    names = "AutoTokenizer, BitsAndBytesConfig" if quantized else "AutoTokenizer"
    yield from _code(
        "python",
        "from peft import AutoPeftModelForCausalLM  # transformers' AutoModelForCausalLM loads it as well",
        f"from transformers import {names}",
        "",
        f'model = AutoPeftModelForCausalLM.from_pretrained("{_HERE}", dtype="{dtype}"{extra})',
        f'tokenizer = AutoTokenizer.from_pretrained("{_HERE}")',
    )
    if quantized:
        yield ""
        yield "The base was quantised to nf4 in training; for vLLM, merge the adapter (`brain export --merge`)."
        return
    most = next(size for size in _VLLM_RANKS if size >= rank)
    base = json.dumps(card.base.name)
    revision = f" --revision {card.base.revision}" if card.base.revision else ""
    yield from _code(
        "bash",
        f"vllm serve {base}{revision} --tokenizer {_HERE} \\",
        f"  --enable-lora --max-lora-rank {most} --lora-modules {card.recipe.name}={_HERE}",
    )


def _code(language: str, *lines: str) -> list[str]:
    return ["", f"```{language}", *lines, "```"]


def _data(recipe: Recipe) -> Iterator[str]:
    data = recipe.data
    for split in ("train", "validation", "test"):
        source: PromptSource = getattr(data, split)
        parts = [shown(source.path), *(part for part in (source.config, source.split) if part)]
        yield f"- {split}: {' '.join(code_span(part) for part in parts)}"
    gold = f", reference outputs in {code_span(data.gold_column)}" if data.gold_column else ""
    yield f"- prompts in column {code_span(data.prompt_column)}{gold}"


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that decide the result; of scorers only what they are, not how they are reached."""
    settings = recipe.model_dump(mode="json", exclude_none=True)
    chosen = {name: settings[name] for name in _SECTIONS if settings.get(name) not in (None, {})}
    scorers = {}
    for name, scorer in settings["scorers"].items():
        places = {key: shown(scorer[key]) for key in _PLACES if key in scorer}
        scorers[name] = {"kind": scorer["kind"], "use": scorer["use"], **places}
    return {**chosen, "scorers": scorers}
