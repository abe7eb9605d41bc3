import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from brain_align.common.config.run import PrepareSection
from brain_align.common.errors import UserError
from brain_align.deploy.worlds import build
from brain_align.deploy.worlds.build import ensure_world
from brain_align.deploy.worlds.files import save_facts, save_prompts

DEMO = PrepareSection(kind="demo")


@pytest.fixture
def builds(monkeypatch):
    """Replaces all builders; the list of what was built."""
    built = []

    def builder(world, seed, files, recorder):
        built.append((seed, [file.name for file in files]))
        with recorder.stage("waiting"):
            time.sleep(0.1)
        (world / "part").write_text("x")
        return {"rows": 3}

    monkeypatch.setattr(build, "_BUILDERS", dict.fromkeys(("demo", "hh", "tldr"), builder))
    return built


def silent(_):
    pass


def test_a_world_is_built_once(builds, tmp_path):
    world = ensure_world(DEMO, tmp_path, None, silent)
    assert ensure_world(DEMO, tmp_path, None, silent) == world
    assert builds == [(0, [])]
    facts = json.loads((world / "world.json").read_text())
    assert (facts["kind"], facts["seed"], facts["rows"]) == ("demo", 0, 3)
    assert set(facts["seconds"]) == {"waiting", "total"}


def test_seed_and_data_make_another_world(builds, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.jsonl").write_text("1")
    worlds = {ensure_world(PrepareSection(kind="hh", seed=seed), tmp_path, str(data), silent) for seed in (0, 1)}
    (data / "a.jsonl").write_text("2")
    worlds.add(ensure_world(PrepareSection(kind="hh"), tmp_path, [str(data / "a.jsonl")], silent))
    assert len(worlds) == 3
    assert builds == [(0, ["a.jsonl"]), (1, ["a.jsonl"]), (0, ["a.jsonl"])]


def test_where_the_data_lies_does_not_matter(builds, tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_text("1")
    hh = PrepareSection(kind="hh")
    assert ensure_world(hh, tmp_path, str(tmp_path / "x"), silent) == ensure_world(
        hh, tmp_path, str(tmp_path / "y"), silent
    )


def test_two_that_want_the_same_world_build_it_once(builds, tmp_path):
    said: list[str] = []
    worlds: list[Any] = []
    threads = [
        threading.Thread(target=lambda: worlds.append(ensure_world(DEMO, tmp_path, None, said.append)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(set(worlds)) == 1 and len(worlds) == 2
    assert len(builds) == 1
    assert any("another process is preparing it" in line for line in said)


def test_a_failed_build_leaves_nothing(monkeypatch, tmp_path):
    def fails(world, seed, files, recorder):
        (world / "part").write_text("x")
        raise UserError("no")

    monkeypatch.setattr(build, "_BUILDERS", {"demo": fails})
    with pytest.raises(UserError, match="no"):
        ensure_world(DEMO, tmp_path, None, silent)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_what_a_killed_builder_left_is_removed_and_no_other_worlds(builds, tmp_path):
    world = ensure_world(DEMO, tmp_path, None, silent)
    world.rename(tmp_path / f".tmp-{world.name}-00000000")
    other = tmp_path / ".tmp-hh-ffffffffffff-00000000"
    other.mkdir()
    assert ensure_world(DEMO, tmp_path, None, silent) == world
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == sorted([world.name, other.name])


def test_prompts_and_facts_are_flushed_to_the_disk(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(Path(os.readlink(f"/proc/self/fd/{handle}"))))
    save_prompts(tmp_path, "train", [{"prompt": "p", "label": "l"}], folder="pairs")
    save_facts(tmp_path, {})
    assert [path.name for path in tmp_path.rglob("*.json*")] and tmp_path / "pairs" in flushed and tmp_path in flushed
    assert all(any(name in path.name for path in flushed) for name in ("train.jsonl", "world.json"))


@pytest.mark.parametrize(
    ("path", "message"),
    [(None, "set data.path"), ("missing", "which does not exist"), (".", "holds no .jsonl")],
)
def test_missing_data_is_named(path, message, tmp_path):
    data = None if path is None else str(tmp_path / path)
    with pytest.raises(UserError, match=message):
        ensure_world(PrepareSection(kind="hh"), tmp_path / "cache", data, silent)
    assert not (tmp_path / "cache").exists()
