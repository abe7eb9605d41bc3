"""The objectives by the name that recipes use."""

from brain_align.common.config.objective_sections import ObjectiveBase, OwnSection
from brain_align.learner.objectives.brain import (
    brain,
    brain_no_baseline,
    dpo_sft_iw_n,
    metrics_as_of_prior,
    posterior_metrics,
    two_or_more,
)
from brain_align.learner.objectives.dpo import cdpo, dpo, dpo_sft_iw, ipo, paired, rdpo, simpo
from brain_align.learner.objectives.objective import Definition, Objective
from brain_align.learner.objectives.own import load_own
from brain_align.learner.objectives.policy_gradients import any_output, dpg, gdc_pp
from brain_align.learner.objectives.rankings import plackett_luce, pro, ranked, rrhf
from brain_align.learner.objectives.rso import rso, rso_used
from brain_align.learner.objectives.sft_terms import dpo_nll, paired_or_best, slic

OBJECTIVES: dict[str, Definition] = {
    "brain": Definition(brain, two_or_more, posterior_metrics),
    "brain-no-baseline": Definition(brain_no_baseline, two_or_more, posterior_metrics),
    "brain-fixed-proposal": Definition(brain, two_or_more, posterior_metrics),
    "dpo": Definition(dpo, paired),
    "dpo-sft": Definition(dpo, paired),
    "dpo-sft+iw": Definition(dpo_sft_iw, paired),
    "dpo-sft+iw+n": Definition(dpo_sft_iw_n, two_or_more, metrics_as_of_prior),
    "rso": Definition(rso, rso_used),
    "slic": Definition(slic, paired_or_best),
    "rrhf": Definition(rrhf, ranked),
    "pro": Definition(pro, ranked),
    "ipo": Definition(ipo, paired),
    "simpo": Definition(simpo, paired),
    "cdpo": Definition(cdpo, paired),
    "rdpo": Definition(rdpo, paired),
    "plackett-luce": Definition(plackett_luce, ranked),
    "dpg": Definition(dpg, any_output, posterior_metrics),
    "gdc++": Definition(gdc_pp, any_output, posterior_metrics),
    "spo": Definition(brain, two_or_more, posterior_metrics),
    "dpo+nll": Definition(dpo_nll, paired),
}


def make_objective(settings: ObjectiveBase) -> Objective:
    """The objective that a recipe names.

    Raises:
        UserError: it is the user's own, and cannot be imported or does not give losses.
    """
    if isinstance(settings, OwnSection):
        return Objective(load_own(settings), settings)
    return Objective(OBJECTIVES[settings.name], settings)
