"""Add or remove replicas of a live run.

Sets the number of replicas of samplers or of a scorer while a run continues. New replicas join when they are ready;
those being removed finish what they have. samplers=auto leaves the number to sampler.autoscale. The numbers hold until
this start of the run ends: a resumed run begins with its recipe's.

Examples:
  brain scale runs/demo samplers=4 scorers.reward=2
  brain scale runs/demo samplers=auto
"""

import argparse

from brain_align.common.errors import UserError
from brain_align.deploy.commands.arguments import add_run
from brain_align.deploy.console import say
from brain_align.deploy.monitor.requests import ScaleRequest, ask
from brain_align.deploy.monitor.status import Liveness, read_status
from brain_align.deploy.run.directory import RunDirectory

GROUP = "Train"

_ANSWER_SECONDS = 15.0


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_run(parser)
    parser.add_argument("replicas", nargs="+", metavar="samplers=N", help="or scorers.NAME=M, or samplers=auto")
    parser.add_argument("--timeout", type=float, default=_ANSWER_SECONDS, help="seconds to wait for the run's answer")


def run(options: argparse.Namespace) -> None:
    """Ask the run for other numbers of replicas."""
    request = parse_replicas(options.replicas)
    directory = RunDirectory(options.run.absolute())
    if not Liveness(directory).is_alive(read_status(directory)):
        raise UserError(
            f"No run is alive in {directory.root}; start it with `brain run` and the numbers in its recipe "
            f"(sampler.replicas, scorers.NAME.replicas)."
        )
    answer = ask(directory, request, options.timeout)
    if answer.refusal is not None:
        raise UserError(answer.refusal)
    say("\n".join(answer.lines))


def parse_replicas(arguments: list[str]) -> ScaleRequest:
    """Read the arguments NAME=N and samplers=auto."""
    replicas: dict[str, int | None] = {}
    for argument in arguments:
        name, separator, value = argument.partition("=")
        if not separator or not (value == "auto" or value.isdecimal()):
            raise UserError(
                f"{argument!r} is not a number of replicas; write samplers=N, scorers.NAME=N or samplers=auto."
            )
        replicas[name] = None if value == "auto" else int(value)
    return ScaleRequest(replicas=replicas)
