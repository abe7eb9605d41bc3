"""What is said of a world from a pretrained model: the table, and warnings where its rewards are poor or misread."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from brain_align.common.config.inputs import AS_THEY_ARE, OF_THE_MODEL
from brain_align.common.config.recipe import Recipe
from brain_align.common.config.scorers import ClassifierSection
from brain_align.common.errors import UserError
from brain_align.deploy.worlds.pretrained.quality import shortcoming

FACTS = "world.json"
POLICY = "policy"
JUDGES = ("reward", "gold")
"""The reward models of a world, by the names of their directories and of their facts."""


def read_facts(world: Path) -> dict[str, Any]:
    """Return the facts of a world; none where there is no world.

    Raises:
        UserError: the file that holds them is damaged.
    """
    path = world / FACTS
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); delete {world}, and it is prepared again.") from None
    return facts if isinstance(facts, dict) else {}


def quality_table(facts: dict[str, Any]) -> Table:
    """Return the table of the reward models' quality on held-out pairs."""
    table = Table(title=f"reward models from {facts['base']}, on held-out pairs", title_justify="left")
    table.add_column("")
    for judge in JUDGES:
        table.add_column(judge, justify="right")
    found = [facts[judge] for judge in JUDGES]
    for label, cells in _rows(found):
        table.add_row(label, *cells)
    return table


def summary_lines(facts: dict[str, Any]) -> list[str]:
    """Return what else is to be said of a world: agreement of the models, policy, sizes, time, and warnings."""
    agree, policy, sizes = facts["agreement"], facts["policy"], facts["rows"]
    prompts = ", ".join(f"{split} {count:,}" for split, count in sizes["prompts"].items())
    return [
        f"reward and gold order {100 * agree['share']:.1f} ± {100 * agree['share_ci95']:.1f} % of the pairs alike",
        f"policy: {policy['examples']:,} examples; held-out loss {policy['base_loss']:.3f} → "
        f"{policy['held_out_loss']:.3f} nats per token",
        f"prompts: {prompts}",
        f"usable pairs: {sizes['usable']:,}; unusable rows: {listed(sizes['dropped'], 'none')}",
        f"a reward measures {facts['measures']}",
        f"time: {_minutes(facts['seconds']['total'])}",
        *filter(None, (_shortcoming(judge, facts) for judge in JUDGES)),
    ]


def warnings_of(recipe: Recipe, scorers: Collection[str] | None = None) -> list[str]:
    """Return the warnings about a recipe's prepared models, from the facts beside them: poor ones, and misread ones.

    `scorers` are the names of those that are used; None: all. World and paths are resolved.
    """
    poor = (_shortcoming(Path(section.path).name, facts) for _, section, facts in _judges(recipe, scorers))
    return [*filter(None, poor), *misreadings(recipe, scorers)]


def misreadings(recipe: Recipe, scorers: Collection[str] | None = None) -> list[str]:
    """Return a sentence for each prepared model that a recipe has read texts otherwise than it was trained."""
    found: list[str] = []
    policy = Path(recipe.policy.model)
    facts = read_facts(policy.parent) if policy.name == POLICY else {}
    if "templated" in facts:
        trained = OF_THE_MODEL if facts["templated"] else AS_THEY_ARE
        if recipe.data.chat_template != trained:
            found.append(
                f"THE POLICY DOES NOT READ PROMPTS AS IT WAS TRAINED: data.chat_template={recipe.data.chat_template}; "
                f"set data.chat_template={trained}, as {policy.parent} was prepared."
            )
    for name, section, facts in _judges(recipe, scorers):
        if "templated" not in facts:
            continue
        trained_so = {"chat_template": facts["templated"], "max_tokens": facts["max_pair_tokens"], "truncation": "left"}
        differing = {key: value for key, value in trained_so.items() if getattr(section, key) != value}
        if differing:
            read = ", ".join(f"{key}={json.dumps(getattr(section, key))}" for key in differing)
            remedy = " ".join(f"scorers.{name}.{key}={json.dumps(value)}" for key, value in differing.items())
            found.append(
                f"SCORER {name.upper()} DOES NOT READ TEXTS AS ITS MODEL WAS TRAINED: {read}; set {remedy}, as "
                f"{section.path} was prepared."
            )
    return found


def _judges(recipe: Recipe, scorers: Collection[str] | None) -> Iterator[tuple[str, ClassifierSection, dict[str, Any]]]:
    """Yield the scorers that read reward models of worlds, with the facts of these."""
    for name, section in recipe.scorers.items():
        if scorers is not None and name not in scorers:
            continue
        if isinstance(section, ClassifierSection) and Path(section.path).name in JUDGES:
            yield name, section, read_facts(Path(section.path).parent)


def _shortcoming(judge: str, facts: dict[str, Any]) -> str | None:
    """Return what is wrong with a reward model by today's standard, not by that of the day when it was prepared."""
    own = facts.get(judge)
    return shortcoming(judge, own["quality"]) if isinstance(own, dict) and "quality" in own else None


def listed(counts: Mapping[str, int], nothing: str) -> str:
    """Return counts by reason in one phrase."""
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items()) or nothing


def _rows(found: list[dict[str, Any]]) -> Iterable[tuple[str, list[str]]]:
    yield "trained on pairs", [f"{one['pairs']:,}" for one in found]
    quality = [one["quality"] for one in found]
    yield "held-out pairs", [f"{one['pairs']:,}" for one in quality]
    for label, name, interval in (
        ("accuracy, %", "accuracy", "accuracy_ci95"),
        ("length alone, %", "length_accuracy", None),
        ("  better than that by", "above_length", "above_length_ci95"),
        ("confidence, % (calibrated: = accuracy)", "confidence", None),
        ("calibration error, %", "calibration_error", None),
    ):
        yield label, [_percent(one[name], one[interval] if interval else None) for one in quality]
    yield "length alone prefers the", [one["length_prefers"] for one in quality]
    yield "log loss, nats (a coin: 0.693)", [f"{one['log_loss']:.3f}" for one in quality]
    yield "spread of a prompt's rewards", [f"{one['spread']:.2f}" for one in quality]


def _percent(value: float, interval: float | None) -> str:
    return f"{100 * value:.1f}" + ("" if interval is None else f" ± {100 * interval:.1f}")


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
