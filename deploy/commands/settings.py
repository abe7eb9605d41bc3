"""Look up the settings of a recipe.

Prints the sections of a recipe, or values, default and meaning of the settings below a prefix. All settings at once
are in docs/recipe.md, and printed by --markdown.

Examples:
  brain settings
  brain settings sampling
  brain settings sampling.n
  brain settings --schema > recipe.schema.json
"""

import argparse
import difflib
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from rich import box
from rich.table import Table
from rich.text import Text

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.reference import SectionReference, Setting, all_sections
from brain_align.common.config.validation import setting_elsewhere
from brain_align.common.errors import UserError
from brain_align.deploy.console import PlainConsole, say

_NAMED = ("scorers", "rewards")  # sections whose parts have names of the user's choice

_INTRODUCTION = """\
# Settings of a recipe

<!-- Written by `make docs` from the section classes in common/config. Change those, not this page. -->

A recipe is a YAML file with the sections below. Only `name`, `data`, `policy` and `scorers` are required; everything
else has a default. Any setting can be replaced on the command line by its dotted name:

    brain run recipe.yaml sampling.n=16 learner.learning_rate=3e-5 'data.train={path: org/dataset, split: train}'

`brain settings` lists the sections on the terminal, `brain settings sampling` prints one of them and
`brain settings sampling.n` one setting. Unknown, invalid and contradictory settings are rejected, all at once and with
the closest valid name, before anything starts (`brain doctor recipe.yaml` checks more). `NAME` stands for a name of
your choice. In paths, `{world}` is the directory that `prepare` built.

**In an editor.** [recipe.schema.json](recipe.schema.json) gives completion, checks and descriptions in editors with a
YAML language server (VS Code's YAML extension, Neovim, JetBrains). Write the schema beside your recipe with
`brain settings --schema > recipe.schema.json`, and begin the recipe with

```yaml
# yaml-language-server: $schema=recipe.schema.json
```
"""


GROUP = "Inspect"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "prefix", nargs="?", default="", metavar="PREFIX", help="a section or setting, e.g. sampling or sampling.n"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print the whole reference as Markdown")
    form.add_argument("--schema", action="store_true", help="print the JSON schema with which editors check recipes")


def run(options: argparse.Namespace) -> int:
    """Print the settings; return the exit status.

    Raises:
        UserError: no setting has the prefix.
    """
    if options.schema:
        say(schema(), end="")
    elif options.markdown:
        say(page(), end="")
    elif options.prefix:
        _print(sections_below(options.prefix), PlainConsole())
    else:
        _print_overview(PlainConsole())
    return 0


def schema() -> str:
    """Return the JSON schema of recipes."""
    content = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def page() -> str:
    """Return docs/recipe.md."""
    parts = [_INTRODUCTION]
    for _, alike in groupby(all_sections(), key=lambda section: (section.kinds, section.summary)):
        sections = list(alike)
        parts += [_heading(sections), f"{sections[0].summary}\n"]
        if sections[0].example:
            parts.append(f"```yaml\n{sections[0].example}\n```\n")
        parts += ["| setting | values | default | meaning |\n|---|---|---|---|"]
        parts += [_row(setting) for section in sections for setting in section.settings]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def sections_below(prefix: str) -> list[SectionReference]:
    """Return the sections with settings whose names are, or begin with, a dotted prefix, and only these settings.

    Raises:
        UserError: there are none.
    """
    parts = prefix.split(".")
    if parts[0] in _NAMED and len(parts) > 1:
        parts[1] = "NAME"
    wanted = ".".join(parts)
    found = [
        replace(section, settings=settings)
        for section in all_sections()
        if (settings := tuple(one for one in section.settings if not prefix or f"{one.name}.".startswith(f"{wanted}.")))
    ]
    if not found:
        raise UserError(f"No setting is called {prefix!r}; {_nearest(parts)}")
    return found


def _nearest(parts: Sequence[str]) -> str:
    names = dict.fromkeys(setting.name for section in all_sections() for setting in section.settings)
    sections = dict.fromkeys(name.rpartition(".")[0] for name in names if "." in name)
    same = [name for name in names if name.rpartition(".")[2] == parts[-1]]
    near = difflib.get_close_matches(".".join(parts), [*names, *sections], n=3, cutoff=0.6)
    elsewhere = setting_elsewhere(parts[-1])
    meant = [elsewhere] if elsewhere else same or near
    return f"did you mean {', '.join(meant)}?" if meant else f"sections: {', '.join(sections)}."


def _print_overview(console: PlainConsole) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    for section in all_sections():
        if not section.kinds:  # `objective` stands for all objectives, `scorers.NAME` for all kinds of scorer
            name = section.name or ", ".join(setting.name for setting in section.settings)
            table.add_row(name, f"{section.summary.rstrip('.').partition('. ')[0]}.")
    console.print(table)
    console.print("\nbrain settings sampling: one section; brain settings sampling.n: one setting.")


def _print(sections: Sequence[SectionReference], console: PlainConsole) -> None:
    for section in sections:
        title = section.name + (f" ({', '.join(section.kinds)})" if section.kinds else "")
        console.print(Text.assemble((title, "bold"), "  ", section.summary))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for header in ("setting", "values", "default", "meaning"):
            table.add_column(header, overflow="fold", no_wrap=header == "setting")
        for setting in section.settings:
            name = setting.name.removeprefix(f"{section.name}.")
            table.add_row(name, _values(setting), setting.default, setting.description)
        console.print(table)


def _heading(sections: Sequence[SectionReference]) -> str:
    first = sections[0]
    if not first.name:
        return "## The run itself\n"
    names = ", ".join(f"`{section.name}`" for section in sections)
    if not first.kinds:
        return f"## {names}\n"
    selector = "kind" if first.name.startswith(_NAMED) else "name"
    return f"### {names} with {selector} {', '.join(f'`{kind}`' for kind in first.kinds)}\n"


def _row(setting: Setting) -> str:
    default = setting.default if setting.default == "required" else f"`{setting.default}`"
    cells = (f"`{setting.name}`", _values(setting), default, setting.description)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _values(setting: Setting) -> str:
    return ", ".join(filter(None, (setting.type, setting.bounds)))
