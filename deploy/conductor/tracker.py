"""The live output of a run: a line on the terminal, metrics.jsonl and TensorBoard files."""

import json
import logging
import threading
import time
from collections import deque
from pathlib import Path

import pyarrow as pa
from rich.live import Live
from tensorboardX import SummaryWriter

from brain_align.common.config.training import AlgorithmSection
from brain_align.common.durable import write_file
from brain_align.common.store.overlay import Store
from brain_align.deploy.conductor.progress import Progress, as_table
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.schedule.evaluation import Result, Split
from brain_align.deploy.schedule.quarantine import Item

_WINDOW = 60  # seconds


class Rate:
    """Amounts per second over the last minute, at a constant cost; other threads may read it."""

    def __init__(self) -> None:
        self._seconds: deque[list[float]] = deque()  # [second, amount], oldest first
        self._lock = threading.Lock()

    def add(self, amount: float) -> None:
        """Count `amount` as done now."""
        second = int(time.monotonic())
        with self._lock:
            if self._seconds and self._seconds[-1][0] == second:
                self._seconds[-1][1] += amount
            else:
                self._seconds.append([second, amount])
                self._forget(second)

    def per_second(self) -> float:
        """Return the rate over the window, or since the first amount if that is more recent."""
        now = time.monotonic()
        with self._lock:
            self._forget(now)
            if not self._seconds:
                return 0.0
            return sum(amount for _, amount in self._seconds) / max(now - self._seconds[0][0], 1.0)

    def _forget(self, now: float) -> None:
        while self._seconds and now - self._seconds[0][0] > _WINDOW:
            self._seconds.popleft()


class Tracker:
    """Counts what the services do, shows it, and records it."""

    def __init__(self, algorithm: AlgorithmSection, metrics: Path, tensorboard: Path, console: PlainConsole) -> None:
        self._algorithm = algorithm
        self._metrics = metrics
        self._board = SummaryWriter(str(tensorboard))
        self._console = console
        self._live: Live | None = None
        self._began = time.monotonic()
        self._step_at_start = 0
        self._complained: set[str] = set()  # scorers whose failures have been shown
        self._version = 0
        self._step = 0
        self._round = 0
        self._counts = {"sampled": 0, "scored": 0, "trained": 0}
        self._rates = {"sampled": Rate(), "scored": Rate(), "trained": Rate()}
        self._last: dict[str, float] = {}
        self._staleness: int | None = None
        self.is_running = False

    def recovered(self, store: Store) -> None:
        """Count what earlier starts have done, and rewrite their metrics: a crash may have torn the last line."""
        steps = store.steps()
        self._counts["sampled"] = store.counts()["groups"]
        self._counts["trained"] = sum(
            int(row["metrics"].get("trained_prompts", len(row["group_ids"]))) for row in steps
        )
        lines = [
            _line("step", row["step"], row["finished_at"], {"round": float(row["round"]), **row["metrics"]})
            for row in steps
        ]
        write_file(self._metrics, "".join(lines))

    def started(self, step: int) -> None:
        """Note that all services are up, and that the learner has trained `step` steps."""
        self._step = self._step_at_start = step
        self._began = time.monotonic()
        self.is_running = True
        if step:
            self.say(f"resumed at step {step}")
        if self._console.is_terminal:
            self._live = Live(
                console=self._console, get_renderable=lambda: as_table(self.progress().figures()), refresh_per_second=2
            )
            self._live.start()

    def sampled(self, groups: pa.RecordBatch) -> None:
        """Count the tokens of committed groups, for training or for evaluation."""
        self._rates["sampled"].add(_tokens(groups))

    def stored(self, groups: int) -> None:
        """Count committed groups for training."""
        self._counts["sampled"] += groups

    def scored(self, scorer: str, groups: pa.RecordBatch, scores: pa.RecordBatch) -> None:
        """Count the tokens of groups that a scorer has scored; show its first failure."""
        self._rates["scored"].add(_tokens(groups))
        failed = [error for error in scores["error"].to_pylist() if error is not None]
        if failed and scorer not in self._complained:
            self._complained.add(scorer)
            self.say(f"{scorer} could not score {len(failed)} of {scores.num_rows} groups; the first: {failed[0]}")

    def ready(self, groups: int) -> None:
        """Count groups for training that have all their scores."""
        self._counts["scored"] += groups

    def stepped(self, step: int, round_: int, groups: int, metrics: dict[str, float], staleness: int) -> None:
        """Record an optimiser step; `staleness` is that of its oldest group, in versions."""
        self._step, self._round, self._last, self._staleness = step, round_, metrics, staleness
        self._counts["trained"] += groups
        self._rates["trained"].add(metrics["tokens"])
        rates = {f"{stage}_tokens_per_second": rate.per_second() for stage, rate in self._rates.items()}
        self._write("step", step, {"round": float(round_), **metrics, **rates})

    def published(self, version: int) -> None:
        """Note a new proposal version."""
        self._version = version
        if not self._console.is_terminal and self._last:
            self.say("  ".join(f"{name} {value}" for name, value in self.progress().figures()))

    def evaluated(self, split: Split, version: int, result: Result) -> None:
        """Record a version's result on a split."""
        figures = {name: value for name, value in vars(result).items() if value is not None}
        self._write(split, version, figures)
        gold = "" if result.train_rm_win_rate is None else f"win rate {result.train_rm_win_rate:.1f} %, "
        truth = "" if result.truth_quality is None else f", truth {result.truth_quality:.3f}"
        self.say(
            f"{split} of version {version}: {gold}reward {result.mean_reward:.3f}{truth}, KL {result.kl_to_prior:z.2f}"
        )

    def quarantined(self, item: Item) -> None:
        """Say that the run continues without a prompt or a group."""
        self.say(
            f"quarantined: prompt {item.prompt_id} of {item.purpose} round {item.round}, which keeps failing in "
            f"{item.service}; the last error: {item.error}"
        )

    def say(self, *texts: str) -> None:
        """Show sentences, and log them."""
        for text in texts:
            self._console.print(text, soft_wrap=True)
            logging.getLogger(__name__).info(text)

    def close(self) -> None:
        """Stop the live display and flush everything."""
        if self._live is not None:
            self._live.stop()
        self._board.close()

    @property
    def trained(self) -> int:
        """The number of groups that were trained on, each counted once per step."""
        return self._counts["trained"]

    def progress(self) -> Progress:
        """Return how far training is."""
        algorithm, rates, last = self._algorithm, self._rates, self._last
        return Progress(
            round=min(self._round + 1, algorithm.rounds),
            rounds=algorithm.rounds,
            step=self._step,
            steps=algorithm.rounds * algorithm.updates_per_round,
            version=self._version,
            **self._counts,
            sampled_rate=rates["sampled"].per_second(),
            scored_rate=rates["scored"].per_second(),
            trained_rate=rates["trained"].per_second(),
            staleness=self._staleness,
            left_seconds=self._left(algorithm.rounds * algorithm.updates_per_round),
            reward=last.get("reward_mean"),
            kl=last.get("kl_policy_prior"),
            ess=last.get("ess_alpha"),
        )

    def _write(self, kind: str, number: int, figures: dict[str, float]) -> None:
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.write(_line(kind, number, time.time(), figures))
        for name, value in figures.items():
            self._board.add_scalar(f"{kind}/{name}", value, number)

    def _left(self, total: int) -> float | None:
        done = self._step - self._step_at_start
        return (time.monotonic() - self._began) / done * (total - self._step) if done else None


def _tokens(groups: pa.RecordBatch) -> int:
    """Return the output tokens of GROUPS rows, from the ends of their lists, as it is called for every group."""
    outputs = groups["outputs"]
    tokens = outputs.values.field("token_ids").offsets
    return int(tokens[outputs.offsets[-1].as_py()].as_py() - tokens[outputs.offsets[0].as_py()].as_py())


def _line(kind: str, number: int, moment: float, figures: dict[str, float]) -> str:
    named = {"kind": kind, "step" if kind == "step" else "version": number, "time": moment}
    return json.dumps({**named, **figures}) + "\n"
