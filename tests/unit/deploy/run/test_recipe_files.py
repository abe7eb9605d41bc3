"""Recipes that nobody writes in good faith: with secrets, too deep, too large, or huge by aliases."""

import re
import shlex
import time
from pathlib import Path

import pytest
import yaml

from brain_align.common.errors import UserError
from brain_align.deploy import cli
from brain_align.deploy.commands.arguments import parsed
from brain_align.deploy.run.recipe_files import load_recipe
from brain_align.deploy.run.resolve import with_world
from brain_align.deploy.run.yaml_text import LARGEST, dump_yaml, load_yaml
from tests.locations import ROOT
from tests.unit.factories import recipe_settings

SECRET = "AKIA4SECRET"
HTTP = {"kind": "http", "url": f"http://user:{SECRET}@host/score"}


def refusal(recipe: object, *overrides: str) -> str:
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        load_recipe(recipe, overrides)  # type: ignore[arg-type]
    assert time.monotonic() - began < 5 and len(str(error.value)) < 200_000
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "overrides"),
    [
        ({"store": {"uri": f"s3://KEY:{SECRET}@bucket/x"}}, []),
        ({"store": {"uri": f"s3:/KEY:{SECRET}@bucket/x"}}, []),
        ({"scorers": {"reward": HTTP}}, []),
        ({"scorers": {"reward": {**HTTP, "nonsense": 1}}, "typo": 1}, ["seed=x"]),
        ({"data": {"train": {"path": f"https://{SECRET}@host/x"}, "validation": [f"s3://a:{SECRET}@b"]}}, []),
        ({}, [f"store.uri=s3://KEY:{SECRET}@bucket/x"]),
        ({}, [f"store={{uri: 's3://KEY:{SECRET}@bucket/x'}}", "seed=x"]),
        ({}, [f"store.uri.x=s3:/KEY:{SECRET}@bucket/x"]),
        ({}, [f"scorers.reward.url=https://host/?token={SECRET}"]),
        ({"scorers": {"reward": {"kind": "http", "url": "http://h/x", "token_variable": f"sk-{SECRET}"}}}, []),
        ({"sampler": {"vllm": {"hf_token": SECRET}}}, []),
    ],
)
def test_a_secret_is_refused_and_not_repeated(changes, overrides, tmp_path: Path):
    settings = recipe_settings(**changes)
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_yaml(settings))
    for recipe in (settings, file):
        assert SECRET not in refusal(recipe, *overrides)


def test_a_run_of_before_with_keys_in_its_uri_is_still_read(tmp_path: Path):
    uri = f"s3://KEY:{SECRET}@bucket/x"
    (tmp_path / "config.yaml").write_text(dump_yaml(recipe_settings(store={"uri": uri})))
    assert load_recipe(tmp_path).store.uri == uri
    assert load_recipe(tmp_path, ["store.uri=s3://bucket/x"]).store.uri == "s3://bucket/x"


def doubled(levels: int, merge: str) -> str:
    lines = ["x0: &x0 {a: 1, b: 2}", *(f"x{n}: &x{n} {merge.format(n - 1)}" for n in range(1, levels))]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000 + "]" * 5000,
        "a: " * 40 + "1",
        "\n".join(" " * depth + "a:" for depth in range(900)),
        "a: &a [*a]",
        "a: &a {b: *a}",
        doubled(40, "[*x{0}, *x{0}]"),
        doubled(40, "{{<<: [*x{0}, *x{0}]}}"),
        "seed: 0x" + "f" * 5000,
        "seed: " + "9" * 5000,
        "seed: " + "1:" * 3000 + "1",
        "\n".join(f"key{n}: 1" for n in range(3000)),
        f"{'k' * 100_000}: 1",
        f"seed: {'v' * 100_000}",
        "x" * (LARGEST + 1),
        'name: "a\\0b"',
        'name: "\\ud83d"',
        "? [a, b]\n: 1",
        "? {a: b}\n: 1",
        "1: 2",
        "null: {}",
        "- 1",
        "!!python/object/apply:os.system ['true']",
        "!!binary x",
        "!!set {a, b}",
        "data: !!timestamp 2024-13-45",
        "%YAML 9.9\n---\na",
        "a: 1\n---\nb: 2",
        "\x1b[2J",
        "",
    ],
)
def test_whatever_a_file_holds_is_refused_in_short_sentences(text: str, tmp_path: Path):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    assert len(refusal(file)) < 110_000
    assert refusal(recipe_settings(), f"sampling={text}")


@pytest.mark.parametrize("path", sorted((ROOT / "deploy/recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_the_commands_at_the_head_of_shipped_recipes_are_valid(path: Path):
    head = re.sub(r"\\\n#", "", path.read_text().partition("\nname:")[0])
    for line in head.splitlines():
        if line.startswith("#   brain "):
            options = parsed(cli._parser(), shlex.split(line.removeprefix("#   "), comments=True)[1:])
            with_world(load_recipe(ROOT / "deploy/recipes" / Path(options.recipe).name, options.overrides), Path("/w"))


def test_a_file_without_an_end_is_refused():
    assert "YAML" in refusal("/dev/zero")


def test_the_comparison_shares_the_world_of_its_recipe():
    compared, run = (load_recipe(ROOT / f"deploy/recipes/{name}-smollm.yaml") for name in ("compare", "hh"))
    assert (compared.prepare, compared.scorers) == (run.prepare, run.scorers), "else it would be prepared a second time"


def test_aliases_of_ordinary_recipes_are_read():
    base = "a: &a {x: 1, y: [1, 2]}\nb: {<<: *a, z: *a}\nc: [*a, *a]"
    assert load_yaml(base)["b"] == {"x": 1, "y": [1, 2], "z": {"x": 1, "y": [1, 2]}}
    with pytest.raises(yaml.YAMLError, match="too deeply"):
        load_yaml("a: &a [*a]")
