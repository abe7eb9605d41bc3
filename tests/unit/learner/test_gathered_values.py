import pickle

import pytest
import torch

from brain_align.learner.checkpoints.training_state import random_state
from brain_align.learner.engine_protocol import packed, unpacked


@pytest.mark.parametrize("value", [0, 2**60, None, True, "text", [1, 2.5], {"a": (1, "b")}])
def test_what_ranks_tell_each_other_arrives(value):
    assert unpacked(packed(value)) == value


def test_states_of_generators_arrive():
    state = random_state()
    found = unpacked(packed(state))
    assert found["python"] == state["python"] and torch.equal(found["torch"], state["torch"])
    assert torch.equal(found["numpy"][1], state["numpy"][1])


class Program:
    def __reduce__(self):
        return pytest.fail, ("it was executed",)


def test_what_is_no_data_is_not_unpacked():
    content = torch.frombuffer(bytearray(pickle.dumps(Program())), dtype=torch.uint8)
    with pytest.raises(pickle.UnpicklingError):
        unpacked(content)
    with pytest.raises(pickle.UnpicklingError):
        unpacked(packed(Program()))
