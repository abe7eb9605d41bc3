"""The `brain` command: collects the commands of deploy/commands, and turns errors into sentences and exit statuses."""

import contextlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from brain_align.common.logs import forgiving_output, quiet_libraries
from brain_align.common.printable import printable
from brain_align.common.system.interruption import end_by_exceptions
from brain_align.common.user_code import add_to_path
from brain_align.deploy.commands.arguments import CommandParser, add_commands, parsed
from brain_align.deploy.commands.outcome import close_output, outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status.

    0: done; 1: the pipeline, or something unexpected, failed; 2: bad input; 75: what is needed is in use, and may be
    free later; 130: interrupted; 143 (128 + the number of the signal): ended by SIGTERM.
    """
    forgiving_output()
    resumes = False
    try:
        options = parsed(_parser(), sys.argv[1:] if arguments is None else arguments)
        resumes = options.resumes
        quiet_libraries()
        add_to_path(_here())  # where a user's own functions are
        end_by_exceptions(resumes=resumes)
        status = int(options.command(options) or 0)
        if sys.stdout is not None:  # as where it was closed
            sys.stdout.flush()  # now, where a failure is still an error
        return status
    except BaseException as error:  # noqa: BLE001 - the last place where it can become a sentence
        ended = outcome(error, resumes=resumes)
        if ended.message is not None:
            _say(ended.message)
        return ended.status
    finally:
        close_output()


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


def _here() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, "the current directory does not exist any more", ".") from None


def _say(message: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads that either
        print(printable(f"brain: {message}"), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
