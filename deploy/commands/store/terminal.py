"""What the store commands have in common on the command line."""

from rich.console import Console

from brain_align.deploy.run.stored_source import Source, open_source

PLACE = "a run directory, a store directory, or a store's URI"
_PLAIN_WIDTH = 100  # columns where the output is no terminal


def terminal(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal, 100 columns wide where there is none; progress goes to stderr."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    return console


def opened(place: str) -> Source:
    """Open the store that `place` names; says on stderr where its run's recipe cannot be used.

    Raises:
        UserError: see `open_source`.
    """
    source = open_source(place)
    if source.location.problem is not None:
        terminal(stderr=True).print(f"note: {source.location.problem} The store is shown without it.", soft_wrap=True)
    return source
