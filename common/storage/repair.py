"""Bringing a damaged store back to use: nothing is deleted, and nothing that can be read is lost."""

from pathlib import Path

from common.errors import DamagedPartError, UserError
from common.schemas import KINDS
from common.storage.facts import FILE, read_run_id, write_facts
from common.storage.names import is_part
from common.storage.opening import Opening
from common.storage.part_reader import PartReader
from common.storage.places import Place, open_place


def repair(uri: str | Path) -> list[str]:
    """Read every part, set aside what is damaged or foreign, and make store.json and the index files anew.

    Returns:
        A sentence for each thing that was found and done.

    Raises:
        UserError: there is no store, it is of a newer version, or nothing says which run it belongs to.
    """
    place = open_place(uri)
    done = []
    try:
        read_run_id(place)
    except DamagedPartError:
        run_id = _run_id_of_parts(place)
        place.move(FILE, f"damaged/{FILE}")
        write_facts(place, run_id)
        done.append(f"{place.uri}/{FILE} could not be read; it was moved to `damaged` and made again from the parts.")
    store = Opening(uri, None, read_only=False, use_index=False)
    for catalogue in store.kinds.values():
        catalogue.drop_index()
        catalogue.write_index(at_least=1)
    return [*done, *store.damaged]


def _run_id_of_parts(place: Place) -> str:
    for kind in KINDS:
        reader = PartReader(place, kind)
        for entry in place.list(kind):
            if is_part(entry.name):
                try:
                    run_id = reader.part(entry.name).run_id
                except DamagedPartError:
                    continue
                if run_id is not None:
                    return run_id
    raise UserError(
        f"{place.uri}/{FILE} cannot be read, and no part says which run the store belongs to; restore it from a copy."
    )
