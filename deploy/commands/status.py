"""Show a run's progress.

Shows progress, rates, queues, replicas, quarantined prompts, and the last scaling decisions of a run, live or ended.

Examples:
  brain status runs/demo --watch
  brain status runs/demo --json
"""

import argparse
import time
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table

from brain_align.deploy.commands.arguments import add_run
from brain_align.deploy.conductor.progress import as_table
from brain_align.deploy.console import PlainConsole, say
from brain_align.deploy.monitor.status import OVER, Liveness, PoolStatus, Status, read_status, state_of
from brain_align.deploy.run.directory import RunDirectory

GROUP = "Inspect"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_run(parser)
    parser.add_argument("--watch", action="store_true", help="update every second, until the run ends or Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
    """Show the progress."""
    directory = RunDirectory(options.run.absolute())
    status, liveness = read_status(directory), Liveness(directory)
    state = state_of(status, liveness)
    if options.json:
        shown = status.model_copy(update={"state": state})
        say(shown.model_dump_json(indent=1, ensure_ascii=True))
    elif not options.watch:
        PlainConsole().print(view(status, state))
    else:
        with Live(view(status, state), console=PlainConsole(), auto_refresh=False) as live:
            while state not in (*OVER, "dead"):
                time.sleep(1)
                status = read_status(directory)
                state = state_of(status, liveness)
                live.update(view(status, state), refresh=True)


def view(status: Status, state: str) -> RenderableType:
    """Return a status for the terminal."""
    waiting = status.backlog
    shown: list[RenderableType] = [
        as_table([("state", state), *status.progress.figures()]),
        f"waiting: {waiting.leases} requests for samplers, {waiting.unscored} groups for scorers, {waiting.ready} "
        f"groups for the learner",
        _services(status.services),
    ]
    if status.learner not in (None, "ready"):
        shown.append(f"learner: {status.learner}")
    if status.failure:
        shown.append(f"The run failed: {status.failure}")
    if state not in OVER:
        shown += [f"The scorer {name} gives no values and is asked again: {why}" for name, why in status.away.items()]
    if status.store_trouble and state not in OVER:
        shown.append(f"The sample store does not answer and is asked again: {status.store_trouble}")
    shown += status.warnings
    troubled = [one for pool in status.services.values() for one in pool.replicas if one.trouble]
    shown += [f"{one.name} ({one.losses}x lost): {one.trouble}" for one in troubled]
    if status.automatic:
        shown.append("samplers follow the load (sampler.autoscale)")
    for change in status.scaling[-5:]:
        at = datetime.fromtimestamp(change.at, UTC).astimezone().strftime("%H:%M:%S")
        shown.append(f"{at} {change.service} {change.before} -> {change.after}: {change.reason}")
    for item in status.quarantined:
        shown.append(
            f"quarantined: {item.purpose} round {item.round} prompt {item.prompt_id}, {item.service}: {item.error}"
        )
    if state == "stopped":
        shown.append(f"The run's process is stopped; `kill -CONT {status.pid}` on {status.host} continues it.")
    if state == "dead":
        shown.append("The run's process is gone; the same `brain run` command resumes it.")
    return Group(*shown)


def _services(services: dict[str, PoolStatus]) -> Table:
    table = Table(box=None, padding=(0, 1))
    for name in ("service", "ready", "wanted", "replicas"):
        table.add_column(name, header_style="dim", justify="left" if name in ("service", "replicas") else "right")
    for name, pool in services.items():
        states = ", ".join(f"{one.name} {one.state}" for one in pool.replicas if one.state != "ready")
        table.add_row(name, str(pool.ready), str(pool.target), states or "all ready")
    return table
