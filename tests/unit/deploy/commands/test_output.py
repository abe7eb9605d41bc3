from pathlib import Path

import pytest

from brain_align.common.errors import UserError
from brain_align.deploy.commands.output import new_lines, new_output


def test_an_output_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new/deep/out.txt"
    with new_output(target, force=False) as temporary, new_lines(temporary, target) as write:
        write("one")
        write("two")
        assert not target.exists()
    assert target.read_text() == "one\ntwo\n"
    assert list(target.parent.iterdir()) == [target]


def test_an_error_of_the_block_stays_what_it_is_and_nothing_stays_behind(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError), new_output(tmp_path / "new/deep/out.txt", force=False) as temporary:
        temporary.write_text("half")
        raise TimeoutError
    assert not list(tmp_path.iterdir())


def test_a_directory_that_holds_something_else_stays(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError), new_output(tmp_path / "new/out.txt", force=False):
        (tmp_path / "new/log").write_text("why")
        raise TimeoutError
    assert [path.name for path in tmp_path.glob("*/*")] == ["log"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_said_with_the_place_that_was_wanted(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    with (
        pytest.raises(UserError, match=r"^Cannot write \S+/out\.txt: No space left on device; nothing was left behind"),
        new_lines(Path("/dev/full"), target) as write,
    ):
        write("x" * 100_000)


def test_what_was_written_but_cannot_be_put_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot write"), new_output(tmp_path / "out.txt", force=False):
        pass  # nothing was written
    assert not list(tmp_path.iterdir())
