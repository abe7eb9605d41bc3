"""Reading parts: each is checked before its first row, and only as many stay in memory as a process may have."""

from collections import OrderedDict
from collections.abc import Iterable

import pyarrow as pa

from brain_align.common.errors import DamagedPartError, UserError
from brain_align.common.store.files.backends import StorageBackend
from brain_align.common.store.format.checksums import checksum_of
from brain_align.common.store.format.part_files import Part, decode_part

_KEPT_FILES = 1024
_KEPT_BYTES = 256 << 20
_SMALL = 64 << 10  # bytes of a part that is kept when it is written


class PartReader:
    """The parts of one kind, verified before their first row is given out."""

    def __init__(self, backend: StorageBackend, kind: str, run_id: str | None) -> None:
        """Read parts of `run_id`, and refuse those of other runs; None: of any run."""
        self._backend = backend
        self._kind = kind
        self._run_id = run_id
        self._verified: set[str] = set()
        self._kept: OrderedDict[str, tuple[pa.RecordBatch, int]] = OrderedDict()  # with the file's bytes
        self._kept_bytes = 0

    def batch(self, file: str) -> pa.RecordBatch:
        """All rows of a part.

        Raises:
            FileNotFoundError: it is gone.
            DamagedPartError, UserError: see `decode_part`.
        """
        if file in self._kept:
            self._kept.move_to_end(file)
            return self._kept[file][0]
        return self.part(file).batch

    def part(self, file: str) -> Part:
        """A part with what its metadata says.

        Raises:
            FileNotFoundError, DamagedPartError, UserError: as for `batch`.
        """
        path = f"{self._backend.uri}/{self._kind}/{file}"
        content = self._content(path, file)
        part = decode_part(path, content, self._kind)
        if part.run_id is not None and self._run_id not in (None, part.run_id):
            raise DamagedPartError(f"{path} is of another run: of {part.run_id}, and the store of {self._run_id}.")
        self._verified.add(file)
        if file not in self._kept:
            self._keep(file, part.batch, content.size)
        return part

    def check_again(self, files: Iterable[str]) -> None:
        """Check these parts anew before their next rows are given out.

        What stands on a disk may have changed since it was checked; what was fetched stays in memory as it was.
        """
        if not self._backend.fetches:
            for file in files:
                self._verified.discard(file)
                _, size = self._kept.pop(file, (None, 0))
                self._kept_bytes -= size

    def keep_written(self, file: str, content: pa.Buffer) -> None:
        """Keep a small part that was just written, where it would have to be fetched to be read or compacted."""
        if self._backend.fetches and content.size <= _SMALL:
            self._keep(
                file, decode_part(f"{self._backend.uri}/{self._kind}/{file}", content, self._kind).batch, content.size
            )

    def _content(self, path: str, file: str) -> pa.Buffer:
        try:
            if file in self._verified and not self._backend.fetches:
                return self._backend.read(f"{self._kind}/{file}")
            content = self._backend.read_checked(f"{self._kind}/{file}", checksum_of(file))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error}; nothing was changed.") from None
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
