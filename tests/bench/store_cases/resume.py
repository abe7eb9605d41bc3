"""What a run does with a store of a million groups before it goes on, in a process of its own.

python -m tests.bench.store_cases.resume ROOT      prints one line of JSON
"""

import json
import sys
from pathlib import Path

from brain_align.common.config.recipe import Recipe
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.conductor.tracker import Tracker
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.run.trackers.open_trackers import Trackers
from brain_align.deploy.schedule.round_prompts import StoredGroups
from brain_align.deploy.schedule.rounds import Rounds
from tests.bench.store_cases.million import RUN, SCORERS, resident_mb, timed
from tests.unit.factories import recipe_settings


def resumed(root: Path) -> dict[str, float]:
    """Open the store for writing, rewrite the metrics of all steps, and find what is ready and what is not."""
    algorithm = {"rounds": 1, "prompts_per_round": 1, "updates_per_round": 1, "batch_prompts": 1}
    recipe = Recipe.model_validate(recipe_settings(algorithm=algorithm))

    def resume() -> None:
        store = SampleStore(root, RUN)
        tracker = Tracker(recipe, root.parent / "metrics.jsonl", Trackers([]), PlainConsole(quiet=True))
        tracker.recovered(store)
        tracker.close()
        missing = {group for scorer in SCORERS for group in store.unscored(scorer)}
        index = store.index()
        rounds = Rounds(recipe.algorithm, StoredGroups(index), 0)
        columns = (index[name].to_pylist() for name in ("round", "prompt_id", "group_id"))
        for round_, prompt_id, group in zip(*columns, strict=True):
            if group not in missing:
                rounds.add(round_, prompt_id, group)

    _, seconds = timed(resume)
    return {"resume_seconds": seconds, "resume_mb": resident_mb()}


if __name__ == "__main__":
    print(json.dumps(resumed(Path(sys.argv[1]))))
