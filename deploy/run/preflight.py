"""Checks before anything is started: scorers, tokenizer, context length, prompts or stored groups."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.config.inputs import PromptSource
from brain_align.common.config.objective_sections import RsoSection
from brain_align.common.config.recipe import Recipe
from brain_align.common.data.prompt_set import PromptSet
from brain_align.common.data.prompts import Encode
from brain_align.common.errors import DamagedPartError, Problems, UserError
from brain_align.common.identity import digest, digest_of_many
from brain_align.common.nn.models.configuration import context_length, load_config
from brain_align.common.nn.models.policy_check import check_policy
from brain_align.common.nn.prompt_encoding import TextEncoding, policy_encoding
from brain_align.common.requests import Prompt
from brain_align.common.schemas import HUMAN, PROPOSAL
from brain_align.common.store.overlay import Store
from brain_align.deploy.run.delivery import DeliveryChoice, delivery_of
from brain_align.deploy.run.directory import RunDirectory, has_begun, rendered_at
from brain_align.deploy.run.prompt_data import named, read_prompts
from brain_align.deploy.run.run_plan import RunPlan, prompts_trial, sampling_work
from brain_align.deploy.run.stored_inputs import StoredInputs, lacking_scores, read_stored_inputs
from brain_align.deploy.run.trackers.open_trackers import check_trackers
from brain_align.deploy.schedule.evaluation import Split
from brain_align.deploy.worlds.pretrained.report import warnings_of
from brain_align.learner.objectives.catalogue import make_objective
from brain_align.scorer.catalogue import check_scorer, kind_of
from brain_align.scorer.scorer import NoValueError

_COMPARED = 16  # groups of a store, whose prompts' token ids are compared with this start's


@dataclass(frozen=True)
class Inputs:
    """The run's prompts, and notes on them for the user."""

    train: PromptSet
    held_back: dict[Split, list[Prompt]]
    notes: list[str]
    encoded: Mapping[str, str | None] = field(default_factory=dict)  # what identifies the prompts' token ids
    template: str | None = None  # the chat template in which they were rendered
    delivery: DeliveryChoice | None = None  # how versions get into samplers

    def digest(self) -> str:
        """Return the digest of all prompts as texts, by their ids, which depend on place and text."""
        held_back = [[(prompt.prompt_id, prompt.gold_text) for prompt in split] for split in self.held_back.values()]
        return digest(digest_of_many(self.train.identities()), held_back)

    def facts(self) -> dict[str, str | None]:
        """Return what must be the same whenever the run is resumed."""
        return {"prompts": self.digest(), "source": None, **self.encoded}

    def trial(self) -> pa.RecordBatch | None:
        """Return groups to try scorers on."""
        return prompts_trial(self.train, self.held_back)

    def work(self, recipe: Recipe, run_id: str, directory: RunDirectory) -> RunPlan:
        """Plan sampling, scoring, training and evaluation."""
        plan = sampling_work(recipe, run_id, directory, self.train, self.held_back)
        check_stored_prompts(plan.store, self.train)
        return replace(plan, delivery=self.delivery)


def check_stored_prompts(store: Store, prompts: PromptSet) -> None:
    """Refuse a store with groups of these prompts that have other token ids: its run had another template or tokenizer.

    A run directory remembers that (`token_ids`), but a store may outlive its directory, or lie elsewhere.
    """
    columns = ["prompt_id", "prompt_text", "prompt_token_ids"]
    ids = store.index()["group_id"].slice(0, _COMPARED).to_pylist()
    rows: list[dict[str, Any]] = []
    with suppress(DamagedPartError):  # which whoever needs its rows will meet
        for batch in store.batches(group_ids=ids, columns=columns):
            rows += batch.to_pylist()
    for row in rows:
        prompt = prompts.find(row["prompt_id"], row["prompt_text"])
        if prompt is not None and list(prompt.token_ids) != row["prompt_token_ids"]:
            raise UserError(
                f"The store {store.root} holds groups of this run whose prompts had other token ids (the first: prompt "
                f"{prompt.prompt_id}): the tokenizer or the chat template has changed since; restore it, or set "
                f"another store."
            )


def check_inputs(recipe: Recipe, directory: RunDirectory, facts: Path | None = None) -> Inputs | StoredInputs:
    """Check all that a run needs, and read its prompts or its store; a UserError names all that does not fit.

    `facts` is the file with the facts of what is resumed; default: those of the run in the directory.
    """
    make_objective(recipe.objective)
    if facts is None and has_begun(directory):
        facts = directory.facts
    now = datetime.now().replace(microsecond=0)
    sampled = recipe.sampler.replicas > 0
    begun = rendered_at(facts) if facts and sampled else None
    inputs: Inputs | StoredInputs = _check_prompts(recipe, begun or now) if sampled else _check_store(recipe, directory)
    inputs.notes.extend(warnings_of(recipe))
    return inputs


def _check_store(recipe: Recipe, directory: RunDirectory) -> StoredInputs:
    problems = Problems()
    inputs = read_stored_inputs(recipe, directory, problems)
    with problems.noted():
        inputs.notes.extend(check_trackers(recipe))
    with problems.noted():
        _check_gold(recipe, inputs)
    for name, count in lacking_scores(recipe, inputs).items():
        need = f"{count} of the {inputs.index.num_rows} groups of {inputs.source.store.root} lack values of {name!r}"
        with problems.noted():
            _check_scores_can_be_added(recipe, name, need)
            inputs.notes.append(f"{need}; its scorer adds them to this run's own store")
    with problems.noted():
        _check_first_group(recipe, inputs)
    with problems.noted():
        inputs.notes.extend(check_policy(recipe.policy, sampled=False))
    if recipe.data.templated or recipe.objective.needs_gold:
        with problems.noted():
            encoding = policy_encoding(recipe.policy, recipe.data)
            inputs.notes.extend(encoding.notes())
            inputs = replace(inputs, template=encoding.template)
            if recipe.objective.needs_gold:
                inputs = replace(inputs, encoded={"token_ids": encoding.digest()})
    problems.raise_any()
    return inputs


def _check_scores_can_be_added(recipe: Recipe, name: str, need: str) -> None:
    if name == HUMAN:
        raise UserError(
            f"{need}, human preference pairs, which objective.name={recipe.objective.name} trains on; make a store of "
            f"pairs from a file with the columns prompt, chosen and rejected (brain store import-pairs), or choose "
            f"dpo-sft, whose pairs the reward ranks."
        )
    if name == PROPOSAL:
        raise UserError(
            f"{need}, which only the run that published those versions can compute; set logprobs.proposal=sampler."
        )
    try:
        if name in recipe.scorers:
            check_scorer(name, recipe.scorers[name])
    except UserError as error:
        raise UserError(f"{need}, so that its scorer must run: {error}") from None


def _check_first_group(recipe: Recipe, inputs: StoredInputs) -> None:
    """Refuse a store whose groups are too small for the objective, or were sampled with another tokenizer."""
    store = inputs.source.store
    vocabulary = load_config(recipe.policy.model).vocab_size
    for batch in store.batches(group_ids=inputs.index["group_id"].slice(0, 1).to_pylist()):
        if isinstance(recipe.objective, RsoSection) and (refusal := recipe.objective.refusal(len(batch["outputs"][0]))):
            raise UserError(f"{store.root}: {refusal}.")
        largest = pc.max(pc.list_flatten(batch["prompt_token_ids"])).as_py()
        if largest >= vocabulary:
            raise UserError(
                f"The store {store.root} has token id {largest}, but {recipe.policy.model} knows {vocabulary} tokens: "
                f"it was sampled with another tokenizer; set policy.model to a model of the store's tokenizer."
            )


def _check_gold(recipe: Recipe, inputs: StoredInputs) -> None:
    if not recipe.objective.needs_gold:
        return
    ids = inputs.index["group_id"].to_pylist()
    batches = inputs.source.store.batches(group_ids=ids, columns=["group_id", "gold_text"])
    lacking = sum(batch["gold_text"].null_count for batch in batches)
    if lacking:
        raise UserError(
            f"{lacking} of the {len(ids)} groups of {inputs.source.store.root} have no gold_text, which objective.name="
            f"{recipe.objective.name} with sft_on=gold trains on; sample them with data.gold_column set, or set "
            f"objective.sft_on=best (chosen for dpo+nll)."
        )


def _check_prompts(recipe: Recipe, moment: datetime) -> Inputs:
    problems = Problems()
    for name, scorer in recipe.scorers.items():
        with problems.noted():
            check_scorer(name, scorer)
    encoding: TextEncoding | None = None  # where the policy is at fault, the files are checked all the same
    with problems.noted():
        encoding = checked_encoding(recipe, moment)
    notes = _notes_on_batches(recipe)
    with problems.noted():
        notes += check_trackers(recipe)
    with problems.noted():
        notes += check_policy(recipe.policy, sampled=True)
    read: dict[str, PromptSet] = {}
    for split in ("train", "validation", "test"):
        with problems.noted():
            read[split] = read_split(recipe, split, getattr(recipe.data, split), encoding, notes)
    if "train" in read and recipe.algorithm.prompts_per_round > len(read["train"]):
        with problems.noted():
            raise UserError(
                f"algorithm.prompts_per_round={recipe.algorithm.prompts_per_round} is more than the "
                f"{len(read['train'])} usable prompts of {named(recipe.data.train)}; lower it, or provide more prompts."
            )
    problems.raise_any()
    sizes = recipe.evaluation
    wanted: dict[Split, int] = {"validation": sizes.validation_prompts, "test": sizes.test_prompts}
    for held, count in wanted.items():
        if len(read[held]) < count:
            notes.append(f"{held}: only {len(read[held])} prompts, evaluation.{held}_prompts asks for {count}")
    assert encoding is not None, "else there was a problem"
    held_back = {held: read[held][:count] for held, count in wanted.items()}
    ids = [[prompt.token_ids for prompt in split] for split in held_back.values()]
    encoded = {
        "token_ids": digest(encoding.digest(), read["train"].token_digest(), ids),
        "rendered_at": moment.isoformat() if encoding.clock.was_asked else None,
    }
    delivery = delivery_of(recipe)
    notes += [*encoding.notes(), *delivery.notes]
    return Inputs(read["train"], held_back, notes, encoded, encoding.template, delivery)


def checked_encoding(recipe: Recipe, moment: datetime) -> TextEncoding:
    """Check that the policy's tokenizer and context fit, and return the encoding of texts."""
    encoding = policy_encoding(recipe.policy, recipe.data, moment)
    context = context_length(load_config(recipe.policy.model))
    needed = recipe.data.max_prompt_tokens + recipe.sampling.max_tokens
    if needed > context:
        raise UserError(
            f"data.max_prompt_tokens + sampling.max_tokens = {needed} is more than the context of {recipe.policy.model}"
            f" ({context} tokens); lower one of them."
        )
    return encoding


def _uncounted(texts: Sequence[str]) -> list[list[int]]:
    return [[0]] * len(texts)


def read_split(
    recipe: Recipe, split: str, source: PromptSource, encoding: TextEncoding | None, notes: list[str]
) -> PromptSet:
    """Read the prompts of a split, and check that all scorers can read them; add a note on what was skipped."""
    encode: Encode = _uncounted if encoding is None else encoding.prompts
    trains_on_gold = split == "train" and recipe.objective.needs_gold
    check_gold = encoding.completion if encoding and trains_on_gold and not encoding.knows_all_tokens else None
    found = read_prompts(recipe.data, source, encode, check_gold)
    _check_turns(recipe, source, found)
    _check_readable(recipe, source, found)
    reasons = (
        (found.too_long, f"longer than {recipe.data.max_prompt_tokens} tokens"),
        (found.empty, "empty"),
        (found.without_gold, f"without a reference output in {recipe.data.gold_column!r}"),
    )
    skipped = [f"{many} {what}" for many, what in reasons if many.count]
    notes.append(
        f"{split}: {len(found):,} prompts of {named(source)}" + (f"; skipped {', '.join(skipped)}" if skipped else "")
    )
    return found


def _check_turns(recipe: Recipe, source: PromptSource, prompts: PromptSet) -> None:
    """Refuse scorers that would read the messages of a conversation as the prompt's text."""
    if not recipe.data.templated or not prompts.conversations:
        return
    for name, scorer in recipe.scorers.items():
        if not kind_of(scorer).reads_turns(scorer):
            raise UserError(
                f"scorers.{name} ({scorer.kind}) reads prompts as plain text, but {prompts.conversations} prompts of "
                f"{named(source)} are conversations of several turns; use a scorer that reads turns, such as a "
                f"classifier with chat_template=true."
            )


def _check_readable(recipe: Recipe, source: PromptSource, prompts: PromptSet) -> None:
    """Refuse prompts that a scorer could read no output of: its chat template may refuse what the policy's takes."""
    for name, scorer in recipe.scorers.items():
        if (read := kind_of(scorer).reading(scorer)) is None:
            continue
        refused: list[tuple[int, NoValueError]] = []
        for row, text in prompts.texts():
            try:
                read(text)
            except NoValueError as error:
                refused.append((row, error))
        if refused:
            row, reason = refused[0]
            others = f", and {len(refused) - 1} more prompts," if refused[1:] else ""
            raise UserError(
                f"scorers.{name} ({kind_of(scorer).source(scorer)}) cannot read {named(source)}, row {row}{others} "
                f"({reason}); fix or remove these rows, or use a scorer that reads them."
            )


def _notes_on_batches(recipe: Recipe) -> list[str]:
    """Return a note where a round does not train each of its groups equally often."""
    algorithm = recipe.algorithm
    trained, sampled = algorithm.updates_per_round * algorithm.batch_prompts, algorithm.prompts_per_round
    if algorithm.buffer == "accumulate" or (trained % sampled == 0 and sampled % algorithm.batch_prompts == 0):
        return []
    return [
        f"note: a round samples {sampled} groups and trains {trained} (updates_per_round x batch_prompts), so that "
        f"some groups train more often than others, or never"
    ]
