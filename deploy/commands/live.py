"""`brain status` and `brain scale`: a live run, seen and changed from another terminal."""

import argparse
import time
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from brain_align.common.errors import UserError
from brain_align.deploy.monitor.requests import ScaleRequest, ask
from brain_align.deploy.monitor.status import Backlog, PoolStatus, Progress, Status, is_alive, read_status
from brain_align.deploy.run.directory import RunDirectory

_ANSWER_SECONDS = 15.0


def add_status(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `brain status`."""
    parser = commands.add_parser(
        "status",
        help="how a run stands",
        description="Show how a run stands, live or ended: progress, rates, what waits for whom, replicas, what was "
        "left out, and the last decisions about replicas.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the run directory, e.g. runs/demo")
    parser.add_argument("--watch", action="store_true", help="again every second, until the run ends or Ctrl-C")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(command=_status)


def add_scale(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `brain scale`."""
    parser = commands.add_parser(
        "scale",
        help="add or remove replicas of a live run",
        description="Set numbers of replicas while a run goes on: brain scale runs/demo samplers=4 scorers.reward=2. "
        "New ones join when they are ready, leaving ones finish what they have. samplers=auto leaves the number to "
        "sampler.autoscale. It holds until this start of the run ends.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the run directory, e.g. runs/demo")
    parser.add_argument("replicas", nargs="+", metavar="samplers=N", help="or scorers.NAME=M, or samplers=auto")
    parser.add_argument("--timeout", type=float, default=_ANSWER_SECONDS, help="seconds to wait for the run's answer")
    parser.set_defaults(command=_scale)


def _scale(options: argparse.Namespace) -> int:
    request = parse_replicas(options.replicas)
    directory = RunDirectory(options.run.absolute())
    if not is_alive(directory, read_status(directory)):
        raise UserError(
            f"No run is alive in {directory.root}; start it with `brain run` and the numbers in its recipe "
            f"(sampler.replicas, scorers.NAME.replicas)."
        )
    answer = ask(directory, request, options.timeout)
    if answer.refusal is not None:
        raise UserError(answer.refusal)
    for line in answer.lines:
        print(line)
    return 0


def parse_replicas(arguments: list[str]) -> ScaleRequest:
    """What is asked for.

    Raises:
        UserError: an argument is not NAME=N.
    """
    replicas: dict[str, int | None] = {}
    for argument in arguments:
        name, separator, value = argument.partition("=")
        if not separator or not (value == "auto" or value.isdecimal()):
            raise UserError(
                f"{argument!r} says no number of replicas; write samplers=N, scorers.NAME=N or samplers=auto."
            )
        replicas[name] = None if value == "auto" else int(value)
    return ScaleRequest(replicas=replicas)


def _status(options: argparse.Namespace) -> int:
    directory = RunDirectory(options.run.absolute())
    status = read_status(directory)
    if options.json:
        print(status.model_copy(update={"state": _state(directory, status)}).model_dump_json(indent=1))
        return 0
    console = Console()
    if not options.watch:
        console.print(view(status, _state(directory, status)), highlight=False)
        return 0
    with Live(view(status, _state(directory, status)), console=console, auto_refresh=False) as live:
        while is_alive(directory, status):
            time.sleep(1)
            status = read_status(directory)
            live.update(view(status, _state(directory, status)), refresh=True)
    return 0


def _state(directory: RunDirectory, status: Status) -> str:
    if status.state != "ended" and not is_alive(directory, status):
        return "dead"
    return status.state


def view(status: Status, state: str) -> RenderableType:
    """A status for the terminal."""
    shown: list[RenderableType] = [_progress(status.progress, state), _backlog(status.backlog)]
    shown.append(_services(status.services))
    troubled = [one for pool in status.services.values() for one in pool.replicas if one.trouble]
    shown += [Text(f"{one.name} ({one.losses}x lost): {one.trouble}") for one in troubled]
    if status.automatic:
        shown.append(Text("samplers follow the load (sampler.autoscale)"))
    for change in status.scaling[-5:]:
        at = datetime.fromtimestamp(change.at, UTC).astimezone().strftime("%H:%M:%S")
        shown.append(Text(f"{at} {change.service} {change.before} -> {change.after}: {change.reason}"))
    for item in status.quarantined:
        shown.append(
            Text(f"left out: {item.purpose} round {item.round} prompt {item.prompt_id}, {item.service}: {item.error}")
        )
    if state == "dead":
        shown.append(Text("The run's process is gone; the same `brain run` command resumes it."))
    return Group(*shown)


def _progress(progress: Progress, state: str) -> Table:
    left = "?" if progress.left_seconds is None else f"{progress.left_seconds / 60:.1f} min"
    rates = (progress.sampled_rate, progress.scored_rate, progress.trained_rate)
    return _row(
        ("state", state),
        ("round", f"{progress.round}/{progress.rounds}"),
        ("step", f"{progress.step}/{progress.steps}"),
        ("version", str(progress.version)),
        ("staleness", "-" if progress.staleness is None else str(progress.staleness)),
        ("sampled/scored/trained", f"{progress.sampled}/{progress.scored}/{progress.trained}"),
        ("tokens/s", "/".join(f"{rate:.0f}" for rate in rates)),
        ("reward", "-" if progress.reward is None else f"{progress.reward:.2f}"),
        ("left", left),
    )


def _backlog(backlog: Backlog) -> Text:
    return Text(
        f"waiting: {backlog.leases} leases for samplers, {backlog.unscored} groups for scorers, {backlog.ready} groups "
        f"for the learner"
    )


def _services(services: dict[str, PoolStatus]) -> Table:
    table = Table(box=None, padding=(0, 1))
    for name in ("service", "ready", "wanted", "replicas"):
        table.add_column(name, header_style="dim", justify="left" if name in ("service", "replicas") else "right")
    for name, pool in services.items():
        states = ", ".join(f"{one.name} {one.state}" for one in pool.replicas if one.state != "ready")
        table.add_row(name, str(pool.ready), str(pool.target), states or "all ready")
    return table


def _row(*cells: tuple[str, str]) -> Table:
    table = Table(box=None, padding=(0, 1))
    for name, _ in cells:
        table.add_column(name, justify="right", header_style="dim")
    table.add_row(*(value for _, value in cells))
    return table
