"""The `brain` command: collects the commands of deploy/commands, and turns errors into sentences and exit statuses."""

import io
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from brain_align.common.errors import PipelineError, UserError
from brain_align.common.logs import quiet_libraries
from brain_align.common.user_code import add_to_path
from brain_align.deploy.commands.arguments import CommandParser, add_commands, parsed
from brain_align.deploy.console import say

_RESUME = "run the same command again to resume"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 1 the pipeline failed, 2 bad input, 130 interrupted."""
    options = parsed(_parser(), sys.argv[1:] if arguments is None else arguments)
    quiet_libraries()
    add_to_path(os.getcwd())  # where a user's own functions are
    signal.signal(signal.SIGTERM, _interrupt)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 shows what it can
    try:
        return int(options.command(options) or 0)
    except UserError as error:
        return _fail(str(error), 2)
    except PipelineError as error:
        resume = f"\nNothing that was committed is lost: {_RESUME}." if options.resumes else ""
        return _fail(f"{error}{resume}", 1)
    except KeyboardInterrupt:
        return _fail(f"Interrupted: {_RESUME}." if options.resumes else "Interrupted.", 130)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="brain",
        description="Fine-tune a language model on your reward with BRAIn (arXiv 2402.02479).",
        epilog="brain COMMAND --help explains a command. Start with: brain run demo.yaml. Documentation: docs/index.md",
    )
    parser.add_argument("--version", action="version", version=f"brain-align {version('brain-align')}")
    parser.set_defaults(resumes=False)  # commands that resume when they are run again say so
    add_commands(parser, "brain_align.deploy.commands")
    return parser


def _fail(message: str, status: int) -> int:
    say(f"brain: {message}", stderr=True)
    return status


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
