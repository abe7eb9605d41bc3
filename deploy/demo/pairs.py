"""The demo's human preference pairs: `python -m brain_align.deploy.demo.pairs FILE` writes them.

The pairs are drawn from the ground truth, two summaries of each training post, with the noise of those that the reward
model was trained on, but independently of them.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from brain_align.deploy.demo.preferences import draw_preferences
from brain_align.deploy.demo.world import draw_posts


def draw_pairs(seed: int) -> Iterator[dict[str, str]]:
    """Yield one pair for each training post of the demo's task with this seed."""
    posts = draw_posts(Random(seed))["train"]
    random = Random(f"pairs {seed}")
    for post in posts:
        preferences = draw_preferences(random, post.prompt, post.story)
        chosen, rejected = random.choice(preferences.pairs)
        texts = preferences.outputs
        yield {"prompt": post.prompt, "chosen": texts[chosen], "rejected": texts[rejected]}


def main() -> None:
    """Write the pairs to a file."""
    parser = argparse.ArgumentParser(
        prog="python -m brain_align.deploy.demo.pairs", description="Write the demo's pairs."
    )
    parser.add_argument("file", type=Path, help="output file, one line per pair (.jsonl)")
    parser.add_argument("--seed", type=int, default=0, help="prepare.seed of the recipe (default 0)")
    options = parser.parse_args()
    with open(options.file, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(pair, ensure_ascii=False) + "\n" for pair in draw_pairs(options.seed))


if __name__ == "__main__":
    main()
