"""The store commands' STORE argument and their console."""

import argparse

from rich.console import Console

from brain_align.deploy.run.stored_source import Source, open_source

_PLAIN_WIDTH = 100  # columns where the output is not a terminal


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add STORE."""
    parser.add_argument("place", metavar="STORE", help="a run directory, a store directory, or a store's URI")


def terminal(*, stderr: bool = False) -> Console:
    """Return a console as wide as the terminal, or 100 columns where there is none; progress goes to stderr."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    return console


def opened(place: str) -> Source:
    """Open the store that `place` names; print a note on stderr if its run's recipe cannot be used.

    Raises:
        UserError: see `open_source`.
    """
    source = open_source(place)
    if source.location.problem is not None:
        terminal(stderr=True).print(f"note: {source.location.problem} The store is shown without it.", soft_wrap=True)
    return source
