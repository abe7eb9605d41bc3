"""Pair losses against TRL's own code, called on given log-probabilities."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from tests.unit.objective_values import apply, random_values, settings_of

trl_dpo = pytest.importorskip("trl.trainer.dpo_trainer", reason="TRL is not installed")
trl_cpo = pytest.importorskip("trl.experimental.cpo.cpo_trainer", reason="TRL is not installed")

PAIRS = 12


def pairs():
    """One pair a prompt."""
    return random_values(b=PAIRS, n=2, seed=4)


def sides(column, rewards):
    """The winners' values, then the losers'.  # [b, 2] -> [b], [b]"""
    wins = rewards.argmax(-1, keepdim=True)
    return column.gather(1, wins)[:, 0], column.gather(1, 1 - wins)[:, 0]


class GivenLogprobs(torch.nn.Module):
    """Stands for a model: its answer is one token of a given log-probability."""

    def __init__(self, logprobs):
        super().__init__()
        self.logprobs = logprobs

    def forward(self, **_):
        shape = self.logprobs[:, None].shape
        unread = {name: torch.zeros(shape) for name in ("entropy", "mean_logits")}  # only reported
        return SimpleNamespace(log_probs=self.logprobs[:, None], is_top1=torch.zeros(shape).bool(), **unread)


def dpo_loss(values, loss_type, *, beta, label_smoothing=0.0):
    """TRL's `DPOTrainer._compute_loss` on sequences of one prompt and one answer token."""
    model = GivenLogprobs(torch.cat(sides(values.policy_logprobs, values.rewards)))
    reference = sides(values.prior_logprobs, values.rewards)
    trainer = SimpleNamespace(
        model=model,
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda value: value, gather=lambda value: value),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=label_smoothing,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {
        "input_ids": torch.ones(2 * PAIRS, 2, dtype=torch.int64),
        "attention_mask": torch.ones(2 * PAIRS, 2, dtype=torch.int64),
        "completion_mask": torch.tensor([[0, 1]] * (2 * PAIRS)),
        "ref_chosen_logps": reference[0],
        "ref_rejected_logps": reference[1],
    }
    return trl_dpo.DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)


@pytest.mark.parametrize(
    ("section", "loss_type", "settings"),
    [
        (settings_of("dpo-sft", beta=0.3), "sigmoid", {"beta": 0.3}),
        (settings_of("rdpo", beta=0.3, epsilon=0.2), "robust", {"beta": 0.3, "label_smoothing": 0.2}),
        (settings_of("ipo", tau=0.3), "ipo", {"beta": 0.3}),
        (settings_of("rso", gamma=0.05, loss="hinge-norm"), "hinge", {"beta": 0.05}),
    ],
)
def test_dpo_trainer(section, loss_type, settings):
    values = pairs()
    ours, theirs = apply(values, section).loss, dpo_loss(values, loss_type, **settings)
    torch.testing.assert_close(ours, theirs)
    grads = [torch.autograd.grad(loss, values.policy_logprobs)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*grads)


def cpo_losses(chosen, rejected, loss_type, *, beta, simpo_gamma=0.0, label_smoothing=0.0):
    """TRL's `CPOTrainer.cpo_loss`."""
    trainer = SimpleNamespace(
        alpha=0.0,
        accelerator=SimpleNamespace(device="cpu"),
        loss_type=loss_type,
        beta=beta,
        simpo_gamma=simpo_gamma,
        label_smoothing=label_smoothing,
    )
    return trl_cpo.CPOTrainer.cpo_loss(trainer, chosen, rejected)[0]


def test_simpo_against_cpo_trainer():
    values = pairs()
    ours = apply(values, settings_of("simpo", beta=2.0, margin=0.7)).losses
    chosen, rejected = sides(values.policy_logprobs / values.lengths, values.rewards)
    torch.testing.assert_close(ours, cpo_losses(chosen, rejected, "simpo", beta=2.0, simpo_gamma=0.7))


def test_conservative_dpo_against_cpo_trainer():
    # Its label smoothing is cDPO's; log-ratios in place of log-probabilities put the reference model in.
    values = pairs()
    ours = apply(values, settings_of("cdpo", beta=0.3, epsilon=0.2)).losses
    chosen, rejected = sides(values.policy_logprobs - values.prior_logprobs, values.rewards)
    torch.testing.assert_close(ours, cpo_losses(chosen, rejected, "sigmoid", beta=0.3, label_smoothing=0.2))


def test_slic_s_margin_against_cpo_trainer():
    values = pairs()
    ours = apply(values, settings_of("slic", sft_weight=0.0)).losses
    chosen, rejected = sides(values.policy_logprobs, values.rewards)
    torch.testing.assert_close(ours, cpo_losses(chosen, rejected, "hinge", beta=1.0))
