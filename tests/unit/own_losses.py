"""Losses as users write them: a good one, and every kind of bad one."""


def scaled(values, settings):
    margin = values.log_ratios - values.log_ratios.mean(dim=-1, keepdim=True)
    return -(settings.options["scale"] * values.rewards * margin * values.valid).mean(dim=-1)


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
