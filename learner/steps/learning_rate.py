"""The learning rate as a function of the step alone, so that no schedule's state can be lost."""

import math

from brain_align.common.config.training import AlgorithmSection, LearnerSection


def learning_rate(step: int, learner: LearnerSection, algorithm: AlgorithmSection) -> float:
    """Return the learning rate of a step.

    It rises linearly and reaches its full value at step `warmup_steps`. From there it stays constant, or falls linearly
    or along half a cosine to 0 at the step after the run's last.

    Args:
        step: counted from 1.
        learner: full value, warm-up and schedule.
        algorithm: gives the number of steps.
    """
    if step < learner.warmup_steps:
        return learner.learning_rate * step / learner.warmup_steps
    if learner.schedule == "constant":
        return learner.learning_rate
    total = algorithm.rounds * algorithm.updates_per_round
    start = max(1, learner.warmup_steps)  # the step of the full value
    progress = (step - start) / max(1, total + 1 - start)
    factor = 1 - progress if learner.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return learner.learning_rate * factor
