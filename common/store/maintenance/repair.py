"""Repair of a damaged store: nothing is deleted, and nothing readable is lost."""

import contextlib
from collections import Counter
from pathlib import Path

from brain_align.common.errors import DamagedPartError, UserError
from brain_align.common.schemas import KINDS
from brain_align.common.store.files.backends import StorageBackend, open_backend
from brain_align.common.store.format.names import is_part
from brain_align.common.store.manifest import FILE, has_parts, read_run_id, write_manifest
from brain_align.common.store.opened_store import OpenedStore
from brain_align.common.store.table.part_reader import PartReader


def repair(uri: str | Path) -> list[str]:
    """Read every part, set aside damaged and foreign ones, and rebuild the index files, and store.json if necessary.

    Returns:
        A sentence per finding and action.

    Raises:
        UserError: there is no store, it has another version, or no file states which run it belongs to.
    """
    backend = open_backend(uri)
    done = []
    try:
        if read_run_id(backend) is None and has_parts(backend):
            write_manifest(backend, _run_id_of_parts(backend))
            done.append(f"{backend.uri}/{FILE} was missing; it was rebuilt from the parts.")
    except DamagedPartError:
        run_id, damaged = _run_id_of_parts(backend), backend.read(FILE)
        backend.put("damaged", FILE, damaged)
        write_manifest(backend, run_id)  # replaced at once: without one, a writer would begin a new store
        done.append(f"{backend.uri}/{FILE} could not be read; it was copied to `damaged` and rebuilt from the parts.")
    store = OpenedStore(uri, None, read_only=False, use_index=False)
    for catalogue in store.kinds.values():
        catalogue.rebuild_index()
    return [*done, *store.damaged]


def _run_id_of_parts(backend: StorageBackend) -> str:
    """Return the run that most parts name: a few parts may be there by mistake."""
    named: Counter[str] = Counter()
    for kind in KINDS:
        reader = PartReader(backend, kind, run_id=None)
        for entry in backend.list(kind):
            if is_part(entry.name):
                with contextlib.suppress(DamagedPartError, FileNotFoundError):
                    named[reader.part(entry.name).run_id] += 1
    if not named:
        raise UserError(
            f"{backend.uri}/{FILE} is missing or damaged, and no part states which run the store belongs to; restore "
            f"it from a copy."
        )
    return named.most_common(1)[0][0]
