"""store.json, the manifest: the run that a store belongs to, and the version of its format."""

import json

import pyarrow as pa

from brain_align.common.errors import DamagedPartError, UserError
from brain_align.common.schemas import KINDS, SCHEMA_VERSION
from brain_align.common.store.files.backends import StorageBackend
from brain_align.common.store.format.names import is_part
from brain_align.common.store.format.part_files import check_version

FILE = "store.json"


def read_run_id(backend: StorageBackend) -> str | None:
    """Return the run that a store belongs to, or None if there is no store.

    Raises:
        DamagedPartError: the file is damaged.
        UserError: the store has another version of the format.
    """
    try:
        manifest = json.loads(backend.read(FILE).to_pybytes())
        run_id, version = str(manifest["run_id"]), int(manifest["schema_version"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedPartError(
            f"{backend.uri}/{FILE} cannot be read ({error}); `brain store repair {backend.uri}` rebuilds it from the "
            f"parts."
        ) from None
    check_version(f"The sample store {backend.uri}", version)
    return run_id


def write_manifest(backend: StorageBackend, run_id: str) -> None:
    """Record which run a store belongs to."""
    content = pa.py_buffer(json.dumps({"run_id": run_id, "schema_version": SCHEMA_VERSION}).encode())
    backend.put("", FILE, content)


def open_manifest(backend: StorageBackend, run_id: str | None, *, read_only: bool) -> str:
    """Make sure that a store belongs to the given run, or create the store; return the store's run.

    Raises:
        UserError: it belongs to another run, does not exist, or cannot be read.
    """
    found = read_run_id(backend)
    if found is None and has_parts(backend):
        found = read_run_id(backend)  # unless another process has created the store since the first look
        if found is None:
            raise UserError(
                f"The sample store {backend.uri} has parts but no {FILE}; `brain store repair {backend.uri}` "
                f"rebuilds it from them."
            )
    if found is None:
        if read_only or run_id is None:
            raise UserError(f"There is no sample store at {backend.uri}; check the path.")
        backend.prepare()
        write_manifest(backend, run_id)
        found = read_run_id(backend)  # of two that create it at once, the last one's file stands
    if run_id not in (None, found):
        raise UserError(
            f"The sample store {backend.uri} belongs to run {found}, not to {run_id}: choose another run directory or "
            f"store.uri, or remove the store."
        )
    return str(found)


def has_parts(backend: StorageBackend) -> bool:
    """Return whether the store's folders hold any file that is named like a part."""
    return any(is_part(entry.name) for kind in KINDS for entry in backend.list(kind))
