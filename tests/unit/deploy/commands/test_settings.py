import json

import jsonschema
import pytest
import yaml

from brain_align.common.config.objectives import OBJECTIVE_NAMES
from brain_align.common.config.recipe import Recipe
from brain_align.common.config.reference import all_sections
from brain_align.common.config.validation import parse_recipe
from brain_align.common.errors import UserError
from brain_align.deploy.cli import main
from brain_align.deploy.commands.settings import page, schema, sections_below
from tests.locations import ROOT
from tests.unit.factories import recipe_settings

EXAMPLES = [section.example for section in all_sections() if section.example]


def names_below(prefix: str) -> set[str]:
    return {setting.name for section in sections_below(prefix) for setting in section.settings}


@pytest.mark.parametrize(("path", "current"), [("recipe.md", page), ("recipe.schema.json", schema)])
def test_the_reference_in_the_docs_is_current(path, current):
    assert (ROOT / "docs" / path).read_text(encoding="utf-8") == current(), "run `make docs`"


def test_every_setting_is_described_and_every_section_too():
    sections = list(all_sections())
    assert all(section.summary for section in sections)
    assert not [setting.name for section in sections for setting in section.settings if not setting.description]


def flat(settings, prefix=""):
    for name, value in settings.items():
        if isinstance(value, dict) and value and name != "vllm":
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_every_setting_of_a_whole_recipe_is_in_the_reference():
    everything = recipe_settings(
        prepare={"kind": "demo"},
        sampler={"autoscale": {"max": 3}},
        policy={"model": "m", "adapter": {}},
        objective={"name": "dpo+nll"},
        tracking={"wandb": {}, "trackio": {}, "mlflow": {}},
        scorers={"NAME": {"kind": "tldr", "path": "p"}, "reward": {"kind": "function", "function": "m:f"}},
        rewards={"NAME2": {"kind": "min", "weights": {"NAME": 1, "reward": 1}}},
    )
    dumped = parse_recipe(everything, "everything").model_dump(mode="json")
    dumped["rewards"]["NAME2"]["weights"] = None
    named = {name.replace("scorers.reward", "scorers.NAME").replace("NAME2", "NAME") for name in flat(dumped)}
    assert named == named & names_below("")


def test_every_kind_and_objective_has_a_section():
    kinds = {kind for section in all_sections() if section.name == "objective" for kind in section.kinds}
    assert kinds == {*OBJECTIVE_NAMES, "module:function"}


def merged(old, new):
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return {**old, **{name: merged(old.get(name), value) for name, value in new.items()}}


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_valid_recipes_and_pass_the_schema(example):
    base = recipe_settings(
        scorers={"helpful": {"kind": "hh", "path": "p"}, "length": {"kind": "function", "function": "m:f"}},
        objective={"reward": "helpful"},
    )
    part = yaml.safe_load(example)
    if "quantization" in part.get("policy", {}):
        base = merged(base, {"learner": {"zero_stage": 2}})
    settings = merged(base, part)
    parse_recipe(settings, "example")
    jsonschema.validate(settings, json.loads(schema()))


@pytest.mark.parametrize("path", sorted((ROOT / "deploy/recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_pass_the_schema(path):
    jsonschema.validate(yaml.safe_load(path.read_text()), json.loads(schema()))


def test_the_schema_refuses_what_the_recipe_refuses():
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(recipe_settings(sampling={"n": 1}), json.loads(schema()))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(recipe_settings(sampling={"m": 1}), json.loads(schema()))


def test_a_prefix_selects_a_section_or_one_setting(capsys):
    assert names_below("sampling") >= {"sampling.n", "sampling.top_p"}
    assert all(name.startswith("sampling.") for name in names_below("sampling"))
    assert names_below("scorers.mine.timeout") == {"scorers.NAME.timeout"}
    assert main(["settings", "sampling.n"]) == 0
    assert "outputs per prompt" in capsys.readouterr().out
    assert main(["settings", "--schema"]) == 0
    assert set(json.loads(capsys.readouterr().out)["properties"]) == set(Recipe.model_fields)


def test_without_a_prefix_each_section_is_listed_once_and_no_single_settings(capsys):
    assert main(["settings"]) == 0
    out = capsys.readouterr().out
    listed = [line.split("  ")[0] for line in out.splitlines() if line and not line.startswith((" ", "brain "))]
    sections = [section.name for section in all_sections() if not section.kinds and section.name]
    assert listed == ["name, seed", *sections]
    assert "sampling.top_p" not in out
    assert "brain settings sampling: one section" in out


@pytest.mark.parametrize(
    ("prefix", "hint"),
    [
        ("sampling.m", "did you mean sampling.n"),
        ("sampler.n", "did you mean sampling.n?"),
        ("lr", "did you mean learner.learning_rate?"),
        ("zzz", "sections: run, store, "),
    ],
)
def test_an_unknown_prefix_is_refused_with_the_nearest_names(prefix, hint, capsys):
    assert main(["settings", prefix]) == 2
    assert hint in capsys.readouterr().err
    with pytest.raises(UserError):
        sections_below(prefix)
