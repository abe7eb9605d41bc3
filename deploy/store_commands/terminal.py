"""What the store commands have in common on the command line."""

from rich.console import Console

PLACE = "a run directory, a store directory, or a store's URI"
_PLAIN_WIDTH = 100  # columns where the output is no terminal


def terminal(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal, 100 columns wide where there is none; progress goes to stderr."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    return console
