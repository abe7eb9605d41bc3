"""The parser of `brain`: collects the files of a folder as commands; arguments that several commands have."""

import argparse
import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from brain_align.common.printable import printable
from brain_align.common.uris import check_uri
from brain_align.deploy.console import say

_GROUPS = ("Train", "Inspect", "Use", "Maintain", "Data", "Research")  # in this order in help, others last
_OTHER_NAMES = {"train": "run", "resume": "run", "check": "doctor", "list": "ls"}  # what other tools call it
_DASHED = re.compile(r"--([A-Za-z_]\w*(?:\.[\w-]+)+)(=.*)?", re.DOTALL)
_NAME = re.compile(r"[\w.-]+")  # of an option or a setting
_TOP_LEVEL = re.compile(r"--([A-Za-z_]\w*=.*)", re.DOTALL)


class CommandParser(argparse.ArgumentParser):
    """A parser that says in one sentence what is wrong, and which command was probably meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Help, **options)

    def error(self, message: str) -> NoReturn:
        """End the process with status 2 and a sentence."""
        self.exit(2, printable(f"{self.prog}: {message} (see {self.prog} --help)\n"))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            near = difflib.get_close_matches(value, [*action.choices, *_OTHER_NAMES], n=1)
            meant = [name for name in (_OTHER_NAMES.get(found, found) for found in near) if name in action.choices]
            self.error(f"{value!r} is not a command" + (f"; did you mean {meant[0]}?" if meant else ""))
        super()._check_value(action, value)


class _Help(argparse.HelpFormatter):
    """A formatter that wraps paragraphs to the terminal's width, except those with indented lines (examples, lists)."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(one if "\n  " in one else textwrap.fill(one, width) for one in paragraphs)


def add_commands(parser: argparse.ArgumentParser, package: str) -> None:
    """Add a command for each file of a package that has `add`, and for each folder that has `group.py`.

    A command's file has a docstring, which is its help; `GROUP`, the heading under which its parent lists it;
    `add(parser)`, which adds its arguments; and, unless it has commands of its own, `run(options)`, which returns the
    exit status. Without a command the parent prints its help, to which the list of commands is added.
    """
    commands = parser.add_subparsers(metavar="COMMAND", help=argparse.SUPPRESS, parser_class=CommandParser)
    listed: dict[str, list[str]] = {}
    for name, module in _modules(package):
        text = inspect.cleandoc(module.__doc__ or "")
        command = commands.add_parser(name, description=text)
        command.set_defaults(command=getattr(module, "run", None), parser=command)
        module.add(command)
        listed.setdefault(module.GROUP, []).append(f"  {name:13} {text.partition(chr(10))[0].rstrip('.')}")
    listing = "\n\n".join(f"{group}:\n" + "\n".join(lines) for group, lines in sorted(listed.items(), key=_place))
    parser.usage = "%(prog)s COMMAND [argument ...]"
    parser.description = f"{parser.description}\n\n{listing}"
    parser.set_defaults(command=lambda _options: say(parser.format_help(), end=""))


def _modules(package: str) -> list[tuple[str, ModuleType]]:
    """Return the modules of a package's commands by the commands' names."""
    found = []
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        name = f"{package}.{info.name}"
        if info.ispkg:
            name = f"{name}.group"
            if importlib.util.find_spec(name) is None:
                continue
        module = importlib.import_module(name)
        if hasattr(module, "add") and info.name != "group":
            found.append((info.name.replace("_", "-"), module))
    return sorted(found, key=lambda command: command[0] != "run")  # what everybody begins with; the others by name


def _place(group: tuple[str, list[str]]) -> int:
    return _GROUPS.index(group[0]) if group[0] in _GROUPS else len(_GROUPS)


def add_recipe(
    parser: argparse.ArgumentParser, what: str = "a YAML file, the name of a shipped recipe (demo.yaml), or a run"
) -> None:
    """Add RECIPE."""
    parser.add_argument("recipe", metavar="RECIPE", help=what)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add RUN."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory, e.g. runs/demo")


def add_overrides(parser: argparse.ArgumentParser, what: str = "settings that replace the recipe's") -> None:
    """Add any number of `section.setting=value`, behind everything else that has no name."""
    # With a default, argparse does not call them required.
    parser.add_argument("overrides", nargs="*", default=[], metavar="section.setting=value", help=what)


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments; overrides may also stand after other options, and may begin with dashes.

    A URI with a secret in it is refused first, before any message can show it.
    """
    for argument in arguments:
        name, separator, value = argument.partition("=")
        check_uri(argument, "An argument")
        check_uri(value if separator and _NAME.fullmatch(name) else "", name)
    options, rest = parser.parse_known_args(undashed(arguments))
    if "overrides" in options:  # `--seed=1`, which no option of the command is called, is a setting
        rest = [_TOP_LEVEL.sub(r"\1", argument) for argument in rest]
    unknown = [argument for argument in rest if argument.startswith("-")]
    if unknown and "overrides" in options:
        options.parser.error(
            f"{unknown[0]} is not an option; settings are written as section.setting=value, without dashes"
        )
    if rest and "overrides" not in options:
        getattr(options, "parser", parser).error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def undashed(arguments: Sequence[str]) -> list[str]:
    """Turn `--sampling.n=8` and `--sampling.n 8`, as other tools write settings, into `sampling.n=8`."""
    result: list[str] = []
    waiting = list(reversed(arguments))
    while waiting:
        argument = waiting.pop()
        if (found := _DASHED.fullmatch(argument)) is None:
            result.append(argument)
        elif found[2] is None and waiting and not waiting[-1].startswith("--"):
            result.append(f"{found[1]}={waiting.pop()}")
        else:
            result.append(f"{found[1]}{found[2] or '='}")
    return result
