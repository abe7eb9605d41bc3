"""The commands that keep a store in order, as a user calls them."""

from pathlib import Path

import pytest

from brain_align.common.errors import UserError
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.commands.arguments import CommandParser
from brain_align.deploy.commands.store import group
from tests.unit.factories import groups, scores, step


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The store of a run of four rounds, as it lies below its run directory."""
    store = SampleStore(tmp_path / "run" / "store", "run")
    for round_ in range(4):
        names = [f"{round_}-a", f"{round_}-b"]
        store.append_groups(groups(*names, round=round_, proposal_version=round_, finished_at=1.0))
        store.append_scores(scores("reward", {name: [1.0, 2.0] for name in names}))
        with store.training():
            store.append_step(step(round_, names, round=round_))
    return tmp_path / "run" / "store"


def command(*arguments: object) -> int:
    parser = CommandParser()
    group.add(parser)
    options = parser.parse_args([str(argument) for argument in arguments])
    return int(options.command(options) or 0)


def test_verify_names_the_damage_if_there_is_any(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("verify", root) == 0
    assert "8 groups in 12 parts" in (out := capsys.readouterr().out) and "nothing is damaged" in out
    part = sorted((root / "scores").iterdir())[0]
    part.write_bytes(part.read_bytes()[:-1])
    assert command("verify", root) == 1
    assert f"damaged: {part} is damaged" in capsys.readouterr().out
    assert part.exists()
    assert command("repair", root) == 0
    assert "It was moved to" in capsys.readouterr().out and not part.exists()
    assert command("verify", root) == 0
    assert command("repair", root) == 0
    assert "nothing was damaged" in capsys.readouterr().out


def test_compact_replaces_small_parts_and_removes_them_later(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("compact", root) == 0
    assert "groups: 4 of 4 parts compacted, 0 removed" in capsys.readouterr().out
    assert len(list((root / "groups").iterdir())) == 5
    assert command("compact", root, "--grace", "0s") == 0
    assert "groups: 0 of 5 parts compacted, 4 removed" in capsys.readouterr().out
    assert SampleStore(root, None, read_only=True).counts() == {"groups": 8, "scores": 8, "steps": 4}


def test_gc_shows_what_it_would_do_and_does_it_when_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("gc", root) == 0
    assert "neither --below-version nor --older-than" in capsys.readouterr().out
    assert command("gc", root, "--below-version", 2) == 0
    out = capsys.readouterr().out
    assert "groups: 4 (2 commits of groups, 2 commits of scores)" in out and "nothing was deleted" in out
    assert SampleStore(root, None, read_only=True).counts()["groups"] == 8
    assert command("gc", root, "--older-than", "1d", "--below-version", 2, "--delete") == 0
    assert "deleted 4 parts" in capsys.readouterr().out
    assert list(SampleStore(root, None, read_only=True).group_ids) == ["2-a", "2-b", "3-a", "3-b"]
    assert command("verify", root) == 0


def test_gc_that_only_shows_changes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = sorted((root / "groups").iterdir())[0]
    part.write_bytes(part.read_bytes()[:-1])
    before = sorted(path.relative_to(root) for path in root.rglob("*"))
    assert command("gc", root, "--below-version", 2) == 0
    assert f"damaged: {part} is damaged" in capsys.readouterr().out
    assert sorted(path.relative_to(root) for path in root.rglob("*")) == before


def test_a_place_that_is_no_store_and_an_age_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="neither a run directory"):
        command("verify", tmp_path)
    with pytest.raises(SystemExit):
        command("gc", tmp_path, "--older-than", "soon")
    assert "'soon' is not a duration" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command("compact", tmp_path, "--target-mb", "0")
    assert "'0' is not a size from 1 to 1024 MB" in capsys.readouterr().err
