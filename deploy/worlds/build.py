"""Prepares data and models, once, for a recipe with a `prepare` section: a toy task, or one from a pretrained model.

The directory that holds them is called a world: data splits, tokenizer, SFT policy and reward model.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from brain_align.common.config.run import PrepareSection
from brain_align.common.durable import is_temporary, new_directory
from brain_align.common.errors import UserError
from brain_align.common.identity import digest, digest_files
from brain_align.common.system.locks import file_lock
from brain_align.deploy.demo.world import build_demo
from brain_align.deploy.worlds.files import save_facts
from brain_align.deploy.worlds.hh import build_hh
from brain_align.deploy.worlds.pretrained.base import open_base
from brain_align.deploy.worlds.pretrained.build import build_pretrained
from brain_align.deploy.worlds.pretrained.identity import Identity, identify, remember
from brain_align.deploy.worlds.tldr import build_tldr
from brain_align.deploy.worlds.training import Progress, Recorder

# Versions of the code that builds each kind: a change of its results must raise the number.
_VERSIONS = {"demo": 1, "hh": 2, "tldr": 1}
_PRETRAINED_VERSION = 1  # likewise, of the code that fine-tunes pretrained models
_SEVERAL_EPOCHS_VERSION = 2  # the same for more than one epoch
_THREADS = 4  # more threads only slow down such small models

Builder = Callable[[Path, int, Sequence[Path], Recorder], dict[str, object]]
_BUILDERS: dict[str, Builder] = {"demo": build_demo, "hh": build_hh, "tldr": build_tldr}


def ensure_world(
    settings: PrepareSection, cache_dir: Path, data_path: str | Sequence[str] | None, progress: Progress
) -> Path:
    """Return the directory of the prepared data that `settings` ask for; build it if the cache lacks it.

    The directory is named by a digest of the settings, the raw data, the base and the version of this code, and appears
    when it is complete. Two processes that need the same directory at the same time build it once. One that is complete
    is found without TRL, and without its base if that was there earlier. `data_path` names files or directories of raw
    data; the demo needs none. `progress` is called with one line of text now and then.

    Raises:
        UserError: the raw data or the base is missing or does not fit.
        OSError: a file of the base cannot be read.
    """
    files = _data_files(settings.kind, data_path)
    contents = [digest_files(file.parent, [file.name]) for file in files]
    identity = None if settings.base is None else identify(settings.base, cache_dir)
    world = cache_dir / f"{settings.kind}-{_digest(settings, contents, identity)[:12]}"
    if world.is_dir():
        _note_base(settings, cache_dir, identity, progress)
        return world
    if identity is not None and identity.missing is not None:
        raise identity.missing
    base = None if settings.base is None else open_base(settings)
    cache_dir.mkdir(parents=True, exist_ok=True)
    _note_base(settings, cache_dir, identity, progress)
    with _only_one(world, progress) as locked:
        if not world.is_dir():
            if locked:  # so no builder of it is alive
                _remove_leftovers(world)
            try:
                if base is None:
                    _build(settings, world, files, progress)
                else:
                    with _quiet():
                        build_pretrained(world, base, settings, files, progress, locked=locked)
            except OSError:
                if not world.is_dir():  # else another, that no lock has stopped, was faster; it has the same content
                    raise
    return world


def _digest(settings: PrepareSection, contents: Sequence[str], base: Identity | None) -> str:
    if base is None:
        return digest("world", _VERSIONS[settings.kind], settings.kind, settings.seed, contents)
    decisive = settings.model_dump(mode="json", exclude={"base", *settings.OPERATIONAL})
    several = max(settings.sft.epochs, settings.reward.epochs) > 1
    version = _SEVERAL_EPOCHS_VERSION if several else _PRETRAINED_VERSION
    return digest("pretrained world", version, decisive, base.digest, contents)


def _note_base(settings: PrepareSection, cache_dir: Path, base: Identity | None, progress: Progress) -> None:
    if settings.base is None or base is None:
        return
    if base.missing is not None:
        progress(f"prepare.base={settings.base} is not there now; using what was prepared from it earlier")
    remember(base, settings.base, cache_dir)


def _remove_leftovers(world: Path) -> None:
    """Delete what killed builders of this world left."""
    for entry in world.parent.iterdir():
        if is_temporary(entry) and world.name in entry.name:
            shutil.rmtree(entry)


def _build(settings: PrepareSection, world: Path, files: Sequence[Path], progress: Progress) -> None:
    recorder = Recorder(progress)
    started = time.monotonic()
    with new_directory(world) as directory, _quiet(), _seeded(settings.seed):
        facts = _BUILDERS[settings.kind](directory, settings.seed, files, recorder)
        seconds = {**recorder.seconds, "total": round(time.monotonic() - started, 1)}
        save_facts(directory, {"kind": settings.kind, "seed": settings.seed, **facts, "seconds": seconds})
    progress(f"{settings.kind} task: prepared in {seconds['total']:.0f} s")


def _data_files(kind: str, data_path: str | Sequence[str] | None) -> list[Path]:
    """Return the raw files of a kind, in a fixed order; the digest covers their contents, not their names."""
    if kind == "demo":
        return []
    if not data_path:
        raise UserError(f"prepare.kind={kind} needs raw data; set data.path to its directory or files.")
    files: list[Path] = []
    for path in map(Path, [data_path] if isinstance(data_path, str) else data_path):
        if not path.exists():
            raise UserError(
                f"data.path names {path}, which does not exist; set it to the raw data of prepare.kind={kind}."
            )
        found = (
            sorted(p for p in path.iterdir() if p.name.endswith((".jsonl", ".jsonl.gz"))) if path.is_dir() else [path]
        )
        if not found:
            raise UserError(f"data.path names {path}, which holds no .jsonl or .jsonl.gz file.")
        files += found
    return files


@contextmanager
def _only_one(world: Path, progress: Progress) -> Iterator[bool]:
    """Hold the lock for building `world`; the system releases it if the process dies."""
    path = world.with_name(f".{world.name}.lock")
    with ExitStack() as held:
        try:
            locked = held.enter_context(file_lock(path))
        except BlockingIOError:
            progress(f"{world.name}: another process is preparing it; waiting")
            locked = held.enter_context(file_lock(path, wait=True))
        yield locked


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch and limit its threads; restore both afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(min(_THREADS, os.cpu_count() or 1))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers; restore what it said before afterwards."""
    verbosity, progress_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if progress_bars:
            transformers_logging.enable_progress_bar()
