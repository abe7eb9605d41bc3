"""The registry of proposal versions, which the learner publishes and the samplers load.

`policies/v000007/` holds one version: an adapter (PEFT format) or a whole model (HF format), and `version.json` with
the digest of the files, the step that it came from, a probe with which a sampler checks that it loaded the same
weights, and the address that serves the files. A version appears complete or not at all and is never changed.

    brain_align.learner.publishing -> PolicyRegistry -> brain_align.sampler.weights
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from brain_align.common.durable import new_directory, remove_leftovers, write_file
from brain_align.common.errors import UserError, unreadable
from brain_align.common.identity import digest_files

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""The files of an adapter, in PEFT's format."""
_MARKER = "version.json"
_RESTORE = "restore the directory from a copy, or start a new run"


@dataclass(frozen=True)
class ProposalModel:
    """The model that a run's versions belong to: adapters attach to it, or whole models replace its weights."""

    source: str  # directory or hub id
    adapter_rank: int | None  # the largest rank in the adapters; None where the versions are whole models
    merged: bool = False  # whether samplers add adapters to its weights, instead of computing with them beside it


@dataclass(frozen=True)
class Probe:
    """A short text with the log-probabilities that the learner's policy gives it, which samplers must reproduce."""

    prompt: list[int]  # token ids
    continuation: list[int]  # token ids
    logprobs: list[float]  # log q(y_t | x, y_<t) in nats of each token of the continuation, at temperature 1


@dataclass(frozen=True)
class ProposalVersion:
    """One published version of the proposal q'.

    `server` is the "host:port" of the process that served its files when it was published, if there was one; it may
    have ended since.
    """

    version: int  # its number in its run
    digest: str  # of its files; equal files are the same distribution
    step: int  # the optimiser step that it came from
    path: Path  # its directory
    files: tuple[str, ...]  # the names of its files below `path`
    probe: Probe
    server: str | None


class UnreadableVersionError(UserError):
    """A version is not there, or cannot be read: never published, taken away, or not yet seen by a file system."""


class PolicyRegistry:
    """All published proposal versions below one directory, shared by learner (writes) and samplers (read)."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def path(self, version: int) -> Path:
        """Return the directory of a version, published or not."""
        return self.root / f"v{version:06d}"

    def is_published(self, version: int) -> bool:
        """Return whether a version exists."""
        return self.path(version).exists()

    def publish(
        self,
        version: int,
        step: int,
        write: Callable[[Path], None],
        probe: Probe,
        server: str | None = None,
    ) -> ProposalVersion:
        """Publish a version whose files `write(directory)` creates; keep an existing one as it is.

        The learner publishes right after a checkpoint, so a resumed learner would write the same weights again; in any
        case, files that samplers have used must not change.
        """
        target = self.path(version)
        if not self.is_published(version):
            remove_leftovers(self.root)
            with new_directory(target) as directory:
                write(directory)
                names = sorted(str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file())
                facts = {
                    "version": version,
                    "digest": digest_files(directory, names),
                    "step": step,
                    "files": names,
                    "probe": asdict(probe),
                    "server": server,
                }
                write_file(directory / _MARKER, json.dumps(facts, indent=1))
        return self.get(version)

    def get(self, version: int) -> ProposalVersion:
        """Read a version's marker.

        Raises:
            UnreadableVersionError: the version was never published, or its marker cannot be read.
        """
        directory = self.path(version)
        try:
            facts = json.loads((directory / _MARKER).read_text(encoding="utf-8"))
            facts |= {"path": directory, "files": tuple(facts["files"]), "probe": Probe(**facts["probe"])}
            known = {field.name: facts[field.name] for field in fields(ProposalVersion)}  # a newer version may say more
            return ProposalVersion(**known)
        except OSError as error:
            raise self._unreadable(version, directory / _MARKER, error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise UnreadableVersionError(
                f"Proposal version {version} in {directory} is damaged: {_MARKER} is not what was written ({error}); "
                f"{_RESTORE}."
            ) from error

    def verify(self, version: int) -> ProposalVersion:
        """Read a version and check its files against the digest that it was published with.

        Raises:
            UnreadableVersionError: as for `get`, or one of its files cannot be read.
            UserError: the files differ from what was published.
        """
        found = self.get(version)
        try:
            actual = digest_files(found.path, list(found.files))
        except OSError as error:
            raise self._unreadable(version, found.path, error) from error
        if actual != found.digest:
            raise UserError(
                f"Proposal version {version} in {found.path} is damaged: its digest is {actual}, but "
                f"{found.digest} was published; {_RESTORE}."
            )
        return found

    def versions(self) -> list[int]:
        """Return the numbers of all published versions, oldest first.

        Raises:
            UserError: this user may not look, or the file system fails.
        """
        try:
            names = os.listdir(self.root)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"The versions of the policy: {unreadable(self.root, error, self.root, '')}") from error
        return sorted(int(name[1:]) for name in names if name[0] == "v" and name[1:].isdigit())

    def newest(self) -> ProposalVersion | None:
        """Return the newest published version, or None before the first."""
        versions = self.versions()
        return self.get(versions[-1]) if versions else None

    def _unreadable(self, version: int, path: Path, error: OSError) -> UnreadableVersionError:
        gone = (
            f"it is not complete in {self.path(version)}: it was never published, or files of it were removed; "
            f"{_RESTORE}."
        )
        reason = unreadable(path, error, self.root, gone)
        return UnreadableVersionError(f"Proposal version {version} cannot be read: {reason}")
