"""From raw settings to a `Recipe`, or to one clear sentence for each mistake in them."""

import copy
import difflib
import re
import reprlib
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from brain_align.common.config.objective_sections import ObjectiveBase
from brain_align.common.config.objectives import OBJECTIVE_NAMES
from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError

_NO_SECTION = ("model_type", "model_attributes_type", "dict_type")
"""pydantic's names for a value in place of a section."""

_MOST_LINES = 50
_LONGEST_LINE = 2000

_ELSEWHERE = {
    "lr": "learner.learning_rate",
    "lr_scheduler_type": "learner.schedule",
    "gradient_checkpointing": "learner.activation_checkpointing",
    "num_processes": "learner.ranks",
    "save_steps": "learner.checkpoint_steps",
    "batch_size": "algorithm.batch_prompts",
    "train_batch_size": "algorithm.batch_prompts",
    "per_device_train_batch_size": "algorithm.batch_prompts",
    "epochs": "algorithm.rounds",
    "num_train_epochs": "algorithm.rounds",
    "max_steps": "algorithm.updates_per_round",
    "beta": "objective.temperature",
    "kl_coef": "objective.temperature",
    "init_kl_coef": "objective.temperature",
    "loss_type": "objective.name",
    "num_generations": "sampling.n",
    "max_new_tokens": "sampling.max_tokens",
    "max_completion_length": "sampling.max_tokens",
    "max_prompt_length": "data.max_prompt_tokens",
    "dataset": "data.train",
    "train_file": "data.train",
    "tensor_parallel_size": "sampler.tensor_parallel",
    "model_name_or_path": "policy.model",
    "lora_r": "policy.adapter.r",
    "lora_alpha": "policy.adapter.alpha",
    "load_in_4bit": "policy.quantization",
    "torch_dtype": "policy.dtype",
    "reward_model": "scorers.NAME.path",
    "reward_funcs": "scorers.NAME.function",
    "eval_steps": "evaluation.every_rounds",
    "output_dir": "run.dir",
}
"""Settings of other libraries (TRL, OpenRLHF, verl, transformers), and those that they correspond to here."""

_POLICY_GRADIENTS = ("ppo", "grpo", "dr-grpo", "dapo", "reinforce", "reinforce++")
_NOT_IMPLEMENTED = {
    **dict.fromkeys(
        _POLICY_GRADIENTS,
        "the closest is brain, which also trains on groups of the policy's own samples (its optimum is RLHF's, with "
        "objective.temperature as the KL coefficient); rloo and gspo are clipped policy gradients",
    ),
    "online-dpo": "it is cdpo with objective.epsilon=0 and algorithm.proposal=updated",
    "orpo": "the closest is simpo, which needs no reference model either",
    "kto": "the closest is dpo, if there are pairs",
}
"""Well-known objectives that do not exist here, and the closest that do."""


def parse_recipe(settings: Mapping[str, Any], source: str) -> Recipe:
    """Validate nested settings as a recipe; `source` is their name in messages, e.g. that of the file.

    Raises:
        UserError: settings are unknown, out of range or contradictory; one line for each, with the setting, the reason
            and the closest valid name.
    """
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        problems = [*_sentences(error), *_further_contradictions(settings, error)]
        lines = [f"{source}: {problem}"[:_LONGEST_LINE] for problem in problems[:_MOST_LINES]]
        if len(problems) > _MOST_LINES:
            lines.append(f"{source}: {len(problems) - _MOST_LINES} further settings are refused.")
        raise UserError("\n".join(lines)) from None


def _sentences(error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        location = [str(part) for part in problem["loc"]]
        if problem["type"] == "value_error":
            field = ".".join(_without_tags(location))
            for sentence in problem["msg"].removeprefix("Value error, ").splitlines():
                yield f"{field}: {sentence}." if field else f"{sentence}."
        else:
            yield _sentence(dict(problem), location)


def _further_contradictions(settings: Mapping[str, Any], error: ValidationError) -> Iterator[str]:
    """Yield the contradictions between settings that pydantic does not reach because single settings are refused.

    They are those of the recipe without the refused settings, except where one of these is mentioned.
    """
    left, refused = copy.deepcopy(dict(settings)), set()
    while True:
        for problem in error.errors():
            path = _without_tags([str(part) for part in problem["loc"]])
            if not path or not _remove(left, path):
                return
            refused.add(path[-1])
        try:
            Recipe.model_validate(left)
            return
        except ValidationError as further:
            if any(problem["type"] != "value_error" for problem in further.errors()):
                return  # what was removed is required
            yield from (line for line in _sentences(further) if not refused & set(re.findall(r"\w+", line)))
            error = further


def _remove(settings: Any, path: list[str]) -> bool:
    """Remove a setting; return whether it was there."""
    for section in path[:-1]:
        settings = settings.get(section) if isinstance(settings, dict) else None
    return isinstance(settings, dict) and settings.pop(path[-1], settings) is not settings


def _sentence(problem: dict[str, Any], location: list[str]) -> str:
    field = ".".join(_without_tags(location))
    if problem["type"] == "extra_forbidden":
        return f"unknown setting {field}; {_hint(location)}"
    if problem["type"] == "missing":
        return f"setting {field} is required and missing."
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        if location == ["objective"]:
            return _unknown_objective(problem["input"])
        kinds = [tag for section in _walk(location)[1] for tag in _tags(section)]
        return f"{field}.kind must be one of {', '.join(kinds)}."
    message = problem["msg"]
    if problem["type"] in _NO_SECTION:
        message = f"it is a section; write {field}.setting=value"
    value = "…" if location[-1:] == ["token_variable"] else _shown(problem["input"])  # perhaps the token itself
    return f"{field}={value} is refused: {message[0].lower()}{message[1:]}."


def _shown(value: Any) -> str:
    """Return the value of a refused setting, which may be of any size."""
    short = reprlib.Repr()
    short.maxlevel, short.maxlist, short.maxdict, short.maxlong = 3, 20, 20, 40
    short.maxstring = short.maxother = 200
    return short.repr(value)


def _hint(location: list[str]) -> str:
    """Return the setting that an unknown one may stand for, or those that are valid in its place."""
    names = valid_names(location[:-1])
    near = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.6)
    elsewhere = setting_elsewhere(location[-1])
    if not near and elsewhere:
        return f"did you mean {elsewhere}?"
    near = near or difflib.get_close_matches(location[-1], names, n=1, cutoff=0.4)
    if near:
        return f"did you mean {'.'.join(_without_tags(location[:-1]) + near)}?"
    return f"valid: {', '.join(names)}."


def _unknown_objective(settings: Any) -> str:
    name = str(settings.get("name") if isinstance(settings, Mapping) else settings)
    if closest := _NOT_IMPLEMENTED.get(name.lower().replace("_", "-")):
        return f"objective.name={name!r} is not implemented; {closest}."
    near = difflib.get_close_matches(name, OBJECTIVE_NAMES, n=1, cutoff=0.4)
    meant = f"did you mean {near[0]}? " if near else ""
    return (
        f"objective.name={name!r} is not an objective; {meant}Available: {', '.join(OBJECTIVE_NAMES)}, or your own as "
        f"module:function."
    )


def setting_elsewhere(name: str) -> str | None:
    """Return the dotted name of the setting that corresponds to one of another library, or None."""
    return _ELSEWHERE.get(name)


def valid_names(location: list[str]) -> list[str]:
    """Return the names of the settings below a dotted location, given as its parts.

    If a section has several kinds, the next part selects one by its tag, as in pydantic's errors.
    """
    sections = _walk(location)[1]
    return list(dict.fromkeys(name for section in sections for name in section.model_fields))


def _without_tags(location: list[str]) -> list[str]:
    """Return a location as users write it, without the tags that pydantic's errors add for kinds of sections."""
    return _walk(location)[0]


def _walk(location: list[str]) -> tuple[list[str], list[type[BaseModel]]]:
    """Return a location's parts without tags, and the sections there: several if the kind is open, else one or none."""
    sections: list[type[BaseModel]] = [Recipe]
    parts: list[str] = []
    is_named = False  # the next part is a user's own name: scorers.NAME
    for part in location:
        tagged = [section for section in sections if part in _tags(section)]
        if is_named:
            is_named = False
        elif tagged:
            sections = tagged
            continue
        else:
            annotations = [
                section.model_fields[part].annotation for section in sections if part in section.model_fields
            ]
            is_named = any(typing.get_origin(annotation) is dict for annotation in annotations)
            sections = [section for annotation in annotations for section in sections_of(annotation)]
        parts.append(part)
    return parts, sections


def _tags(section: type[BaseModel]) -> tuple[str, ...]:
    if issubclass(section, ObjectiveBase):
        return (section.__name__,)
    field = section.model_fields.get("kind")
    return typing.get_args(field.annotation) if field else ()


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """Return the section classes inside an annotation such as `Section | None` or `dict[str, Section]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inner in typing.get_args(annotation) for section in sections_of(inner)]
