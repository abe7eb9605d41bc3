"""TRL's GRPO and RLOO against this project on the same cores: seconds, outputs, KL and truth on the way to a win rate.

    make bench-peer                                  all that is missing: hours; it may be stopped and started again
    PEER_CASES=demo PEER_SEEDS=0 make bench-peer     a part of it: a quarter of an hour

Two cases: `demo`, the synthetic task of `make demo`, and `smollm`, SmolLM2-135M-Instruct (PEER_MODEL: its directory) on
Reddit posts of about 400 tokens (PEER_TLDR: a file of them). Both sides have policy, LoRA shape, reward, training
prompts, n and output length in common: tests/bench/peer_cases/NAME.yaml says what they are. TRL is tried with three
learning rates on the first seed, and goes on with the best. A cell (case, method, rate, seed) is a file in
build/bench/peer/; those that are there are not run again, unless recipe, case or data have changed: these are set
aside. Prints tables, and writes build/bench/peer.json.
"""

import argparse
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from tests.bench.harness import environment, table, write
from tests.bench.peer_cases import our_side, trl_task
from tests.bench.peer_cases.cases import CASES, FOLDER, METHODS, OURS, Case, Cell, prepare
from tests.bench.peer_cases.figures import headline, of_cell, of_methods
from tests.bench.peer_cases.identity import set_aside, stamped
from tests.locations import ROOT

_CHOICES = {"cases": tuple(CASES), "methods": METHODS, "stages": ("train", "judge")}


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read what to do; each option's default is in the environment, for `make`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, choices in _CHOICES.items():
        default = os.environ.get(f"PEER_{name.upper()}", " ".join(choices)).replace(",", " ").split()
        parser.add_argument(f"--{name}", nargs="+", choices=choices, default=default)
    seeds = [int(seed) for seed in os.environ.get("PEER_SEEDS", "0 1 2").replace(",", " ").split()]
    parser.add_argument("--seeds", nargs="+", type=int, default=seeds)
    parser.add_argument("--steps", type=int, default=os.environ.get("PEER_STEPS"), help="TRL's steps; ours in outputs")
    rates = int(os.environ.get("PEER_RATES", "3"))
    parser.add_argument("--rates", type=int, default=rates, help="learning rates of TRL that are tried")
    parser.add_argument("--smoke", action="store_true", help="the smallest cells, to see that everything works")
    return parser.parse_args(arguments)


def cells(case: Case, chosen: argparse.Namespace) -> Iterator[Cell]:
    """Yield the cells of a case in the order of their work: all rates of the first seed, then the best of them."""
    for place, seed in enumerate(chosen.seeds):
        for method in chosen.methods:
            rates: list[float | None] = [None] if method in OURS else list(case.learning_rates[: chosen.rates])
            if place and method not in OURS:
                rates = [_best_rate(case, method, chosen)]
            for rate in rates:
                yield Cell(case, method, rate, seed, 2 if chosen.smoke else chosen.steps, chosen.smoke)


def _best_rate(case: Case, method: str, chosen: argparse.Namespace) -> float:
    first = [
        Cell(case, method, rate, chosen.seeds[0], 2 if chosen.smoke else chosen.steps, chosen.smoke)
        for rate in case.learning_rates[: chosen.rates]
    ]
    found = [json.loads(cell.result.read_text(encoding="utf-8")) for cell in first if cell.result.exists()]
    if not found:
        raise SystemExit(
            f"{case.name}, {method}: the first seed's cells choose the rate of the others; judge them first."
        )
    return float(of_methods(case, found)[0]["learning rate"])


def train(cell: Cell) -> None:
    """Train a cell unless that is done; what an interrupted start left is removed."""
    if (cell.work / "trained.json").exists() or cell.result.exists():
        return  # a failed cell is tried again by the next call
    shutil.rmtree(cell.work, ignore_errors=True)
    cell.work.mkdir(parents=True)
    print(f"{cell.name}: training …", flush=True)
    try:
        with stamped(cell):
            if cell.ours:
                our_side.train(cell)
            else:
                _train_with_trl(cell)
    except subprocess.CalledProcessError as error:
        print(f"{cell.name}: failed with exit status {error.returncode}; its log is {cell.work / 'run.log'}")


def _train_with_trl(cell: Cell) -> None:
    """Train in a process of its own; recipe and prompts are read here, since TRL's start-up has no such checks."""
    task = trl_task.read(cell)
    (cell.work / "task.pickle").write_bytes(pickle.dumps(task))
    with open(cell.work / "run.log", "w", encoding="utf-8") as log:
        module = ["-m", "tests.bench.peer_cases.trl_side", str(cell.work / "task.pickle"), repr(time.time())]
        quiet = os.environ | {"PYTHONWARNINGS": "ignore"}  # TRL warns of the version of a vLLM that it does not use
        subprocess.run([sys.executable, *module], cwd=ROOT, env=quiet, stdout=log, stderr=subprocess.STDOUT, check=True)


def judge(cell: Cell) -> None:
    """Judge all versions of a trained cell, and write its result."""
    trained = cell.work / "trained.json"
    if cell.result.exists() or not trained.exists():
        return
    from tests.bench.peer_cases.judge import Judge

    print(f"{cell.name}: judging …", flush=True)
    figures = json.loads(trained.read_text(encoding="utf-8"))
    panel = Judge(cell)
    points = [{"version": 0, "seconds": 0.0, "outputs": 0, "tokens": 0, **panel.figures(None)}]
    failed = None
    for point in figures["points"]:
        try:
            points.append(point | panel.figures(cell.work / point.pop("adapter")))
        except (RuntimeError, ValueError) as error:  # a policy that diverged: its probabilities are not finite
            failed = f"version {point['version']} cannot be judged: {str(error).splitlines()[0]}"
            print(f"{cell.name}: {failed}")
            break
    result = {
        **figures,
        "outputs": figures["points"][-1]["outputs"],
        "failed": failed,
        "case": cell.case.name,
        "method": cell.method,
        "learning_rate": cell.learning_rate,
        "seed": cell.seed,
        "steps": cell.steps,
        "command": " ".join(["brain", *our_side.command(cell)]) if cell.ours else None,
        "points": points,
        "environment": environment(),
    }
    unfinished = cell.result.with_suffix(".tmp")
    unfinished.write_text(json.dumps(result, indent=1, allow_nan=False), encoding="utf-8")
    unfinished.replace(cell.result)


def report(name: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Print the tables of a case, and return its figures."""
    case = CASES[results[0]["case"]]
    rows = of_methods(case, results)
    figures = headline(rows)
    print(f"\n## {name}: {len(results)} cells\n\n{table([of_cell(result, case.target) for result in results])}")
    print(f"\nat the best learning rate, means over seeds:\n\n{table(rows)}\n\n{table([figures])}", flush=True)
    return {**figures, "methods": rows, "cells": [of_cell(result, case.target) for result in results]}


def finished() -> dict[str, list[dict[str, Any]]]:
    """Return all finished cells by case, those with fewer steps than the case's as cases of their own."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(FOLDER.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        steps = "" if result["steps"] is None else f", {result['steps']} steps"
        found.setdefault(result["case"] + steps, []).append(result)
    return found


def main() -> None:
    chosen = options()
    for case in (CASES[name] for name in chosen.cases):
        if (reason := prepare(case)) is not None:
            print(f"{case.name}: skipped: {reason}")
            continue
        set_aside(case)
        for cell in cells(case, chosen):
            if "train" in chosen.stages:
                train(cell)
            if "judge" in chosen.stages:
                judge(cell)
    if figures := {name: report(name, results) for name, results in finished().items()}:
        print(write("peer", figures))


if __name__ == "__main__":
    main()
