"""Stores with damaged files: every command survives them, and `verify` calls nothing whole that reads otherwise."""

import shutil
from pathlib import Path

import pyarrow as pa
from hypothesis import strategies as st

from brain_align.common.store.format.names import checksum, checksum_of
from brain_align.common.store.opened_store import OpenedStore
from brain_align.common.store.sample_store import SampleStore
from brain_align.common.store.table.compaction import LARGE, compact
from tests.unit.factories import groups, scores, step
from tests.unit.fuzz.command import ended
from tests.unit.fuzz.mutations import CHANGES, SHARE, changed

FOLDERS = ("groups", "groups", "groups", "scores", "steps", "index", "removed", "claims", "")
EXAMPLES = st.tuples(
    st.sampled_from(["whole", "compacted", "indexed"]),
    st.sampled_from(FOLDERS),
    SHARE,
    st.lists(CHANGES, min_size=1, max_size=3),
    st.booleans(),  # whether the file's name has the new checksum: then the damage is not found by it
)


def make(root: Path, kind: str) -> None:
    """A store of two commits of each kind, some of it compacted or with index files."""
    store = SampleStore(root, "run")
    for lease in range(3):
        names = [f"{lease}a", f"{lease}b"]
        store.append_groups(groups(*names, round=lease, prompt_text="αβ prompt"))
        store.append_scores(scores("reward", {name: [0.5, None] for name in names}, error="[/INST]"))
        store.append_scores(scores("prior", {name: [-1.0, -2.0] for name in names}))
        with store.training():
            store.append_step(step(lease + 1, names, round=lease))
    if kind != "whole":
        opened = OpenedStore(root, None, read_only=False)
        for catalogue in opened.kinds.values():
            if kind == "compacted":
                compact(opened.backend, catalogue, opened.author, LARGE)
            catalogue.write_index(at_least=1)


def everything(root: Path) -> list[object]:
    """All rows that the library itself gives out; raises as it does."""
    store = SampleStore(root, None, read_only=True)
    return [[batch.to_pylist() for batch in store.batches()], store.steps(), store.index().to_pylist()]


def prepare(room: Path) -> None:
    for kind in ("whole", "compacted", "indexed"):
        make(room / kind, kind)


def attempt(room: Path, example) -> None:
    kind, folder, which, changes, renamed = example
    place = room / "tried"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(room / kind, place)
    files = sorted(file for file in (place / folder).iterdir() if file.is_file()) if (place / folder).is_dir() else []
    if not files:
        return
    file = files[int(which * len(files))]
    content = changed(file.read_bytes(), changes)
    if content == file.read_bytes():
        return
    file.unlink()
    if renamed and file.suffix == ".arrow":
        file = file.with_name(file.name.replace(checksum_of(file.name), checksum(pa.py_buffer(content))))
    file.write_bytes(content)
    for arguments in (
        ["ls"],
        ["show", "1a"],
        ["export", "--format", "jsonl", "--output", str(room / "out.jsonl"), "--force"],
    ):
        ended("store", arguments[0], str(place), *arguments[1:])
    status, said, _ = ended("store", "verify", str(place), statuses=(0, 1, 2))
    if status == 0 and not renamed:  # a new name vouches for new values, as long as they are values
        assert everything(place) == everything(room / kind), f"verify: {said}"
    ended("store", "repair", str(place))
    ended("store", "ls", str(place))
    ended("store", "gc", str(place), "--below-version", "1", "--delete")
