from pathlib import Path

import pytest

from brain_align.common.errors import PipelineError, UserError
from brain_align.deploy.schedule.quarantine import Item, Quarantine


def item(number: int, round_: int = 0) -> Item:
    return Item("train", round_, f"p{number}", f"g{round_}-{number}", "sampler", "died")


def test_items_survive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.json"
    Quarantine(path).add(item(1, round_=2), size=100)
    again = Quarantine(path)
    assert list(again) == [item(1, round_=2)] and again.groups == {"g2-1"}
    assert again.prompts("train", 1) == set() and again.prompts("test", 2) == set()
    assert again.prompts("train", 2) == again.prompts("train", 3) == {"p1"}  # nor is it sampled later


def test_a_group_that_a_scorer_fails_on_is_left_out_itself_and_its_prompt_sampled_again(tmp_path: Path) -> None:
    subject = Quarantine(tmp_path / "quarantine.json")
    subject.add(Item("train", 0, "p1", "g1", "reward", "no value"), size=100)
    assert subject.groups == {"g1"} and subject.prompts("train", 0) == set()


@pytest.mark.parametrize(("size", "bound"), [(8, 5), (100, 5), (200, 10)])
def test_too_many_in_one_round_are_not_the_prompts_fault(tmp_path: Path, size: int, bound: int) -> None:
    path = tmp_path / "quarantine.json"
    subject = Quarantine(path)
    subject.add(item(0, round_=7), size)
    for number in range(bound):
        subject.add(item(number), size)
    with pytest.raises(PipelineError, match=f"More than {bound} of the {size} prompts of train round 0 failed.*died"):
        subject.add(item(bound), size)
    assert list(Quarantine(path)) == [item(0, round_=7)]  # those of the round are tried again


def test_a_file_that_is_no_list_of_items_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.json"
    for content in ("{", '[{"prompt": 1}]'):
        path.write_text(content)
        with pytest.raises(UserError, match="is not a list of quarantined items"):
            Quarantine(path)
