"""The texts of a page: outputs for held-back prompts and stored groups, within a number of bytes."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from brain_align.common.printable import printable
from brain_align.deploy.pages.pages import finite
from brain_align.deploy.report.outcomes import Outcome
from brain_align.deploy.report.run_data import RunData

MOST_SAMPLES = 2_000
_MOST_BYTES = 3_500_000
_LONGEST, _SHORTEST = 6_000, 120  # characters of a text


def samples(runs: list[RunData]) -> list[dict[str, Any]]:
    """Return all samples of all runs as JSON values; `run` is the place of the run in the list.

    Texts are cut in the middle, as little as the page's size asks for; there are at most `MOST_SAMPLES` prompts.
    """
    found = [one for number, run in enumerate(runs) if run.shows_texts for one in _of_run(number, run)]
    found = [_with_texts(one, printable) for one in found]
    longest = _LONGEST
    while True:
        cut = [_with_texts(one, partial(_cut, longest=longest)) for one in found]
        if longest <= _SHORTEST or len(json.dumps(cut, ensure_ascii=False).encode()) <= _MOST_BYTES:
            return cut
        longest //= 2


def _of_run(number: int, run: RunData) -> list[dict[str, Any]]:
    evaluated = run.evaluated
    before, after = evaluated.outcomes if evaluated else ({}, {})
    common = [prompt for prompt in after if prompt in before][:MOST_SAMPLES]
    prompts = [_sample(number, place, before[prompt], after[prompt]) for place, prompt in enumerate(common, start=1)]
    groups = [{"run": number, "kind": "group", **group} for group in run.groups]
    return [*prompts, *finite(groups)]


def _sample(run: int, place: int, before: Outcome, after: Outcome) -> dict[str, Any]:
    return {
        "run": run,
        "kind": "prompt",
        "id": str(place),
        "prompt": after.prompt,
        "reference": after.reference,
        "reference_reward": after.reference_reward,
        "reference_scores": after.reference_scores,
        "before": _output(before),
        "after": _output(after),
    }


def _output(one: Outcome) -> dict[str, Any]:
    return {
        "text": one.text,
        "reward": one.reward,
        "scores": one.scores,
        "tokens": one.tokens,
        "finished": one.finished,
    }


def _with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return a JSON value with each of its texts changed."""
    if isinstance(value, dict):
        return {name: _with_texts(inner, change) for name, inner in value.items()}
    if isinstance(value, list):
        return [_with_texts(inner, change) for inner in value]
    return change(value) if isinstance(value, str) else value


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    first = longest // 3  # the end of a prompt says more than its middle
    return f"{text[:first]} […{len(text) - longest:,} characters…] {text[first - longest :]}"
