import gzip
import json
from collections import Counter
from random import Random

import pytest

from brain_align.common.errors import UserError
from brain_align.deploy.worlds.corpus import split_by_prompt
from brain_align.deploy.worlds.hh import Pair, read_pairs

Q = "\n\nHuman: what?\n\nAssistant:"


def pairs_of(tmp_path, lines):
    path = tmp_path / "pairs.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    dropped: Counter[str] = Counter()
    return read_pairs([path], dropped), dict(dropped)


def test_a_dialogue_is_split_before_its_last_answer(tmp_path):
    start = Q + " this.\n\nHuman: and then?\n\nAssistant:"
    pairs, dropped = pairs_of(tmp_path, [{"chosen": start + " good \n", "rejected": start + " bad"}])
    assert pairs == [Pair(start, " good", " bad")]
    assert dropped == {}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"chosen": Q + " a", "rejected": Q + " a"}, "equal sides"),
        ({"chosen": Q + " a", "rejected": "\n\nHuman: who?\n\nAssistant: b"}, "different prompts"),
        ({"chosen": "no dialogue", "rejected": Q + " b"}, "malformed"),
        ({"chosen": Q + " a"}, "malformed"),
        ({"chosen": Q + " a", "rejected": 3}, "malformed"),
        ("{torn\n", "malformed"),
        ("[]\n", "malformed"),
        ({"chosen": Q + " ", "rejected": Q + " b"}, "no last answer"),
        ({"chosen": Q + " a\n\nHuman: bye", "rejected": Q + " b"}, "no last answer"),
    ],
)
def test_what_cannot_be_used_is_dropped_and_counted(tmp_path, line, reason):
    pairs, dropped = pairs_of(tmp_path, [line, {"chosen": Q + " a", "rejected": Q + " b"}])
    assert len(pairs) == 1
    assert dropped == {reason: 1}


def test_a_file_that_is_no_gzip_is_named(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    path.write_text("plain")
    with pytest.raises(UserError, match=r"x\.jsonl\.gz cannot be read"):
        read_pairs([path], Counter())


def test_all_of_one_prompt_go_to_the_same_split():
    items = [(f"prompt {n % 1500}", (n % 1500, n)) for n in range(3000)]
    heldable = {f"prompt {n}" for n in range(1450)}
    splits = split_by_prompt(items, heldable, Random(0))
    numbers = {split: {number for number, _ in found} for split, found in splits.items()}
    assert not numbers["train"] & numbers["test"] and not numbers["validation"] & numbers["test"]
    assert not (numbers["validation"] | numbers["test"]) & set(range(1450, 1500))
    assert sum(len(found) for found in splits.values()) == 3000
    assert split_by_prompt(items, heldable, Random(0)) == splits
    assert split_by_prompt(items, heldable, Random(1)) != splits


def test_too_little_data_is_refused():
    with pytest.raises(UserError, match="holds 1 usable prompts"):
        split_by_prompt([("a", 1)], {"a"}, Random(0))
