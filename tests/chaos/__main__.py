"""`make chaos`: one run through every fault that a cluster has, and its store counted afterwards.

A head and three workers are simulated machines, the store is on S3, one reward comes from a service, and all engines
are the real ones. Writes build/bench/chaos.json. Exit status: 0 if nothing was lost, doubled or left behind, 1 if
something was or the run failed, 2 if the run cannot be made here.
"""

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import yaml

from tests.bench.harness import table, write
from tests.chaos.cluster import Cluster, until
from tests.chaos.command import RECIPE, Command
from tests.chaos.counting import Plan, count
from tests.chaos.faults import FAULTS, Scene, expect_no_services, say
from tests.chaos.machines import OUTSIDE, ChaosError, ImpossibleError, Machines, script
from tests.chaos.outside import outside
from tests.chaos.stored import StoreReader
from tests.locations import ROOT

FOLDER = ROOT / "build/chaos"
HEAD, WORKERS = "n0", ("n1", "n2", "n3")
NAMES = {fault.__name__.replace("_", "-"): fault for fault in FAULTS}

Figures = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="One run through every fault.")
    parser.add_argument("--limit", type=float, default=900, help="seconds that one thing may take (default: 900)")
    parser.add_argument("--strict", action="store_true", help="algorithm.max_staleness=0, not the recipe's 1")
    parser.add_argument("--rounds", type=int, help="rounds of the run (default: the recipe's)")
    parser.add_argument("--faults", nargs="+", choices=NAMES, default=list(NAMES), help="only these (default: all)")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # also in the background of a script: everything is ended first
        signal.signal(number, signal.default_int_handler)
    try:
        figures = measure(options)
    except ImpossibleError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("chaos: interrupted; all machines and services have ended.", file=sys.stderr)
        return 130
    counts = {name: value for name, value in figures.items() if isinstance(value, int)}
    print(table([{"figure": name, "value": value} for name, value in counts.items()]))
    print(write("chaos", figures))
    wrong = [f"{name} is {value}" for name, value in counts.items() if value]
    if figures["error"] or wrong:
        print("chaos: " + "\n".join([*wrong, figures["error"] or "all of these must be 0."]), file=sys.stderr)
        return 1
    return 0


def measure(options: argparse.Namespace) -> Figures:
    """Make the run with its faults; the figures that are integers must be 0."""
    began = time.monotonic()
    machines = Machines(script(), FOLDER / "machines")
    shutil.rmtree(FOLDER, ignore_errors=True)
    (FOLDER / "logs").mkdir(parents=True)
    try:
        with machines:
            figures = _on(machines, options)
    finally:
        with suppress(ChaosError):
            until("all processes of the machines have ended", lambda: not machines.left(), 20)
    left = [*figures.pop("left"), *machines.left()]
    seconds = round(time.monotonic() - began, 1)
    return {**figures, "processes_left": len(left), "left": left, "seconds": seconds}


def _on(machines: Machines, options: argparse.Namespace) -> Figures:
    for name in (HEAD, *WORKERS):
        machines.up(name)
    cluster = Cluster(machines, FOLDER / "logs", options.limit)
    with outside(OUTSIDE) as (objects, rewards):
        settings = [f"store.uri={objects.uri}", f"scorers.service.url={rewards.url}"]
        settings += [f"prepare.cache={ROOT / 'build/worlds'}"]
        settings += ["algorithm.max_staleness=0"] if options.strict else []
        settings += [f"algorithm.rounds={options.rounds}"] if options.rounds else []
        plan = _plan(settings)
        run = Command(machines, FOLDER, settings, StoreReader(*objects.files()), options.limit)
        scene = Scene(machines, cluster, run, objects, rewards, plan.last_step, options.limit, len(options.faults))
        error = None
        try:
            _act(scene, [NAMES[name] for name in options.faults])
        except ChaosError as failure:
            error = str(failure)
        finally:
            run.end()
        figures: Figures = {**count(run.stored(), plan, run.seen)}
    status = run.ended()
    figures["exit"] = 1 if status is None else status
    return {**figures, "error": error, "faults": scene.record, "left": scene.left}


def _act(scene: Scene, faults: Sequence[Callable[[Scene], None]]) -> None:
    scene.cluster.start_head(HEAD)
    scene.cluster.join(*WORKERS)
    say(f"the cluster of {HEAD}, {', '.join(WORKERS)} is up; the run starts")
    scene.run.start(scene.cluster, HEAD)
    for fault in faults:
        scene.settle()
        fault(scene)
    scene.rewards.pace = 0.0
    say("all faults are over; the run goes on to its end")
    if scene.run.wait_for_end():
        raise ChaosError(f"The run failed: {scene.run.last_words()}")
    expect_no_services(scene, "the run's end")


def _plan(settings: Sequence[str]) -> Plan:
    """What the recipe asks for."""
    recipe = yaml.safe_load(RECIPE.read_text())
    algorithm = recipe["algorithm"]
    for setting in settings:
        name, _, value = setting.partition("=")
        if name.startswith("algorithm."):
            algorithm[name.removeprefix("algorithm.")] = int(value)
    return Plan(
        rounds=algorithm["rounds"],
        prompts_per_round=algorithm["prompts_per_round"],
        updates_per_round=algorithm["updates_per_round"],
        outputs=recipe["sampling"]["n"],
        max_staleness=algorithm["max_staleness"],
        scorers=(*recipe["scorers"], "prior"),
    )


if __name__ == "__main__":
    sys.exit(main())
