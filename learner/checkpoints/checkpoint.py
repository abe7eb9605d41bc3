"""Checkpoint directories: each appears complete or not at all; the newest few and requested ones are kept.

`checkpoints/step-000040/` holds its writer's files, and `checkpoint.json` with the step and a digest of the files. The
directory is written under another name and renamed when everything is on disk (common/durable.py), so a directory under
its own name with its marker is complete.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from brain_align.common.durable import new_directory, remove_leftovers, write_file
from brain_align.common.errors import UserError, unreadable
from brain_align.common.identity import digest_files

_MARKER = "checkpoint.json"
_PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    step: int
    path: Path


class CheckpointDirectory:
    """The checkpoints of one run, of which the newest `keep` stay; only one process may save, rank 0."""

    def __init__(self, root: Path, keep: int) -> None:
        self.root = root
        self.keep = keep

    def has(self, step: int) -> bool:
        """Return whether there is a complete checkpoint of a step."""
        return (self._path(step) / _MARKER).exists()

    def save(self, step: int, write: Callable[[Path], None]) -> Checkpoint:
        """Save a checkpoint whose files `write(directory)` creates; keep an existing one as it is."""
        target = self._path(step)
        if not self.has(step):
            with new_directory(target) as directory:
                write(directory)
                names = sorted(file.name for file in directory.iterdir())
                facts = {"step": step, "files": names, "digest": digest_files(directory, names)}
                write_file(directory / _MARKER, json.dumps(facts, indent=1))
        return Checkpoint(step, target)

    def remove_old(self, kept_steps: Sequence[int] = ()) -> None:
        """Delete all but the newest `keep` checkpoints and those of `kept_steps`."""
        for old in self._complete()[: -self.keep]:
            if old.step not in kept_steps:
                _remove(old.path)

    def newest(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, checked against its digest; None before the first.

        Raises:
            UserError: its files cannot be read, or differ from what was written.
        """
        complete = self._complete()
        if not complete:
            return None
        checkpoint = complete[-1]
        try:
            facts = json.loads((checkpoint.path / _MARKER).read_text(encoding="utf-8"))
            intact = digest_files(checkpoint.path, facts["files"]) == facts["digest"]
        except FileNotFoundError:
            intact = False
        except OSError as error:
            raise self._unreadable(checkpoint.path, error) from error
        except (ValueError, KeyError, TypeError):
            intact = False
        if not intact:
            raise UserError(
                f"The checkpoint {checkpoint.path} is damaged: its files differ from what was written; delete "
                f"that directory, and the run resumes from the checkpoint before it, or from the start."
            )
        return checkpoint

    def remove_leftovers(self) -> None:
        """Delete the remains of interrupted saves; only the one saving process may call this."""
        remove_leftovers(self.root)
        marked = {checkpoint.path for checkpoint in self._complete()}
        for entry in self._entries():
            if entry not in marked:
                _remove(entry)

    def _path(self, step: int) -> Path:
        return self.root / f"{_PREFIX}{step:06d}"

    def _complete(self) -> list[Checkpoint]:
        """Return all checkpoints with a marker, oldest first; a folder that cannot be read is not an empty one."""
        found = [entry for entry in self._entries() if entry.name.removeprefix(_PREFIX).isdigit()]
        try:
            marked = [entry for entry in found if (entry / _MARKER).exists()]
        except OSError as error:
            raise self._unreadable(self.root, error) from error
        complete = (Checkpoint(int(entry.name.removeprefix(_PREFIX)), entry) for entry in marked)
        return sorted(complete, key=lambda checkpoint: checkpoint.step)

    def _entries(self) -> list[Path]:
        try:
            names = os.listdir(self.root)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._unreadable(self.root, error) from error
        return [self.root / name for name in names if name.startswith(_PREFIX)]

    def _unreadable(self, path: Path, error: OSError) -> UserError:
        return UserError(f"The learner's checkpoints: {unreadable(path, error, self.root, '')}")


def _remove(directory: Path) -> None:
    """Delete a checkpoint, its marker first, so that a partly deleted one never counts as complete."""
    (directory / _MARKER).unlink(missing_ok=True)
    shutil.rmtree(directory)
