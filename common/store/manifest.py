"""store.json: which run a store belongs to, and which version of the format it has."""

import json

import pyarrow as pa

from brain_align.common.errors import DamagedPartError, UserError
from brain_align.common.schemas import KINDS, SCHEMA_VERSION
from brain_align.common.store.files.backends import StorageBackend
from brain_align.common.store.format.names import is_part

FILE = "store.json"


def read_run_id(backend: StorageBackend) -> str | None:
    """The run that a store belongs to; None where there is no store.

    Raises:
        DamagedPartError: the file is damaged.
        UserError: the store is of a newer version.
    """
    try:
        facts = json.loads(backend.read(FILE).to_pybytes())
        run_id, version = str(facts["run_id"]), int(facts["schema_version"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedPartError(
            f"{backend.uri}/{FILE} cannot be read ({error}); `brain store repair {backend.uri}` rebuilds it from the "
            f"parts."
        ) from None
    if version > SCHEMA_VERSION:
        raise UserError(
            f"The sample store {backend.uri} was written by a newer brain-align (schema {version}, this one reads up "
            f"to {SCHEMA_VERSION}); upgrade to read it."
        )
    return run_id


def write_manifest(backend: StorageBackend, run_id: str) -> None:
    """Say which run a store belongs to, in this version of the format."""
    content = pa.py_buffer(json.dumps({"run_id": run_id, "schema_version": SCHEMA_VERSION}).encode())
    backend.put("", FILE, content)


def open_manifest(backend: StorageBackend, run_id: str | None, *, read_only: bool) -> str:
    """Check that a store is the given run's, or make it so if it is new; returns the store's run.

    Raises:
        UserError: it is of another run, or not there, or cannot be read.
    """
    found = read_run_id(backend)
    if found is None and has_parts(backend):
        found = read_run_id(backend)  # unless another has begun the store since we looked
        if found is None:
            raise UserError(
                f"The sample store {backend.uri} has parts but no {FILE}; `brain store repair {backend.uri}` "
                f"rebuilds it from them."
            )
    if found is None:
        if read_only or run_id is None:
            raise UserError(f"There is no sample store at {backend.uri}; check the path.")
        return _begin(backend, run_id)
    if run_id not in (None, found):
        raise _of_another_run(backend, found, run_id)
    if not read_only and json.loads(backend.read(FILE).to_pybytes())["schema_version"] < SCHEMA_VERSION:
        write_manifest(backend, found)  # an older brain-align would take parts of this version for damaged ones
    return found


def has_parts(backend: StorageBackend) -> bool:
    """Whether files lie there that are called as parts are."""
    return any(is_part(entry.name) for kind in KINDS for entry in backend.list(kind))


def _begin(backend: StorageBackend, run_id: str) -> str:
    backend.prepare()
    write_manifest(backend, run_id)
    found = read_run_id(backend)
    if found != run_id:  # two began it at once, and the other's word stands
        raise _of_another_run(backend, found, run_id)
    return run_id


def _of_another_run(backend: StorageBackend, found: str | None, wanted: str | None) -> UserError:
    return UserError(
        f"The sample store {backend.uri} belongs to run {found}, not to {wanted}: choose another run directory or "
        f"store.uri, or remove the store."
    )
