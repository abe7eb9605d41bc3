"""Reading parts: each is checked once in an opening, and only as many stay mapped as a process may have."""

from collections import OrderedDict

import pyarrow as pa

from common.errors import UserError
from common.storage.names import PartName, parse_name
from common.storage.part_files import Part, decode_part, open_part
from common.storage.places import Place

_KEPT_FILES = 1024
_KEPT_BYTES = 256 << 20


class PartReader:
    """The parts of one kind, verified before their first row is given out."""

    def __init__(self, place: Place, kind: str) -> None:
        self._place = place
        self._kind = kind
        self._verified: set[str] = set()
        self._kept: OrderedDict[str, tuple[pa.RecordBatch, int]] = OrderedDict()
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
        name = parse_name(file)
        if name is None:
            raise ValueError(f"{file} is no part")
        try:
            content = self._place.read(f"{self._kind}/{file}")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UserError(
                f"{self._place.uri}/{self._kind}/{file} cannot be read: {error}; nothing was changed."
            ) from None
        part = self._open(file, name, content)
        if file not in self._kept:
            self._keep(file, part.batch, content.size)
        return part

    def is_verified(self, file: str) -> bool:
        """Whether the part was checked in this opening."""
        return file in self._verified

    def _open(self, file: str, name: PartName, content: pa.Buffer) -> Part:
        path = f"{self._place.uri}/{self._kind}/{file}"
        if file in self._verified:
            return open_part(path, name, content, self._kind)
        part = decode_part(path, name, content, self._kind)
        self._verified.add(file)
        return part

    def _keep(self, file: str, batch: pa.RecordBatch, size: int) -> None:
        self._kept[file] = batch, size
        self._kept_bytes += size
        while len(self._kept) > 1 and (len(self._kept) > _KEPT_FILES or self._kept_bytes > _KEPT_BYTES):
            _, (_, dropped) = self._kept.popitem(last=False)
            self._kept_bytes -= dropped
