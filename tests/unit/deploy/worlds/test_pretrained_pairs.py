import json
from pathlib import Path
from random import Random

import pytest

from brain_align.common.data.conversations import turns_of
from brain_align.deploy.worlds.pretrained.base import open_base
from brain_align.deploy.worlds.pretrained.pairs import Pair, Pairs, read_pairs, turns_of_dialogue
from brain_align.deploy.worlds.pretrained.splits import split_pairs
from tests.locations import SHARED
from tests.unit.pretrained_base import chat_model, settings, summaries

QUESTION = "\n\nHuman: what?\n\nAssistant: this.\n\nHuman: and then?\n\nAssistant:"


def written(path: Path, *rows: dict[str, str]) -> list[Path]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [path]


def test_dialogues_become_conversations(tmp_path):
    files = written(tmp_path / "a.jsonl", {"chosen": QUESTION + " good ", "rejected": QUESTION + " bad"})
    (pair,) = read_pairs("hh", files, Random(0)).pairs
    assert (pair.chosen, pair.rejected) == ("good", "bad")
    assert [(turn["role"], turn["content"]) for turn in turns_of(pair.prompt)] == [
        ("user", "what?"),
        ("assistant", "this."),
        ("user", "and then?"),
    ]


@pytest.mark.parametrize(
    "prompt",
    [
        "\n\nHuman: a\n\nHuman: b\n\nAssistant:",
        "\n\nHuman: a\n\nAssistant:\n\nHuman: b\n\nAssistant:",
        "\n\nHuman:\n\nAssistant:",
    ],
)
def test_dialogues_whose_turns_are_out_of_order_are_dropped(prompt, tmp_path):
    assert turns_of_dialogue(prompt) is None
    files = written(tmp_path / "a.jsonl", {"chosen": prompt + " x", "rejected": prompt + " y"})
    assert read_pairs("hh", files, Random(0)).dropped == {"turns out of order": 1}


def test_human_preferences_over_summaries_are_taken_as_they_are(tmp_path):
    row = {"prompt": "POST: p\nTL;DR:", "chosen": " good", "rejected": " bad"}
    found = read_pairs("tldr", written(tmp_path / "a.jsonl", row, {**row, "rejected": "good"}), Random(0))
    assert found.pairs == [Pair("POST: p\nTL;DR:", "good", "bad")]
    assert found.meaning == "which of two answers people preferred" and found.dropped == {"equal sides": 1}


def test_unusable_rows_of_preferences_are_counted_by_reason(tmp_path):
    row = {"prompt": "POST: p\nTL;DR:", "chosen": "good", "rejected": "bad"}
    summary = {"prompt": "POST: q\nTL;DR:", "label": "s"}
    files = written(tmp_path / "a.jsonl", row, {**row, "label": "s"}, summary, {"prompt": "p"}, {"chosen": "x"})
    files += written(tmp_path / "b.jsonl", {**row, "chosen": " "}, summary)
    found = read_pairs("tldr", files, Random(0))
    beside = "a summary without a preference, beside others with one"
    assert len(found.pairs) == 2 and found.dropped == {"an empty text": 1, "malformed": 2, beside: 2}


def test_summaries_alone_are_paired_with_negatives(tmp_path):
    found = read_pairs("tldr", [summaries(tmp_path / "a.jsonl", 5)], Random(0))
    assert len(found.pairs) > 10 and len({pair.prompt for pair in found.pairs}) == 5
    assert all(pair.chosen != pair.rejected for pair in found.pairs) and "no human preferences" in found.meaning


def test_no_prompt_is_in_two_parts(tmp_path):
    encoding = open_base(settings(chat_model(tmp_path / "base"))).encoding
    pairs = [Pair(f"question {n % 60}", f"yes {n}", f"no {n}") for n in range(120)]
    splits = split_pairs(Pairs(pairs, "", {}), settings("unused"), encoding, 0)
    parts = [{pair.prompt for pair in part} for part in (splits.held_out, splits.reward, splits.gold)]
    assert [len(part) for part in parts] == [20, 20, 20] and len(set.union(*parts)) == 60
    assert (len(splits.held_out), len(splits.reward), len(splits.gold)) == (20, 40, 40)
    held_out = {pair.prompt for split in ("validation", "test") for pair in splits.prompts[split]}
    assert held_out <= parts[0] and {pair.prompt for pair in splits.prompts["train"]} <= parts[1] | parts[2]
    assert split_pairs(Pairs(pairs, "", {}), settings("unused"), encoding, 0) == splits
    assert split_pairs(Pairs(pairs, "", {}), settings("unused"), encoding, 1) != splits


@pytest.mark.skipif(not (SHARED / "data/hh").is_dir(), reason="the shared HH data is not here")
def test_the_real_files_hold_thousands_of_usable_pairs():
    files = [SHARED / f"data/hh/helpful-{name}.jsonl.gz" for name in ("base", "rejection-sampled")]
    found = read_pairs("hh", files, Random(0))
    assert len(found.pairs) > 5000 and sum(found.dropped.values()) < 100
