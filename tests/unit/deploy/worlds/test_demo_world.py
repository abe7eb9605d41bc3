import re
from random import Random
from statistics import mean

import pytest

from brain_align.deploy.demo import posts as posts_module
from brain_align.deploy.demo.lexicon import FACTS, KEY_FACTS, SLOT_OF_WORD
from brain_align.deploy.demo.posts import draw_story, write_post
from brain_align.deploy.demo.preferences import draw_preferences
from brain_align.deploy.demo.summaries import CLAUSES, EVENTS, FILLERS, draw_skill, write_summary
from brain_align.deploy.demo.truth import quality
from brain_align.deploy.demo.world import draw_posts

STORY = {
    "who": "boss",
    "deed": "sold",
    "thing": "bike",
    "excuse": "joke",
    "feel": "angry",
    "ask": "quit",
    "city": "denver",
}
POST = write_post(Random(0), STORY)
PERFECT = " my boss sold my bike, calls it a joke, i feel angry, should i quit?"


def truth(output: str) -> float:
    return quality([POST], [output])[0]


def test_every_word_has_one_meaning():
    assert len(SLOT_OF_WORD) == sum(len(words) for words in FACTS.values())
    forms = [form for group in (EVENTS, CLAUSES) for forms in group.values() for form in forms]
    templates = [
        form
        for name in ("_TITLES", "_DEEDS", "_EXCUSES", "_FEELINGS", "_PLACES", "_QUESTIONS", "_SUBREDDITS")
        for form in getattr(posts_module, name)
    ]
    plain = re.sub(r"\{\w+\}", "", " ".join([*forms, *templates, *FILLERS])).lower()
    assert not set(re.findall("[a-z]+", plain)) & set(SLOT_OF_WORD)


def test_a_post_is_a_tldr_prompt_that_tells_every_fact():
    assert re.fullmatch(r"SUBREDDIT: r/\w+\nTITLE: .+\nPOST: .+\nTL;DR:", POST)
    assert all(re.search(rf"\b{word}\b", POST) for word in STORY.values())


def test_all_facts_in_few_grammatical_words_are_perfect():
    # coverage 1, fluency 1; 15 words, of which 2 for each of 6 facts and 3 more are free: conciseness 1
    assert truth(PERFECT) == pytest.approx(1.0)


def test_nothing_said_is_worth_nothing():
    assert truth("") == truth("  \n") == 0.0


def test_a_made_up_fact_costs_its_coverage_and_the_factor():
    # 5 facts in 15 words, 13 free: conciseness 6/8; coverage 1 - 0.2 (who); 0.6 for the invention
    expected = 0.6 * (0.6 * 0.8 + 0.25 + 0.15 * 6 / 8)
    assert truth(PERFECT.replace("boss", "sister")) == pytest.approx(expected)


@pytest.mark.parametrize(
    "worse",
    [
        " my boss sold my bike, should i quit?",  # facts left out
        PERFECT + " should i quit?",  # repeated
        " so basically long story short" + PERFECT,  # rambling
        " boss my sold bike my, calls it a joke, i feel angry, should i quit?",  # ungrammatical
        PERFECT[:-9],  # cut off
        PERFECT.replace("angry", "sad"),  # made up
        PERFECT.replace("i feel", "this is in denver, i feel"),  # beside the point
    ],
)
def test_every_fault_costs(worse):
    assert truth(worse) < truth(PERFECT)


def test_truth_is_a_pure_function_of_each_pair():
    outputs = [PERFECT, " problem with my boss.", ""]
    assert quality([POST] * 3, outputs) == [truth(output) for output in outputs]
    with pytest.raises(ValueError, match="longer"):
        quality([POST], outputs)


def test_gold_is_good_but_leaves_room():
    random = Random(1)
    gold, anyone = (
        [
            quality([write_post(random, story)], [write_summary(random, story, draw_skill(random, gold=gold))])[0]
            for story in (draw_story(random) for _ in range(500))
        ]
        for gold in (True, False)
    )
    assert mean(anyone) + 0.1 < mean(gold) < 0.85
    assert all(0 <= value <= 1 for value in gold + anyone)


def test_summaries_are_varied():
    random = Random(2)
    texts = [write_summary(random, STORY, 0.9) for _ in range(200)]
    assert len(set(texts)) > 150
    assert all(text.startswith(" ") and text == text.rstrip() for text in texts)


def test_choices_follow_the_truth_with_noise():
    random = Random(3)
    items = [draw_preferences(random, POST, STORY) for _ in range(60)]
    margins = []
    for item in items:
        scores = quality([POST] * len(item.outputs), list(item.outputs))
        margins += [scores[winner] - scores[loser] for winner, loser in item.pairs]
    right = mean(margin > 0 for margin in margins if margin)
    assert 0.75 < right < 0.99
    assert all(len(set(item.outputs)) == len(item.outputs) for item in items)


def test_splits_share_no_post_and_a_seed_gives_the_same_ones():
    splits = draw_posts(Random(0))
    prompts = [post.prompt for drawn in splits.values() for post in drawn]
    assert len(set(prompts)) == len(prompts)
    assert {split: len(drawn) for split, drawn in splits.items()} == {
        "train": 4000,
        "validation": 200,
        "test": 400,
    }
    assert draw_posts(Random(0)) == splits
    assert set(KEY_FACTS) < set(splits["test"][0].story)
