"""Bringing a damaged store back to use: nothing is deleted, and nothing that can be read is lost."""

import contextlib
from collections import Counter
from pathlib import Path

from brain_align.common.errors import DamagedPartError, UserError
from brain_align.common.schemas import KINDS
from brain_align.common.store.files.backends import Place, open_place
from brain_align.common.store.format.names import is_part
from brain_align.common.store.manifest import FILE, has_parts, read_run_id, write_facts
from brain_align.common.store.opened_store import Opening
from brain_align.common.store.table.part_reader import PartReader


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
        if read_run_id(place) is None and has_parts(place):
            write_facts(place, _run_id_of_parts(place))
            done.append(f"{place.uri}/{FILE} was missing; it was made again from the parts.")
    except DamagedPartError:
        run_id, damaged = _run_id_of_parts(place), place.read(FILE)
        place.put("damaged", FILE, damaged)
        write_facts(place, run_id)  # replaces it: there is no moment without one, in which a writer begins a new store
        done.append(f"{place.uri}/{FILE} could not be read; it was copied to `damaged` and made again from the parts.")
    store = Opening(uri, None, read_only=False, use_index=False)
    for catalogue in store.kinds.values():
        catalogue.drop_index()
        catalogue.write_index(at_least=1)
    return [*done, *store.damaged]


def _run_id_of_parts(place: Place) -> str:
    """The run that most parts name: a few may have been put there by mistake."""
    named: Counter[str] = Counter()
    for kind in KINDS:
        reader = PartReader(place, kind, run_id=None)
        for entry in place.list(kind):
            if is_part(entry.name):
                with contextlib.suppress(DamagedPartError, FileNotFoundError):
                    named.update(filter(None, [reader.part(entry.name).run_id]))
    if not named:
        raise UserError(
            f"{place.uri}/{FILE} is missing or damaged, and no part says which run the store belongs to; restore it "
            f"from a copy."
        )
    return named.most_common(1)[0][0]
