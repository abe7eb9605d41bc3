"""A file that this user may not read, or that a failing disk holds, is not called damaged."""

import errno
import json

import pytest

from brain_align.common.data.row_files import read_rows, readable
from brain_align.common.errors import UserError
from brain_align.common.nn.models.causal_lm import load_tokenizer
from brain_align.common.nn.models.end_tokens import model_end_tokens
from brain_align.deploy.schedule.quarantine import Quarantine
from tests.unit.tiny_models import llama, save


def test_data_and_settings_that_this_user_may_not_read(tmp_path, another_user) -> None:
    save(llama(), tmp_path / "model")
    readers = {
        "rows.jsonl": lambda path: list(read_rows(path, ("prompt",))),
        "rows.parquet": lambda path: list(read_rows(path, ("prompt",))),
        "quarantine.json": Quarantine,
        "model/generation_config.json": lambda path: model_end_tokens(str(path.parent)),
    }
    for name, read in readers.items():
        (tmp_path / name).write_text(json.dumps([]))
        (tmp_path / name).chmod(0)
        with another_user(), pytest.raises(UserError, match=rf"{name} is not read: user .* may not read .*{name}"):
            read(tmp_path / name)


def test_a_model_that_this_user_may_not_read(tmp_path, another_user) -> None:
    save(llama(), tmp_path / "model")
    (tmp_path / "model").chmod(0)
    with another_user(), pytest.raises(UserError, match=r"model is not read: user .* may not read"):
        load_tokenizer(str(tmp_path / "model"))
    with pytest.raises(UserError, match=r"the directory .*/absent does not exist on node \S+"):
        load_tokenizer(str(tmp_path / "absent"))


@pytest.mark.parametrize(("number", "said"), [(errno.EIO, "check the disk"), (errno.ENOENT, "is damaged or")])
def test_a_failing_disk_is_named(number, said) -> None:
    with pytest.raises(UserError, match=said), readable("rows.jsonl"):
        raise OSError(number, "it failed", "rows.jsonl")
