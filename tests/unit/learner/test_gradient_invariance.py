"""However a batch is computed, its gradient is the one of the textbook computation: full weights, float32, to 1e-5."""

import copy
import random

import pytest
import torch

from brain_align.common.config.objective_sections import BrainSection
from brain_align.common.config.training import LearnerSection
from brain_align.common.nn.logprobs import SequenceLogprobs
from brain_align.common.nn.prefix.packing import TokenBudget
from brain_align.learner.objectives.catalogue import make_objective
from brain_align.learner.steps.gradients import accumulate_gradient
from tests.unit.learner.plain_engine import PlainEngine
from tests.unit.learner.train_batches import random_rows, train_batch, train_row, trained_batch
from tests.unit.tiny_models import gptj, llama

MODELS = {"llama": llama, "gptj": gptj}
ODD_ROWS = [
    train_row("a prompt of one token", prompt=[4], outputs=[[1, 2], [3, 4, 5]]),
    train_row("an empty output", prompt=[4, 5], outputs=[[1, 2], [], [7]]),
    train_row("outputs of one token", prompt=[6, 5, 4], outputs=[[1], [2], [3], [1]]),
    train_row("a missing reward", prompt=[6, 7], outputs=[[1], [2, 3], [3]], rewards=[1.0, None, 2.0]),
    train_row("one output", prompt=[6, 7], outputs=[[1]]),
    train_row("nothing but empty outputs", prompt=[6, 7], outputs=[[], []]),
]
ROWS = [*random_rows(0, groups=3, n=5), *ODD_ROWS]


loss = make_objective(BrainSection())


class Rank(PlainEngine):
    """One of several ranks, which are run one after the other."""

    def __init__(self, module, rank, ranks):
        super().__init__(module, LearnerSection())
        self.rank, self.ranks = rank, ranks


def gradient(model, rows, budget, ranks=1):
    """The ranks' mean gradient, by parameter."""
    total = None
    for rank in range(ranks):
        logprobs = SequenceLogprobs(model)
        model.zero_grad()
        accumulate_gradient(Rank(logprobs, rank, ranks), trained_batch(train_batch(*rows)), loss, budget)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
        own = torch.cat([grad.flatten() for grad in grads])
        total = own if total is None else total + own
    return total / ranks


def textbook(model, rows):
    """All logits of one sequence at a time, and autograd through the loss of the whole batch."""
    batch = trained_batch(train_batch(*rows))
    logprobs = torch.zeros(batch.computed.shape)
    for row, (prompt, outputs) in enumerate(zip(batch.prompts, batch.completions, strict=True)):
        for column, output in enumerate(outputs):
            logits = model(torch.cat([prompt, output])[None]).logits[0]
            places = torch.arange(len(output)) + len(prompt) - 1
            logprobs[row, column] = logits.log_softmax(-1)[places, output].sum()
    model.zero_grad()
    loss(batch.values(logprobs)).loss.backward()
    return torch.cat([value.grad.flatten() for value in model.parameters()])


def shuffled(rows, seed):
    """The groups, and the outputs within each, in another order."""
    draw, moved = random.Random(seed), copy.deepcopy(rows)
    draw.shuffle(moved)
    for row in moved:
        order = list(range(len(row["output_token_ids"])))
        draw.shuffle(order)
        for column in ("output_token_ids", "sampler_logprobs", "proposal_logprobs", "prior_logprobs", "rewards"):
            row[column] = [row[column][index] for index in order]
    return moved


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_every_way_to_compute_a_batch_gives_the_textbook_s_gradient(model):
    reference = textbook(model(), ROWS)
    everything, nothing = 10_000, 1
    ways = {
        "all groups in one row": (ROWS, TokenBudget(everything, packed=True), 1),
        "several rows": (ROWS, TokenBudget(30, packed=True), 1),
        "groups split over their outputs": (ROWS, TokenBudget(12, packed=True), 1),
        "one output at a time": (ROWS, TokenBudget(nothing, packed=True), 1),
        "other orders": (shuffled(ROWS, 1), TokenBudget(everything, packed=True), 1),
        "other orders, split": (shuffled(ROWS, 2), TokenBudget(12, packed=True), 1),
        "two ranks": (ROWS, TokenBudget(everything, packed=True), 2),
        "two ranks, split": (ROWS, TokenBudget(12, packed=True), 2),
        "more ranks than trained groups": (ROWS, TokenBudget(everything, packed=True), 12),
    }
    for name, (rows, budget, ranks) in ways.items():
        actual = gradient(model(), rows, budget, ranks)
        assert (actual - reference).norm() <= 1e-5 * reference.norm(), name


def test_a_batch_of_nothing_but_empty_outputs_is_a_step_without_a_gradient():
    rows = [ODD_ROWS[-1]]
    assert gradient(llama(), rows, TokenBudget(100, packed=True)).abs().max() == 0
