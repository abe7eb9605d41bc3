"""Builds the demo's toy task: posts, reference summaries, tokenizer, SFT policy and reward model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from transformers import PreTrainedTokenizerFast

from brain_align.deploy.demo.posts import draw_story, write_post
from brain_align.deploy.demo.preferences import draw_preferences
from brain_align.deploy.demo.summaries import draw_skill, write_summary
from brain_align.deploy.worlds.files import save_policy, save_prompts, save_reward_model
from brain_align.deploy.worlds.language_model import (
    Example,
    ModelSize,
    mean_token_loss,
    new_gptj,
    new_llama,
    policy_facts,
    train_tokenizer,
)
from brain_align.deploy.worlds.packing import Group
from brain_align.deploy.worlds.reward_model import RewardModel, encode, pair_loss, reward_facts
from brain_align.deploy.worlds.training import OptimiserPlan, Preparation, Recorder, optimise
from brain_align.scorer.text_models.formats import START, TLDR

_POSTS = {"train": 4000, "validation": 200, "test": 400}
_SUMMARIES_PER_POST = 8  # that the SFT model learns from
_MAX_SUMMARY_TOKENS = 20
_VOCABULARY = 1024
_SIZE = ModelSize(layers=2, width=128, heads=4, context=256)
_BATCH_TOKENS = 3000
_SFT = OptimiserPlan(steps=200, learning_rate=3e-3)
_REWARD = OptimiserPlan(steps=300, learning_rate=1.5e-3)


@dataclass(frozen=True)
class Post:
    """A post, and the story that it tells: a word by slot."""

    story: dict[str, str]
    prompt: str


def build_demo(world: Path, seed: int, _files: Sequence[Path], recorder: Recorder) -> dict[str, object]:
    """Build the demo's toy task in the directory `world`; return facts about it."""
    random = Random(seed)
    with recorder.stage("data"):
        posts = draw_posts(random)
        for split, drawn in posts.items():
            save_prompts(world, split, [_row(random, post) for post in drawn])
        tokenizer = _tokenizer(random, posts["train"])
    task = Preparation(world, tokenizer, random, recorder)
    with recorder.stage("sft"):
        policy = _make_policy(task, posts)
    with recorder.stage("reward"):
        reward = _make_reward_model(task, posts)
    return {
        "rows": {split: len(drawn) for split, drawn in posts.items()},
        "vocabulary": len(tokenizer),
        "policy": policy,
        "reward": reward,
    }


def draw_posts(random: Random) -> dict[str, list[Post]]:
    """Draw the posts of all splits, all with different texts."""
    posts: dict[str, Post] = {}
    while len(posts) < sum(_POSTS.values()):
        story = draw_story(random)
        prompt = write_post(random, story)
        posts.setdefault(prompt, Post(story, prompt))
    drawn = iter(posts.values())
    return {split: [next(drawn) for _ in range(count)] for split, count in _POSTS.items()}


def _row(random: Random, post: Post) -> dict[str, str]:
    return {"prompt": post.prompt, "label": write_summary(random, post.story, draw_skill(random, gold=True))}


def _summaries(random: Random, post: Post) -> list[str]:
    return [write_summary(random, post.story, draw_skill(random, gold=False)) for _ in range(_SUMMARIES_PER_POST)]


def _tokenizer(random: Random, posts: Sequence[Post]) -> PreTrainedTokenizerFast:
    texts = (text for post in posts[:1000] for text in (post.prompt, START, *_summaries(random, post)))
    return train_tokenizer(texts, _VOCABULARY)


def _make_policy(task: Preparation, posts: dict[str, list[Post]]) -> dict[str, object]:
    model = new_llama(_SIZE, task.tokenizer)
    train, held_out = (_sft_examples(task, posts[split]) for split in ("train", "validation"))
    loss_of, say = partial(mean_token_loss, model), task.recorder.progress
    loss = optimise(model, train, loss_of, _SFT, _BATCH_TOKENS, task.random, "demo SFT model", say)
    save_policy(task.world, model, task.tokenizer)
    return policy_facts(model, loss, held_out, _BATCH_TOKENS)


def _sft_examples(task: Preparation, posts: Sequence[Post]) -> list[Example]:
    """Return prompts with several summaries each; the loss counts the summaries and their EOS."""
    examples, eos = [], task.tokenizer.eos_token_id
    for post in posts:
        prompt = task.tokenizer(post.prompt)["input_ids"]
        outputs = task.tokenizer(_summaries(task.random, post))["input_ids"]
        rows = tuple((*prompt, *ids, eos) for ids in outputs if len(ids) <= _MAX_SUMMARY_TOKENS)
        examples.append(Example(Group(rows, len(prompt)), len(prompt)))
    return [example for example in examples if example.group.rows]


def _make_reward_model(task: Preparation, posts: dict[str, list[Post]]) -> dict[str, object]:
    model = RewardModel(new_gptj(_SIZE, task.tokenizer).transformer)
    drawn = (
        [draw_preferences(task.random, post.prompt, post.story) for post in posts[split]]
        for split in ("train", "validation")
    )
    train, held_out = (encode(preferences, TLDR, task.tokenizer, _SIZE.context) for preferences in drawn)
    loss_of, say = partial(pair_loss, model), task.recorder.progress
    loss = optimise(model, train, loss_of, _REWARD, _BATCH_TOKENS, task.random, "demo reward model", say)
    save_reward_model(task.world, model, TLDR, task.tokenizer)
    return reward_facts(model, loss, held_out, _BATCH_TOKENS)
