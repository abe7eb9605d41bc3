"""The result of a finished run: the best adapter, summary.json, examples, and the table that is shown."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich.table import Table

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.run_identity import recipe_digest
from brain_align.common.durable import new_directory, write_file
from brain_align.common.policies import PolicyRegistry
from brain_align.common.printable import code_span, fenced
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.result.card import FIGURES
from brain_align.deploy.run.result.files import Result
from brain_align.deploy.run.run_plan import RunPlan
from brain_align.deploy.schedule.evaluation import Evaluation
from brain_align.deploy.worlds.pretrained.report import warnings_of

_ROWS = (*FIGURES, ("test prompts", "prompts", "{}"))
_REACHED = ("loss", "reward_mean", "reward_posterior", "kl_policy_prior")
_NOT_EVALUATED = "skipped: evaluation prompts cannot be sampled without samplers; the result is the newest version"


def finish(
    recipe: Recipe, directory: RunDirectory, work: RunPlan, seconds: dict[str, float], warnings: Sequence[str] = ()
) -> dict[str, Any]:
    """Write the result of a complete run and return the summary; `warnings` are those that its guards gave."""
    evaluation = work.evaluation
    if evaluation is None:
        newest = PolicyRegistry(directory.policies).newest()
        assert newest is not None, "a run publishes its last step"
        version = newest.version
    else:
        version = evaluation.best_version()
    figures = _trained(work, version) if evaluation is None else _evaluated(recipe, directory, evaluation, version)
    summary = {
        "name": recipe.name,
        "config_digest": recipe_digest(recipe),
        **figures,
        "stopped": None if evaluation is None else evaluation.stopped,
        "warnings": [*warnings_of(recipe), *warnings, *_on_budget(evaluation)],
        "delivery": None if work.delivery is None else work.delivery.sentence(),
        "left_out": [f"{item.purpose} round {item.round} prompt {item.prompt_id}" for item in work.quarantine],
        "seconds": {stage: round(value, 1) for stage, value in seconds.items()},
    }
    summary["result"] = str(_result(recipe, directory, version, summary))
    write_file(directory.summary, json.dumps(summary, indent=1))
    return summary


def _evaluated(recipe: Recipe, directory: RunDirectory, evaluation: Evaluation, best: int) -> dict[str, Any]:
    write_file(directory.examples, _examples(evaluation, best, recipe.evaluation.examples))
    versions = evaluation.due_versions()
    return {
        "best_version": best,
        "before": vars(evaluation.result("test", 0)),
        "after": vars(evaluation.result("test", best)),
        "validation": {str(version): vars(evaluation.result("validation", version)) for version in versions},
        "decoding": {"temperature": recipe.sampling.temperature, "max_tokens": recipe.sampling.max_tokens},
    }


def _on_budget(evaluation: Evaluation | None) -> list[str]:
    note = None if evaluation is None else evaluation.note_on_budget()
    return [] if note is None else [note]


def _trained(work: RunPlan, version: int) -> dict[str, Any]:
    """Return the figures of a run without evaluation; its newest version takes the place of the best."""
    steps = work.store.steps()
    return {
        "best_version": version,
        "evaluation": _NOT_EVALUATED,
        "steps": len(steps),
        "last_step": steps[-1]["metrics"],
    }


def read_summary(directory: RunDirectory) -> dict[str, Any] | None:
    """Return the summary of a run that has ended, or None."""
    return json.loads(directory.summary.read_text(encoding="utf-8")) if directory.summary.exists() else None


def show(console: PlainConsole, directory: RunDirectory, summary: dict[str, Any]) -> None:
    """Print before and after side by side, if anything was evaluated, and where the results are."""
    evaluated = "before" in summary
    if evaluated:
        console.print(_before_and_after(summary))
    else:
        reached = ", ".join(
            f"{name} {summary['last_step'][name]:.3f}" for name in _REACHED if name in summary["last_step"]
        )
        trained = f"{summary['name']}: {summary['steps']} steps, version {summary['best_version']}; {reached}"
        console.print(f"{trained}\nevaluation {summary['evaluation']}", soft_wrap=True)
    for warning in (*filter(None, [summary.get("stopped")]), *summary.get("warnings", ())):
        console.print(warning, soft_wrap=True)
    spent = ", ".join(f"{stage} {value:.0f} s" for stage, value in summary["seconds"].items())
    if left_out := summary.get("left_out"):
        console.print(f"quarantined: {', '.join(left_out)} (brain status says why)", soft_wrap=True)
    places = {
        "time": spent,
        "result": f"{summary['result']} ({_loader(Path(summary['result']))}); or: brain export",
        "summary": directory.summary,
        **({"examples": directory.examples} if evaluated else {}),
        **({"report": directory.report} if directory.report.exists() else {}),
        "metrics": f"{directory.metrics}, {directory.tensorboard}",
    }
    for label, text in places.items():
        console.print(f"{label:9} {text}", soft_wrap=True)


def _before_and_after(summary: dict[str, Any]) -> Table:
    before, after = summary["before"], summary["after"]
    table = Table(title=f"{summary['name']}: test prompts, before and after", title_justify="left")
    table.add_column("")
    table.add_column("SFT", justify="right")
    table.add_column(f"BRAIn (version {summary['best_version']})", justify="right")
    for label, field, form in _ROWS:
        if before[field] is not None:
            table.add_row(label, form.format(before[field]), form.format(after[field]))
    return table


def _result(recipe: Recipe, directory: RunDirectory, version: int, summary: dict[str, Any]) -> Path:
    """Return the place of the best version; an adapter is copied out of the published versions, a model is not."""
    found = PolicyRegistry(directory.policies).verify(version)
    if recipe.policy.method == "full":
        return found.path
    if not directory.adapter.exists():
        with new_directory(directory.adapter) as target:
            Result(recipe, directory, found, summary).write_adapter(target)
    return directory.adapter


def _loader(result: Path) -> str:
    is_adapter = (result / "adapter_config.json").exists()
    return f"{'AutoPeftModelForCausalLM' if is_adapter else 'AutoModelForCausalLM'}.from_pretrained"


def _examples(evaluation: Evaluation, best: int, count: int) -> str:
    lines = ["# Examples: test prompts with gold, SFT and aligned output", ""]
    pairs = zip(evaluation.texts("test", 0), evaluation.texts("test", best), strict=True)
    for number, ((prompt, gold, before, r_before), (_, _, after, r_after)) in enumerate(islice(pairs, count), start=1):
        lines += [
            f"## {number}",
            *fenced(prompt.strip()),
            f"- gold: {_one_line(gold)}",
            f"- SFT (reward {_figure(r_before)}): {_one_line(before)}",
            f"- aligned (reward {_figure(r_after)}): {_one_line(after)}",
            "",
        ]
    return "\n".join(lines)


def _one_line(text: str | None) -> str:
    return code_span(text) if text and text.strip() else "-"


def _figure(value: float | None) -> str:
    return "not computed" if value is None else f"{value:z.2f}"
