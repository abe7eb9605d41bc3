"""What `make bench-peer` compares: cases, the cells of the table, and the recipe that both sides of a cell read."""

import json
import os
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from brain_align.common.identity import digest, digest_contents
from brain_align.common.requests import Prompt
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.run.recipe_files import load_recipe
from brain_align.deploy.run.resolve import ResolvedRecipe, resolve
from brain_align.deploy.run.start import reporter
from tests.bench.harness import RESULTS
from tests.locations import ROOT, SHARED

FOLDER = RESULTS / "peer"
WORK = FOLDER / "work"
"""Adapters of all versions, run directories and logs, by the names of cells."""

GRPO, RLOO, STRICT, OVERLAPPED = "trl-grpo", "trl-rloo", "brain-strict", "brain-overlapped"
METHODS = (GRPO, RLOO, STRICT, OVERLAPPED)
OURS = (STRICT, OVERLAPPED)

_LONG_POSTS = range(300, 513)  # tokens of the case smollm's prompts
_TEST, _VALIDATION = 64, 8


@dataclass(frozen=True)
class Case:
    """A task that both sides train on.

    Attributes:
        prompts, micro_batch: prompts per TRL step, and rows that it computes at a time.
        steps: of TRL; versions are judged every `every` steps.
        test_prompts, outputs: the judge samples so many outputs for each of so many test prompts.
        target: percent of the win rate that `seconds_to_55` waits for.
        overlapped: settings of our recipe that differ where sampling and training overlap.
    """

    name: str
    prompts: int
    micro_batch: int
    steps: int
    every: int
    learning_rates: tuple[float, ...]  # of TRL; the first is tried first
    test_prompts: int
    outputs: int
    overlapped: dict[str, Any]
    smallest: dict[str, Any]  # settings of a smoke test
    target: float = 55.0


DEMO = Case(
    name="demo",
    prompts=8,
    micro_batch=128,
    steps=30,
    every=2,
    learning_rates=(1e-3, 3e-4, 3e-3),
    test_prompts=256,
    outputs=2,
    overlapped={"sampler.threads": 1, "learner.threads": 1, "prior.threads": 1, "scorers.reward.threads": 1},
    smallest={"algorithm.rounds": 2, "algorithm.updates_per_round": 1, "evaluation.every_rounds": 2},
)
SMOLLM = Case(
    name="smollm",
    prompts=4,
    micro_batch=8,
    steps=40,
    every=4,
    learning_rates=(3e-4, 1e-4, 1e-3),
    test_prompts=_TEST,
    outputs=2,
    overlapped={"sampler.threads": 1, "learner.threads": 1, "prior.threads": 1},
    smallest={
        "algorithm.rounds": 1, "algorithm.updates_per_round": 1, "algorithm.prompts_per_round": 4,
        "sampler.lease_prompts": 4, "evaluation.every_rounds": 1,
    },
)  # fmt: skip
CASES = {case.name: case for case in (DEMO, SMOLLM)}


@dataclass(frozen=True)
class Cell:
    """One training run: a method with a learning rate and a seed on a case.

    `steps` are TRL's; None: all of the case. Ours samples as many outputs then, in rounds. A cell with fewer steps is
    another cell, so that it never stands for the whole.
    """

    case: Case
    method: str
    learning_rate: float | None  # None: our recipe's own
    seed: int
    steps: int | None = None
    smoke: bool = False

    @property
    def name(self) -> str:
        parts = [self.case.name, self.method]
        parts += [] if self.learning_rate is None else [f"lr{self.learning_rate:g}"]
        parts += [f"seed{self.seed}"] + ([] if self.steps is None else [f"steps{self.steps}"])
        return "-".join([*parts, *(["smoke"] if self.smoke else [])])

    @property
    def ours(self) -> bool:
        return self.method in OURS

    @property
    def trl_steps(self) -> int:
        return self.steps or self.case.steps

    @property
    def result(self) -> Path:
        """The file that the finished cell is."""
        return (WORK if self.smoke else FOLDER) / f"{self.name}.json"

    @property
    def work(self) -> Path:
        return WORK / self.name

    def overrides(self) -> dict[str, Any]:
        """Return the settings that differ from the case's recipe, as they follow `brain run RECIPE`."""
        settings: dict[str, Any] = {"run.dir": str(self.work / "run"), "seed": self.seed, **place_settings(self.case)}
        if self.method == OVERLAPPED:
            settings |= {"algorithm.max_staleness": 1, **self.case.overlapped}
        if self.learning_rate is not None and self.ours:
            settings["learner.learning_rate"] = self.learning_rate
        if self.steps is not None:
            settings |= _rounds(self.case, self.steps)
        return settings | (self.case.smallest if self.smoke else {})


def _rounds(case: Case, steps: int) -> dict[str, Any]:
    """Return as many whole rounds as sample the outputs of TRL's steps."""
    per_round = load_recipe(recipe_file(case)).algorithm.prompts_per_round
    rounds = max(1, -(-steps * case.prompts // per_round))
    return {"algorithm.rounds": rounds, "evaluation.every_rounds": rounds}


def recipe_file(case: Case) -> Path:
    """Return the recipe of our side."""
    return Path(__file__).parent / f"{case.name}.yaml"


def place_settings(case: Case) -> dict[str, Any]:
    """Return the settings that name places of this machine."""
    if case.name == DEMO.name:
        return {"prepare.cache": os.environ.get("PEER_WORLDS", str(ROOT / "build" / "worlds"))}
    paths = {f"data.{split}": str(posts_folder() / f"{split}.jsonl") for split in ("train", "validation", "test")}
    return {"policy.model": smollm_place(), **paths}


def posts_folder() -> Path:
    """Return the folder of the prompts that are written for the case smollm."""
    return WORK / "tldr"


def smollm_place() -> str:
    """Return the directory of SmolLM2-135M-Instruct, or its hub id."""
    return os.environ.get("PEER_MODEL", "HuggingFaceTB/SmolLM2-135M-Instruct")


@cache
def model_digest(source: str) -> str:
    """Return what identifies a model and its tokenizer: the digest of a directory's files, or the hub id."""
    if not Path(source).is_dir():
        return source
    from brain_align.common.nn.models.configuration import load_any_config
    from brain_align.scorer.text_models.checkpoints import digest_of_loaded

    return digest_of_loaded(source, load_any_config(source), tokenizer=True)


def tldr_file() -> Path:
    """Return the file with posts and summaries: `prompt` and `label` in JSON lines."""
    return Path(os.environ.get("PEER_TLDR", str(SHARED / "data" / "tldr" / "tldr.jsonl")))


def prepare(case: Case) -> str | None:
    """Prepare what a case needs, once; return the reason why it cannot be run here, None if it can."""
    if case.name == DEMO.name:
        resolved(Cell(case, STRICT, None, 0))
        return None
    if not tldr_file().is_file():
        return f"{tldr_file()} is not there; set PEER_TLDR to a file of posts and summaries."
    if "PEER_MODEL" not in os.environ and not os.environ.get("HF_HOME"):
        return "set PEER_MODEL to a directory with SmolLM2-135M-Instruct."
    _write_posts(posts_folder())
    return None


def _write_posts(folder: Path) -> None:
    """Write the long posts as the three splits of the case smollm, in an order of their own; anew for other posts."""
    lengths = [_LONG_POSTS.start, _LONG_POSTS.stop]
    source = digest(digest_contents({"posts": tldr_file()}), model_digest(smollm_place()), lengths, _TEST, _VALIDATION)
    written = folder / "source.txt"
    if written.exists() and written.read_text(encoding="utf-8") == source:
        return
    written.unlink(missing_ok=True)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm_place())
    rows = [json.loads(line) for line in tldr_file().read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if len(tokenizer(row["prompt"])["input_ids"]) in _LONG_POSTS]
    random.Random(0).shuffle(rows)
    folder.mkdir(parents=True, exist_ok=True)
    held = _TEST + _VALIDATION
    for split, chosen in {"test": rows[:_TEST], "validation": rows[_TEST:held], "train": rows[held:]}.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    written.write_text(source, encoding="utf-8")


def resolved(cell: Cell) -> ResolvedRecipe:
    """Resolve the recipe of a cell; the demo's task is built where it is absent."""
    recipe = load_recipe(recipe_file(cell.case), {"evaluation.test_prompts": cell.case.test_prompts} | cell.overrides())
    return resolve(recipe, reporter(PlainConsole()))


@dataclass(frozen=True)
class Prompts:
    """The prompts of a case, with the token ids that our sampler gets."""

    train: list[Prompt]
    test: list[Prompt]


def prompts(cell: Cell) -> Prompts:
    """Read the prompts of a cell's recipe as `brain run` does."""
    from brain_align.deploy.run.preflight import Inputs, check_inputs

    found = resolved(cell)
    inputs = check_inputs(found.recipe, found.directory)
    assert isinstance(inputs, Inputs), "the recipe samples"
    return Prompts(list(inputs.train), inputs.held_back["test"])
