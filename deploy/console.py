"""What the commands print: texts of any origin, as they are.

All output goes through here, since prompts, outputs, paths and errors may hold rich's markup (`[/INST]` would raise an
error, `[old]` would vanish, `[link=…]` become a link) and control characters, which would command the terminal.
"""

import copy
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text
from typing_extensions import override

from brain_align.common.printable import printable

_PLAIN_WIDTH = 100  # columns where the output is not a terminal


class PlainConsole(Console):
    """A console without markup, emoji codes and highlighting, which escapes control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._make_plain()

    @classmethod
    def like(cls, console: Console) -> "PlainConsole":
        """Return a plain console in place of a user's own, with the same output, width and record."""
        plain = copy.copy(console)
        plain.__class__ = type(cls.__name__, (cls, type(console)), {})
        assert isinstance(plain, cls)
        plain._make_plain()
        return plain

    def _make_plain(self) -> None:
        self._markup = self._emoji = self._highlight = False

    @override
    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    @override
    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):  # also of a `Text` that was made elsewhere
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def terminal(*, stderr: bool = False) -> PlainConsole:
    """Return a console as wide as the terminal, or 100 columns where there is none; progress goes to stderr."""
    console = PlainConsole(stderr=stderr)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    return console


def say(text: str, *, stderr: bool = False, end: str = "\n") -> None:
    """Print a text as it is, however long its lines."""
    print(printable(text), file=sys.stderr if stderr else sys.stdout, end=end)
