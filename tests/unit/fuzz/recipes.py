"""Recipes of wrong types, unknown names, any depth, size and characters; overrides likewise."""

from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from hypothesis import strategies as st

from brain_align.common.config.reference import all_sections
from brain_align.common.errors import UserError
from tests.unit.factories import recipe_settings
from tests.unit.fuzz.command import ended
from tests.unit.fuzz.mutations import CHANGES, changed

NAMES = sorted({setting.name.replace("NAME", "reward") for section in all_sections() for setting in section.settings})
SHORT = [
    "",
    " ",
    "\0",
    "\ud83d",
    "\u202e\x1b[2J",
    "[/INST]",
    "s3://a:b@c",
    "../..",
    "/dev/zero",
    "~",
    "{world}",
    "{name}",
]
LONG = [
    "x" * 5000,
    "é" * 300,
    "a/b:c",
    "none",
    "null",
    "0x" + "f" * 5000,
    "builtins:len",
    "demo",
    "/proc/self/mem",
    "%s",
]
ODD = [*SHORT, *LONG, "demo", "%s"]
TEXTS = st.sampled_from(ODD) | st.text(max_size=20)
NUMBERS = (
    st.integers() | st.floats() | st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**4000, 1e308, float("nan"), 1e-320])
)
LEAVES = TEXTS | NUMBERS | st.none() | st.booleans() | st.dates() | st.binary(max_size=4)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS | st.integers(), inner, max_size=4),
    max_leaves=8,
)
PATHS = st.sampled_from(NAMES) | st.sampled_from(
    ["unknown", "data.typo", "scorers.second.kind", "a.b.c.d", "data.train.split.x"]
)
EDITS = st.lists(st.tuples(PATHS, VALUES), max_size=4)
OVERRIDES = st.lists(st.builds("{}={}".format, PATHS, TEXTS | NUMBERS.map(str)) | TEXTS, max_size=2)
STRUCTURES = [
    "[" * 3000,
    "a: " + "{b: " * 200,
    "\n".join(["x0: &x0 [1, 2]", *(f"x{n}: &x{n} [*x{n - 1}, *x{n - 1}]" for n in range(1, 30))]),
    "\n".join(["x0: &x0 {a: 1}", *(f"x{n}: &x{n} {{<<: [*x{n - 1}, *x{n - 1}]}}" for n in range(1, 30))]),
    "sampler: &s {vllm: *s}",
    "? [1, 2]\n: 3",
    "!!python/name:os.system x",
    "%TAG ! x\n---\na",
]
COMMANDS = (
    ["run"],
    ["doctor"],
    ["score", "--input", "rows.jsonl", "--output", "scored.jsonl"],
    ["compare", "--out", "compared"],
    ["store", "import-pairs", "--input", "pairs.jsonl", "--output", "pairs"],
)
EXAMPLES = st.tuples(
    st.sampled_from(COMMANDS),
    EDITS,
    st.none() | st.none() | st.sampled_from(STRUCTURES),
    st.just([]) | st.just([]) | st.lists(CHANGES, min_size=1, max_size=2),
    OVERRIDES,
)


def prepare(room: Path) -> None:
    Path("rows.jsonl").write_text('{"prompt": "p", "outputs": ["a"]}\n')
    Path("pairs.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')


def attempt(room: Path, example: Any) -> None:
    command, edits, structure, changes, overrides = example
    settings = recipe_settings(store={"uri": "store"})
    for path, value in edits:
        put(settings, path.split("."), value)
    try:
        text = yaml.safe_dump(settings)
    except ValueError:  # an integer of thousands of digits
        text = "seed: 1"
    recipe = Path("recipe.yaml")
    recipe.write_bytes(changed(f"{text}\n{structure or ''}".encode("utf-8", "surrogatepass"), changes))
    given = [one.replace("\0", "") for one in overrides if one.replace("\0", "")]
    given = [one for one in given if not one.startswith("-")]
    with (
        mock.patch("brain_align.deploy.worlds.build.ensure_world", side_effect=UserError("Nothing is built here.")),
        mock.patch("ray.init", side_effect=ConnectionError("nothing is started here")),
    ):
        ended(*command, str(recipe), *given)


def put(settings: Any, path: list[str], value: Any) -> None:
    *sections, last = path
    for section in sections:
        settings = settings.setdefault(section, {}) if isinstance(settings, dict) else {}
    if isinstance(settings, dict):
        settings[last] = value
