"""A small run directory with a store that has everything to look at: two rounds, nulls, errors, ties, steps."""

from pathlib import Path

import numpy as np

from brain_align.common.config.recipe import Recipe
from brain_align.common.schemas import GROUPS, batch_from_rows
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.run.yaml_text import dump_yaml
from tests.unit.factories import group, output, recipe_settings, scores, step

N = 4
REWARDS: dict[str, list[float | None]] = {
    "aa01": [0.0, 1.0, 2.0, 2.0],  # the second pair of neighbours is tied
    "ab02": [3.0, None, 1.0, -1.0],
    "ba03": [0.5, 0.25, 0.75, 1.0],
}
ROUND = {"aa01": 0, "ab02": 0, "ba03": 1, "bb04": 1}  # bb04 is not scored


def store_rows(name: str) -> dict[str, object]:
    outputs = [output([number, 2], [-1.0 * number, -0.5], f"{name} says {number}") for number in range(N)]
    return group(name, round=ROUND[name], proposal_version=ROUND[name], outputs=outputs)


def stored_run(root: Path, temperature: float = 0.5) -> Path:
    """Make the run's directory below `root`; returns it."""
    directory = root / "run"
    directory.mkdir(parents=True)
    recipe = Recipe.model_validate(recipe_settings(objective={"temperature": temperature}))
    (directory / "config.yaml").write_text(dump_yaml(recipe.model_dump(mode="json")))
    store = SampleStore(directory / "store", "run")
    for names in (["aa01", "ab02"], ["ba03", "bb04"]):
        store.append_groups(batch_from_rows(GROUPS, [store_rows(name) for name in names]))
    for name, values in REWARDS.items():
        error = "output 1 is odd" if None in values else None
        store.append_scores(scores("reward", {name: values}, error=error, gold_value=1.5))
        prior: list[float | None] = [-0.5 - number for number in range(N)]
        store.append_scores(scores("prior", {name: prior}, gold_value=None))
    with store.training():
        store.append_step(step(1, ["aa01", "ab02"]))
        store.append_step(step(2, ["ab02"]))
    return directory


def expected_alpha(name: str, temperature: float) -> np.ndarray:
    """Of a group without nulls, by the paper's equation 20; log p - log q' is 0 here."""
    weights = np.exp(np.array(REWARDS[name], dtype=np.float64) / temperature)
    return weights / weights.sum()
