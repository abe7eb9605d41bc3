"""One opening of a store: its files, the rows that it knows, and how it appends to them."""

import logging
import os
import socket
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa

from brain_align.common.errors import UserError
from brain_align.common.schemas import KINDS
from brain_align.common.store.files.backends import LocalBackend, open_backend, unusable
from brain_align.common.store.format.names import checksum, commit_name, plain_file
from brain_align.common.store.format.part_files import encode_part
from brain_align.common.store.manifest import open_manifest
from brain_align.common.store.table.catalogue import Catalogue
from brain_align.common.store.table.compaction import SMALL, Author, compact, remove_superseded
from brain_align.common.store.table.keys import Rows
from brain_align.common.store.training_lock import DIRECTORY as LOCKS

_LOG = logging.getLogger(__name__)
_NONE = np.zeros(0, dtype=np.int64)
_UNFINISHED_SECONDS = 3600.0  # age at which an unfinished file is considered abandoned
IN_ORDER_OF_DEPENDENCE = ("steps", "scores", "groups")
"""The order in which the kinds are listed, so that all that a listed row refers to is listed as well."""
FOLDERS = (*KINDS, "index", LOCKS, "removed", "damaged")
"""The folders of a store, which lie beside store.json."""


class OpenedStore:
    """The files and rows of a store that one reader or writer knows."""

    def __init__(self, uri: str | Path, run_id: str | None, *, read_only: bool, use_index: bool = True) -> None:
        """Open a store as `SampleStore` does, or read and check every part instead of using the index.

        Raises:
            UserError: it does not exist, belongs to another run, has another version, or cannot be read.
        """
        self.backend = open_backend(uri)
        self._read_only = read_only
        self.damaged: list[str] = []  # a sentence for each file that was found damaged
        self._parts_since = dict.fromkeys(KINDS, 0)  # written since small parts were last compacted
        try:
            self.run_id = open_manifest(self.backend, run_id, read_only=read_only)
            self.author = Author(uuid.uuid4().hex[:8], f"{socket.gethostname()}:{os.getpid()}", self.run_id)
            if not read_only:
                self._remove_unfinished()
            self.kinds = {
                kind: Catalogue(kind, self.backend, self.run_id, self._found_damaged, use_index=use_index)
                for kind in IN_ORDER_OF_DEPENDENCE
            }
            if not read_only:
                for catalogue in self.kinds.values():
                    catalogue.write_index()
        except OSError as error:
            raise unusable(self.backend, "opened", error) from error

    def append(self, kind: str, batch: pa.RecordBatch, replaced: Rows = _NONE) -> None:
        """Commit rows with new keys, or in place of `replaced` ones; when this returns, they survive a power cut.

        Raises:
            UserError: the disk is full, read-only or gone; no row of the batch was committed.
        """
        if self._read_only:
            raise ValueError(f"the sample store {self.backend.uri} was opened read-only")
        catalogue = self.kinds[kind]
        content = encode_part(kind, batch, self.author.origin, self.run_id)
        commit = commit_name(catalogue.next_sequence, self.author.writer, checksum(content))
        try:
            self.backend.put(kind, plain_file(commit), content)
        except OSError as error:
            failure = unusable(self.backend, "written", error)
            raise UserError(f"{failure} No acknowledged row is lost; fix the cause and run again.") from error
        catalogue.committed(commit, content, batch, replaced)
        self._keep_in_order(kind)

    def _keep_in_order(self, kind: str) -> None:
        """Bring the index up to date; from time to time, compact small parts (a step has a few hundred bytes).

        The batch is committed already, so failures here are logged; a later append or opening does the work.
        """
        catalogue = self.kinds[kind]
        self._parts_since[kind] += 1
        try:
            catalogue.write_index()
            if self._parts_since[kind] >= SMALL.fewest:
                self._parts_since[kind] = 0
                compact(self.backend, catalogue, self.author, SMALL)
                remove_superseded(self.backend, catalogue)
        except (OSError, UserError) as error:
            _LOG.warning("The %s of %s were written, but index or compaction failed: %s", kind, self.backend.uri, error)

    def _found_damaged(self, kind: str, file: str, reason: str) -> str:
        if not self._read_only:
            target = f"damaged/{kind}-{file}"
            self.backend.move(f"{kind}/{file}", target)
            reason = f"{reason} It was moved to {self.backend.uri}/{target}; restart the run to produce its rows again."
            _LOG.warning(reason)
        if reason not in self.damaged:
            self.damaged.append(reason)
        return reason

    def _remove_unfinished(self) -> None:
        if isinstance(self.backend, LocalBackend):
            for directory in ("", "index", LOCKS, *KINDS):
                self.backend.remove_unfinished(directory, _UNFINISHED_SECONDS)
