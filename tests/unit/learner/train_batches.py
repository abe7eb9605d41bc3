"""Random TRAIN_BATCHes for the learner's tests."""

import random

import pyarrow as pa

from brain_align.common.config.objective_sections import BrainSection
from brain_align.common.schemas import TRAIN_BATCH, batch_from_rows
from brain_align.learner.objectives.catalogue import make_objective
from brain_align.learner.steps.batches import GroupBatch, group_batch
from tests.unit.tiny_models import VOCABULARY

PER_OUTPUT = (
    "output_token_ids",
    "sampler_logprobs",
    "proposal_logprobs",
    "prior_logprobs",
    "rewards",
    "finished",
)
"""The columns that have a value for each output of a group."""


def train_row(group_id, *, prompt=(5, 6, 7), outputs=((1, 2), (3,)), **changes):
    outputs = [list(output) for output in outputs]
    row = {
        "group_id": group_id,
        "proposal_version": 0,
        "prompt_token_ids": list(prompt),
        "output_token_ids": outputs,
        "proposal_logprobs": [-3.0] * len(outputs),
        "prior_logprobs": [-3.0] * len(outputs),
        "rewards": [float(index) for index in range(len(outputs))],
        "gold_token_ids": None,
        "finished": [True] * len(outputs),
    }
    row |= changes
    sampled = [-3.0 if value is None else value for value in row["proposal_logprobs"]]
    return {"sampler_logprobs": sampled, **row}


def train_batch(*rows) -> pa.RecordBatch:
    return batch_from_rows(TRAIN_BATCH, list(rows))


def trained_batch(batch: pa.RecordBatch, settings=None) -> GroupBatch:
    """The batch as an objective trains it: BRAIn, unless settings of another are given."""
    stored = group_batch(batch)
    return stored.narrowed(make_objective(settings or BrainSection()).used(stored.stored_values()))


def random_rows(seed, groups=3, n=4):
    """Groups of n outputs with plausible log-probabilities; lengths differ."""
    draw = random.Random(seed)

    def tokens(longest):
        return [draw.randrange(VOCABULARY) for _ in range(draw.randint(1, longest))]

    def row(name):
        outputs = [tokens(6) for _ in range(n)]
        logprobs = [-4.0 * len(output) + draw.gauss(0, 1) for output in outputs]
        return train_row(
            name,
            prompt=tokens(8),
            outputs=outputs,
            proposal_logprobs=logprobs,
            prior_logprobs=[value + draw.gauss(0, 1) for value in logprobs],
            rewards=[draw.gauss(0, 1) for _ in outputs],
        )

    rows = [row(f"group-{seed}-{index}") for index in range(groups)]
    return [one | {"gold_token_ids": tokens(6)} for one in rows]  # drawn last: the rest is what it is without gold


def gappy_batch(seed) -> pa.RecordBatch:
    """Three random groups, with a reward, a prior and outputs missing here and there."""
    first, second, third = random_rows(seed)
    first["rewards"][1] = None
    second["prior_logprobs"][0] = None
    for column in PER_OUTPUT:
        third[column] = third[column][:3]
    return train_batch(first, second, third)
