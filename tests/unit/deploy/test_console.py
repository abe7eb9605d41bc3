import ast
import io

import pytest
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from brain_align.deploy.console import PlainConsole, say, terminal
from tests.locations import ROOT

HOSTILE = "[/INST] data/[old]/x [link=http://evil]click[/link] [red]r[/red] :smile: \x1b]52;c;eA== \x9b2J \u202eabc"
SHOWN = HOSTILE.replace("\x1b", "\\x1b").replace("\x9b", "\\x9b").replace("\u202e", "\\u202e")


def table() -> Table:
    made = Table(HOSTILE, title=HOSTILE, caption=HOSTILE, box=None)
    made.add_row(HOSTILE)
    return made


RENDERABLES = [HOSTILE, Text(HOSTILE), Group(HOSTILE), table()]


@pytest.mark.parametrize("in_terminal", [False, True])
@pytest.mark.parametrize("renderable", RENDERABLES, ids=lambda one: type(one).__name__)
def test_whatever_is_printed_appears_as_it_is(renderable, in_terminal):
    out = io.StringIO()
    PlainConsole(file=out, width=200, force_terminal=in_terminal, color_system=None).print(renderable)
    assert SHOWN in out.getvalue()
    assert not {"\x9b", "\u202e"} & set(out.getvalue()) and "\x1b]" not in out.getvalue()


def test_a_live_display_still_commands_the_terminal():
    out = io.StringIO()
    with Live(HOSTILE, console=PlainConsole(file=out, force_terminal=True, width=200), auto_refresh=False):
        pass
    assert SHOWN in out.getvalue() and "\x1b[?25l" in out.getvalue()  # the cursor is hidden


def test_a_users_console_becomes_plain_but_keeps_its_output_and_record():
    out = io.StringIO()
    own = Console(file=out, width=200, record=True)
    PlainConsole.like(own).print(HOSTILE)
    assert SHOWN in out.getvalue() and SHOWN in own.export_text()
    own.print("[bold]markup[/bold]")
    assert out.getvalue().endswith("\nmarkup\n")
    assert PlainConsole.like(Console(quiet=True)).quiet


def test_said_text_appears_as_it_is(capsys):
    say(HOSTILE)
    say(f"{HOSTILE}\udcff", stderr=True)
    assert capsys.readouterr() == (f"{SHOWN}\n", f"{SHOWN}\\udcff\n")
    assert terminal().width == 100


def test_the_commands_print_through_the_plain_console_only():
    for room in ("common", "deploy", "learner", "sampler", "scorer"):
        for path in (ROOT / room).rglob("*.py"):
            if path.relative_to(ROOT).as_posix() in ("deploy/console.py", "deploy/api/running.py"):
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                assert not prints_elsewhere(node), (
                    f"{path}:{getattr(node, 'lineno', 0)}: use brain_align.deploy.console"
                )


def prints_elsewhere(node: ast.AST) -> bool:
    match node:
        case ast.ImportFrom(module=str(module), names=names) if module.startswith("rich"):
            return bool({one.name for one in names} & {"Console", "print"})
        case ast.Call(func=ast.Name(id="print"), keywords=keywords):
            return not {one.arg for one in keywords} & {"file", "flush"}  # into a pipe, and into an actor's log
    return False
