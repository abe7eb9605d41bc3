import pytest

from brain_align.common.errors import UserError
from brain_align.learner.checkpoints.checkpoint import CheckpointDirectory


def write(text):
    return lambda directory: (directory / "state").write_text(text)


@pytest.fixture
def checkpoints(tmp_path):
    return CheckpointDirectory(tmp_path / "checkpoints", keep=2)


def test_the_newest_is_found_and_only_the_last_are_kept(checkpoints):
    assert checkpoints.newest() is None
    for step in (5, 10, 100, 20):
        checkpoints.save(step, write(str(step)))
        checkpoints.remove_old()
    newest = checkpoints.newest()
    assert newest.step == 100
    assert (newest.path / "state").read_text() == "100"
    assert sorted(path.name for path in checkpoints.root.iterdir()) == ["step-000020", "step-000100"]


def test_a_checkpoint_that_is_asked_for_is_kept_besides(checkpoints):
    for step in (1, 2, 3, 4):
        checkpoints.save(step, write(str(step)))
        checkpoints.remove_old(kept_steps=[1, 4])
    assert [step for step in range(6) if checkpoints.has(step)] == [1, 3, 4]
    checkpoints.remove_old(kept_steps=[9])
    assert [step for step in range(6) if checkpoints.has(step)] == [3, 4]


def test_a_failed_save_leaves_nothing(checkpoints):
    checkpoints.save(1, write("one"))

    def fail(directory):
        write("half")(directory)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(2, fail)
    assert [path.name for path in checkpoints.root.iterdir()] == ["step-000001"]
    assert checkpoints.newest().step == 1


def test_leftovers_of_a_killed_save_are_ignored_and_removed(checkpoints):
    checkpoints.save(1, write("one"))
    for name in (".tmp-step-000002-abcd", "step-000003"):  # the second: deletion was interrupted
        (checkpoints.root / name).mkdir()
        (checkpoints.root / name / "state").write_text("half")
    assert checkpoints.newest().step == 1
    checkpoints.remove_leftovers()
    assert [path.name for path in checkpoints.root.iterdir()] == ["step-000001"]


def test_a_checkpoint_is_never_rewritten(checkpoints):
    checkpoints.save(1, write("first"))
    assert (checkpoints.save(1, write("second")).path / "state").read_text() == "first"


@pytest.mark.parametrize("damage", ["altered", "deleted", "marker"])
def test_damage_is_named(checkpoints, damage):
    path = checkpoints.save(1, write("one")).path
    match damage:
        case "altered":
            (path / "state").write_text("two")
        case "deleted":
            (path / "state").unlink()
        case "marker":
            (path / "checkpoint.json").write_text("{")
    with pytest.raises(UserError, match="step-000001 is damaged"):
        checkpoints.newest()


@pytest.mark.parametrize("place", ["state", "checkpoint.json", ".", ".."])
def test_checkpoints_that_this_user_may_not_read_are_neither_damaged_nor_absent(checkpoints, another_user, place):
    (checkpoints.save(1, write("one")).path / place).chmod(0)
    with another_user(), pytest.raises(UserError, match=r"may not read .*; give that user read access"):
        checkpoints.newest()
