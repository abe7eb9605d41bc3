"""The outputs that a person reads: which versions they are of, and where their texts are stored."""

from collections.abc import Mapping

from brain_align.common.durable import write_file
from brain_align.deploy.compare.plan.training_runs import ComparisonPlan, run_recipe
from brain_align.deploy.compare.report.answers import (
    Answer,
    ReadPrompt,
    answers_document,
    drawn_prompts,
    reading_budget,
)
from brain_align.deploy.compare.results.choices import Choice, choices, why_unread
from brain_align.deploy.compare.results.run_results import EvaluatedVersion, read_prior
from brain_align.deploy.compare.train.runner import ComparisonSetup
from brain_align.deploy.compare.train.tested_versions import Text, read_texts


def write_answers(setup: ComparisonSetup, plan: ComparisonPlan, failed: Mapping[str, str]) -> None:
    """Write answers.md, if a request asks for it and outputs of its first seed are there to be read.

    `failed` tells why a run, or its evaluation, failed in this start.
    """
    directory = setup.directory
    if not plan.request.read or not plan.request.kl_budgets:
        return
    budget = reading_budget(plan.request.kl_budgets)
    seed = plan.request.seeds[0]
    chosen = {method.label: _of_seed(choices(directory, plan, method)[budget], seed) for method in plan.request.methods}
    there = {label: choice for label, choice in chosen.items() if choice and choice.tested(directory)}
    if not there:
        return
    first = next(iter(there.values()))
    texts = _texts(setup, plan, first, 0)
    columns = {label: _column(setup, plan, choice) for label, choice in there.items()}
    everything = {"prior": _answers(read_prior(directory, first.finished), texts), **columns}
    drawn = drawn_prompts(plan.request.read, len(texts))
    prompts = [
        ReadPrompt(texts[at].prompt, texts[at].gold, {label: column[at] for label, column in everything.items()})
        for at in drawn
    ]
    missing = {
        method.label: why_unread(directory, plan, method, budget, failed)
        for method in plan.request.methods
        if method.label not in there
    }
    compared = f"Each method's best version within KL(q‖p) ≤ {budget:g} nats, of seed {seed}."
    write_file(directory.answers, answers_document(setup.base.recipe.name, prompts, compared, missing))


def _of_seed(chosen: list[Choice], seed: int) -> Choice | None:
    return next((choice for choice in chosen if choice.finished.run.seed == seed), None)


def _column(setup: ComparisonSetup, plan: ComparisonPlan, choice: Choice) -> list[Answer]:
    tested = choice.tested(setup.directory)
    assert tested is not None, "only tested versions are read"
    return _answers(tested, _texts(setup, plan, choice, choice.version))


def _texts(setup: ComparisonSetup, plan: ComparisonPlan, choice: Choice, version: int) -> list[Text]:
    run = choice.finished.run
    resolved = setup.base.derived(run_recipe(setup.base.saved, run, setup.directory, plan.request.pairs))
    place = setup.directory.run(run.name)
    return read_texts(resolved.recipe, resolved.run_id, place, setup.groups(run.seed), [version])[version]


def _answers(tested: EvaluatedVersion, texts: list[Text]) -> list[Answer]:
    names = ["reward", *(name for name in tested.outcomes.column_names if name.startswith("scores."))]
    rows = tested.outcomes.select(names).to_pylist()
    return [
        Answer(text.output, {name.removeprefix("scores."): value for name, value in row.items()})
        for text, row in zip(texts, rows, strict=True)
    ]
