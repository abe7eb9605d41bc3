"""Reading parts: each is verified before its first row is used, and a bounded number of them stays in memory."""

from collections import OrderedDict
from collections.abc import Iterable

import pyarrow as pa

from brain_align.common.errors import DamagedPartError, UserError
from brain_align.common.store.files.backends import StorageBackend
from brain_align.common.store.format.part_files import Part, decode_part

_KEPT_FILES = 1024
_KEPT_BYTES = 256 << 20
_SMALL = 64 << 10  # bytes; parts up to this size are kept when they are written


class PartReader:
    """The parts of one kind, verified before their first row is returned."""

    def __init__(self, backend: StorageBackend, kind: str, run_id: str | None) -> None:
        """Read parts of one run, and refuse those of other runs; None accepts any run."""
        self._backend = backend
        self._kind = kind
        self._run_id = run_id
        self._verified: set[str] = set()
        self._own: set[str] = set()  # written by this opening
        self._kept: OrderedDict[str, tuple[pa.RecordBatch, int]] = OrderedDict()  # with the file's bytes
        self._kept_bytes = 0

    def batch(self, file: str) -> pa.RecordBatch:
        """Return all rows of a part.

        Raises:
            FileNotFoundError: it is gone.
            DamagedPartError, UserError: see `decode_part`.
        """
        if file in self._kept:
            self._kept.move_to_end(file)
            return self._kept[file][0]
        return self.part(file).batch

    def part(self, file: str) -> Part:
        """Return a part with its metadata; raise as `batch` does."""
        path = f"{self._backend.uri}/{self._kind}/{file}"
        content = self._content(path, file)
        part = decode_part(path, content, self._kind, validate=not (file in self._verified or file in self._own))
        if self._run_id not in (None, part.run_id):
            raise DamagedPartError(f"{path} belongs to run {part.run_id}, and the store to run {self._run_id}.")
        self._verified.add(file)
        if file not in self._kept:
            self._keep(file, part.batch, content.size)
        return part

    def check_again(self, files: Iterable[str]) -> None:
        """Verify these parts again before their next rows are returned.

        Files on a disk may have changed since they were verified; what was fetched stays in memory unchanged.
        """
        if not self._backend.fetches:
            for file in files:
                self._verified.discard(file)
                _, size = self._kept.pop(file, (None, 0))
                self._kept_bytes -= size

    def keep_written(self, file: str, content: pa.Buffer) -> None:
        """Keep a small part that was just written in memory if reading or compacting it would need a transfer.

        Its content needs no validation later, only its checksum.
        """
        self._own.add(file)
        if self._backend.fetches and content.size <= _SMALL:
            path = f"{self._backend.uri}/{self._kind}/{file}"
            batch = decode_part(path, content, self._kind, validate=False).batch
            self._keep(file, batch, content.size)

    def _content(self, path: str, file: str) -> pa.Buffer:
        try:
            if file in self._verified and not self._backend.fetches:
                return self._backend.read(f"{self._kind}/{file}")
            content = self._backend.read_checked(f"{self._kind}/{file}")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error}. Nothing was changed.") from None
        if content is None:
            raise DamagedPartError(
                f"{path} is damaged: its bytes do not match the checksum in its name (truncated or altered)."
            )
        return content

    def _keep(self, file: str, batch: pa.RecordBatch, size: int) -> None:
        self._kept[file] = batch, size
        self._kept_bytes += size
        while len(self._kept) > 1 and (len(self._kept) > _KEPT_FILES or self._kept_bytes > _KEPT_BYTES):
            _, (_, dropped) = self._kept.popitem(last=False)
            self._kept_bytes -= dropped
