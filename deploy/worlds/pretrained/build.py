"""A world from a pretrained model, stage by stage: what a killed preparation has finished is not done again."""

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from brain_align.common.config.run import PrepareSection
from brain_align.common.durable import fsync_path, remove_leftovers, write_file
from brain_align.deploy.worlds.files import save_prompts
from brain_align.deploy.worlds.pretrained.base import Base
from brain_align.deploy.worlds.pretrained.pairs import Pair, Pairs, read_pairs
from brain_align.deploy.worlds.pretrained.policy import held_out_loss, make_policy
from brain_align.deploy.worlds.pretrained.quality import agreement, quality, shortcoming
from brain_align.deploy.worlds.pretrained.report import FACTS, JUDGES
from brain_align.deploy.worlds.pretrained.reward import make_reward_model, margins, reward_texts, reward_tokenizer
from brain_align.deploy.worlds.pretrained.splits import Splits, prompt_row, split_pairs
from brain_align.deploy.worlds.pretrained.training import Spent, Stage
from brain_align.deploy.worlds.training import Progress

_UNDER_WAY = "under-way"  # facts and checkpoints of a world that is not complete
Facts = dict[str, Any]


def build_pretrained(
    world: Path, base: Base, settings: PrepareSection, files: Sequence[Path], progress: Progress, *, locked: bool
) -> None:
    """Build a world from a pretrained model, or go on with one whose building was killed.

    Until it is complete, it lies beside its place under the name `WORLD.partial`. `locked`: no other process builds it
    now. Where that cannot be known, for lack of file locks, it is built in a directory of this process's own.

    Raises:
        OSError: a world of this name has appeared meanwhile.
        UserError: the data have too few usable pairs, or the base cannot be loaded.
    """
    data = read_pairs(settings.kind, files, Random(settings.seed))
    if not base.templated:  # a plain text goes on with the space that begins its next word
        data = Pairs([_spaced(pair) for pair in data.pairs], data.meaning, data.dropped)
    splits = split_pairs(data, settings, base.encoding, settings.seed)
    partial = _unfinished(world, progress, locked=locked)
    partial.mkdir(exist_ok=True)
    remove_leftovers(partial)
    task = _Task(partial, base, settings, splits, progress)
    with _quiet():
        facts = task.all_stages()
    rows = {"usable": len(data.pairs), "dropped": data.dropped, **splits.sizes()}
    about = {"kind": settings.kind, "seed": settings.seed, "base": base.source, "measures": data.meaning, "rows": rows}
    about |= {"templated": base.templated, "max_pair_tokens": settings.max_pair_tokens}
    write_file(partial / FACTS, json.dumps({**about, **facts}, indent=2) + "\n")
    try:
        os.rename(partial, world)
    except OSError:
        if not locked and world.is_dir():  # another process, that no lock has stopped, was faster
            shutil.rmtree(partial)
        raise
    fsync_path(world.parent)
    shutil.rmtree(world / _UNDER_WAY)  # last: without it, a killed process would have to do everything again


def _unfinished(world: Path, progress: Progress, *, locked: bool) -> Path:
    """Return where a world is built: without locks, a place that no other process shares."""
    name = f"{world.name}.partial"
    if locked:
        return world.with_name(name)
    own = world.with_name(f"{name}-{socket.gethostname()}-{os.getpid()}")
    progress(
        f"{world.parent} has no file locks, so {world.name} is prepared in a directory of this process alone; if the "
        f"process is killed, delete {own.name}: the next one starts over"
    )
    return own


@dataclass(frozen=True)
class _Task:
    """The stages of one world, each of which leaves its facts in a file when it is finished."""

    place: Path
    base: Base
    settings: PrepareSection
    splits: Splits
    progress: Progress

    def all_stages(self) -> Facts:
        self._stage("data", self._write_data)
        facts: Facts = {"reward": self._judge("reward")}  # first: it decides whether the rest is worth the time
        facts["policy"] = self._stage("policy", self._make_policy)
        facts["policy"] |= self._stage("policy held-out", self._measure_policy)
        facts["gold"] = self._judge("gold")
        both = [facts[judge].pop("margins") for judge in JUDGES]
        facts["agreement"] = agreement(*both)
        facts["warnings"] = [facts[judge]["warning"] for judge in JUDGES if facts[judge]["warning"]]
        seconds = {
            path.stem: json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in self._facts().glob("*.json")
        }
        facts["seconds"] = {**dict(sorted(seconds.items())), "total": round(sum(seconds.values()), 1)}
        return facts

    def _judge(self, name: str) -> Facts:
        made = self._stage(name, lambda: self._make_judge(name))
        measured = self._stage(f"{name} held-out", lambda: self._measure(name))
        if measured["warning"]:
            self.progress(measured["warning"])
        return {**made, **measured}

    def _facts(self) -> Path:
        return self.place / _UNDER_WAY / "facts"

    def _stage(self, name: str, make: Callable[[], Facts]) -> Facts:
        """Return the facts of a stage; do it unless an earlier process has finished it."""
        path = self._facts() / f"{name}.json"
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))["facts"]
        with Spent(self._checkpoints(name)) as spent:
            facts = make()
        write_file(path, json.dumps({"facts": facts, "seconds": round(spent.seconds(), 1)}))
        shutil.rmtree(self._checkpoints(name), ignore_errors=True)
        return facts

    def _checkpoints(self, name: str) -> Path:
        return self.place / _UNDER_WAY / name

    def _training(self, name: str, label: str) -> Stage:
        seed = self.settings.seed + (JUDGES.index(name) if name in JUDGES else 0)
        return Stage(label, self._checkpoints(name), self.progress, seed)

    def _write_data(self) -> Facts:
        conversation = self.settings.kind == "hh"
        for split, pairs in self.splits.prompts.items():
            save_prompts(self.place, split, [prompt_row(pair, conversation=conversation) for pair in pairs])
        for name in ("held_out", *JUDGES):
            rows = [prompt_row(pair, conversation=conversation) for pair in getattr(self.splits, name)]
            save_prompts(self.place, name, rows, folder="pairs")
        return {}

    def _make_policy(self) -> Facts:
        self._remove("policy")
        stage = self._training("policy", "SFT policy")
        return make_policy(self.base, self.settings, self.splits.prompts["train"], self.place / "policy", stage)

    def _measure_policy(self) -> Facts:
        pairs = [*self.splits.prompts["validation"], *self.splits.prompts["test"]]
        self.progress("SFT policy: held-out loss")
        losses = [
            held_out_loss(source, self.base, self.settings, pairs)
            for source in (self.base.source, str(self.place / "policy"))
        ]
        return {"base_loss": losses[0], "held_out_loss": losses[1]}

    def _make_judge(self, judge: str) -> Facts:
        self._remove(judge)
        stage = self._training(judge, f"{judge} model")
        return make_reward_model(self.base, self.settings, self._pairs(judge), self.place / judge, stage)

    def _measure(self, judge: str) -> Facts:
        held_out = self.splits.held_out
        found = margins(self.place / judge, self.base, self.settings, held_out, f"{judge} model", self.progress)
        figures = quality(found, self._longer(held_out), self._longer(self._pairs(judge)))
        return {"quality": figures, "warning": shortcoming(judge, figures), "margins": found}

    def _pairs(self, judge: str) -> list[Pair]:
        return self.splits.reward if judge == "reward" else self.splits.gold

    def _longer(self, pairs: Sequence[Pair]) -> list[int]:
        """Return by how many tokens each chosen output is longer."""
        texts = reward_texts(reward_tokenizer(self.base), self.base, self.settings)
        tokenizer = texts.tokenizer
        sides = [
            tokenizer([getattr(pair, side) for pair in pairs], add_special_tokens=False)["input_ids"]
            for side in ("chosen", "rejected")
        ]
        return [len(chosen) - len(rejected) for chosen, rejected in zip(*sides, strict=True)]

    def _remove(self, model: str) -> None:
        """Delete a model that was written by a process that was killed before it noted so."""
        shutil.rmtree(self.place / model, ignore_errors=True)


def _spaced(pair: Pair) -> Pair:
    return Pair(pair.prompt, " " + pair.chosen, " " + pair.rejected)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the libraries' bars; leave torch's random numbers, and no memory of a GPU behind."""
    import datasets

    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        if bars:
            datasets.enable_progress_bars()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
