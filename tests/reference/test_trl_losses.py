"""Pair losses against TRL's own code, called on given log-probabilities."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from tests.unit.learner.objectives.objective_values import apply, changed, random_values, settings_of

trl_dpo = pytest.importorskip("trl.trainer.dpo_trainer", reason="TRL is not installed")
trl_cpo = pytest.importorskip("trl.experimental.cpo.cpo_trainer", reason="TRL is not installed")
trl_rloo = pytest.importorskip("trl.trainer.rloo_trainer", reason="TRL is not installed")

PAIRS = 12


def pairs():
    """One pair a prompt."""
    return random_values(b=PAIRS, n=2, seed=4)


def sides(column, rewards):
    """The winners' values, then the losers'.  # [b, 2] -> [b], [b]"""
    wins = rewards.argmax(-1, keepdim=True)
    return column.gather(1, wins)[:, 0], column.gather(1, 1 - wins)[:, 0]


class GivenLogprobs(torch.nn.Module):
    """Stands for a model: its answers' tokens have given log-probabilities, 0 where an answer has ended."""

    def __init__(self, token_logprobs):
        super().__init__()
        self.token_logprobs = token_logprobs

    def forward(self, **_):
        shape = self.token_logprobs.shape
        unread = {name: torch.zeros(shape) for name in ("entropy", "mean_logits")}  # only reported
        return SimpleNamespace(log_probs=self.token_logprobs, is_top1=torch.zeros(shape).bool(), **unread)


def dpo_loss(values, loss_types, *, beta, label_smoothing=0.0, weights=None):
    """TRL's `DPOTrainer._compute_loss` on sequences of one prompt token and answers of the values' lengths."""
    sums, lengths = (torch.cat(sides(column, values.rewards)) for column in (values.policy_logprobs, values.lengths))
    answered = torch.arange(int(lengths.max())) < lengths[:, None]  # [2 * PAIRS, tokens]
    reference = sides(values.prior_logprobs, values.rewards)
    trainer = SimpleNamespace(
        model=GivenLogprobs(torch.where(answered, (sums / lengths)[:, None], 0.0)),
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda value: value, gather=lambda value: value),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=loss_types,
        loss_weights=weights or [1.0],
        beta=beta,
        label_smoothing=label_smoothing,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    prompt = torch.ones(len(lengths), 1).long()
    tokens = torch.cat([prompt, answered.long()], dim=1)
    inputs = {
        "input_ids": tokens,
        "attention_mask": tokens,
        "completion_mask": torch.cat([0 * prompt, answered.long()], dim=1),
        "ref_chosen_logps": reference[0],
        "ref_rejected_logps": reference[1],
    }
    return trl_dpo.DPOTrainer._compute_loss(trainer, trainer.model, inputs, return_outputs=False)


def same(values, ours, theirs):
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*[torch.autograd.grad(loss, values.policy_logprobs)[0] for loss in (ours, theirs)])


@pytest.mark.parametrize(
    ("section", "loss_type", "settings"),
    [
        (settings_of("dpo-sft", beta=0.3), "sigmoid", {"beta": 0.3}),
        (settings_of("rdpo", beta=0.3, epsilon=0.2), "robust", {"beta": 0.3, "label_smoothing": 0.2}),
        (settings_of("rso", gamma=0.05, loss="hinge-norm"), "hinge", {"beta": 0.05}),
    ],
)
def test_dpo_trainer(section, loss_type, settings):
    values = pairs()
    same(values, apply(values, section).loss, dpo_loss(values, [loss_type], **settings))


def test_ipo_is_trl_s_of_answers_of_one_token_and_on_means_over_tokens_that_of_longer_ones():
    # TRL divides a log-ratio by the tokens of its answer; the paper's equation 17, and ours, is of sums.
    values, section = pairs(), settings_of("ipo", tau=0.3)
    single = changed(values, lengths=torch.ones_like(values.lengths))
    same(single, apply(single, section).loss, dpo_loss(single, ["ipo"], beta=0.3))
    means = changed(
        values,
        policy_logprobs=values.policy_logprobs / values.lengths,
        prior_logprobs=values.prior_logprobs / values.lengths,
    )
    theirs = dpo_loss(values, ["ipo"], beta=0.3)
    same(values, apply(means, section).loss, theirs)
    assert apply(values, section).loss > 2 * theirs


def test_dpo_with_nll_is_trl_s_sigmoid_and_sft_where_winners_are_of_one_length():
    # TRL's SFT loss is a mean over the tokens of all winners, ours a sum over each; with one length that is a factor.
    values, tokens = pairs(), 4
    values = changed(values, lengths=torch.full_like(values.lengths, tokens))
    ours = apply(values, settings_of("dpo+nll", beta=0.3, sft_weight=0.2)).loss
    same(values, ours, dpo_loss(values, ["sigmoid", "sft"], beta=0.3, weights=[1.0, 0.2 * 0.3 * tokens]))


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


@pytest.mark.parametrize("gamma", [0.05, 1.0])
def test_rloo_is_trl_s(gamma):
    """TRL's rewards less β KL with its leave-one-out baseline, and its clipped loss; ours is divided by β = γ."""
    values = random_values(b=5, n=4, seed=7)
    rewards = values.rewards - gamma * (values.proposal_logprobs - values.prior_logprobs)
    advantages = rewards - (rewards.sum(-1, keepdim=True) - rewards) / 3
    ones = torch.ones(20, 1).long()
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (
            values.policy_logprobs.reshape(20, 1),
            torch.zeros(20, 1),
            None,
        ),
        model=torch.nn.Module(),
        accelerator=SimpleNamespace(reduce=lambda value, **_: value, gather=lambda value: value),
        aux_loss_enabled=False,
        epsilon_low=0.2,
        epsilon_high=0.2,
        _metrics={"train": defaultdict(list)},
    )
    inputs = {
        **{name: ones for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")},
        "old_logps": values.proposal_logprobs.flatten(),
        "advantages": advantages.flatten(),
    }
    theirs = trl_rloo.RLOOTrainer._compute_loss(trainer, trainer.model, inputs) / gamma
    result = apply(values, settings_of("rloo", temperature=gamma))
    same(values, result.loss, theirs)
    assert result.metrics["clipped"] == pytest.approx(trainer._metrics["train"]["clip_ratio/region_mean"][0])
