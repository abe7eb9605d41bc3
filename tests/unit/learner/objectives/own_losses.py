"""Losses as users write them: a good one, and every kind of bad one."""

from torch.nn.functional import dropout

from brain_align.learner.objectives.masked import masked_mean


def my_loss(values, settings):
    margins = values.log_ratios - masked_mean(values.log_ratios, values.valid)[:, None]
    return -settings.options["scale"] * masked_mean(values.rewards * margins, values.valid)


def mixes_prompts(values, settings):
    return -masked_mean((values.rewards - values.rewards.mean()) * values.log_ratios, values.valid)


def counts_missing_slots(values, settings):
    return -(values.rewards * values.log_ratios * values.valid).mean(dim=-1)


def normalises_over_missing_slots(values, settings):
    return -masked_mean(values.rewards * values.policy_logprobs.log_softmax(dim=-1), values.valid)


def drops_out(values, settings):
    return -masked_mean(dropout(values.rewards * values.log_ratios), values.valid)


def per_output(values, settings):
    return -values.policy_logprobs


def a_number(values, settings):
    return 0.5


def without_policy(values, settings):
    return values.rewards.sum(dim=-1)


def divides_by_zero(values, settings):
    return values.policy_logprobs.sum(dim=-1) / values.valid.float().amin(dim=-1)


def fails(values, settings):
    raise RuntimeError("out of ideas")
