import json
from collections import Counter
from random import Random

from brain_align.deploy.worlds.tldr import baselines, read_summaries

POST = "SUBREDDIT: r/x\nTITLE: t\nPOST: one two three four five six\nTL;DR:"


def test_rows_are_read_and_counted(tmp_path):
    rows = [
        {"prompt": POST, "label": "  short  "},
        {"prompt": POST, "label": " again"},
        {"prompt": "no marker", "label": " l"},
        {"prompt": POST + "2", "label": "  "},
        {"prompt": POST},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dropped: Counter[str] = Counter()
    assert read_summaries([path], dropped) == [{"prompt": POST, "label": " short"}]
    assert dropped == {"prompt seen before": 1, "malformed": 2, "empty label": 1}


def test_baselines_are_no_summary_of_the_post():
    other, half, shuffled, lead = baselines(Random(0), POST, " a b c d", " of another")
    assert (other, half, lead) == (" of another", " a b", " one two three four")
    assert sorted(shuffled.split()) == ["a", "b", "c", "d"] and shuffled != " a b c d"


def test_a_baseline_that_equals_the_summary_is_left_out():
    assert baselines(Random(0), POST, " word", " word") == [" one"]
