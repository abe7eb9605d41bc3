"""How far a comparison is, and when it is expected to end."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta

from brain_align.deploy.compare.plan.layout import ComparisonDirectory
from brain_align.deploy.compare.plan.methods import Method
from brain_align.deploy.compare.plan.training_runs import ComparisonPlan
from brain_align.deploy.compare.results.choices import known_runs
from brain_align.deploy.compare.results.run_results import read_finished


class Progress:
    """Counts the runs of a plan, and expects those that are left to take as long as those that are finished.

    A run's time is that of its last start. A method whose runs have no time yet is given the mean of the others. Which
    rates other seeds need is known once a grid is finished: until then, one is expected.
    """

    def __init__(
        self,
        directory: ComparisonDirectory,
        plan: ComparisonPlan,
        parallel: int,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory
        self._plan = plan
        self._parallel = parallel
        self._now = now

    def sentence(self) -> str:
        """Return how many runs are finished, minutes per run, and the expected end."""
        of_methods = [self._of(method) for method in self._plan.request.methods]
        spent = [second for seconds, _ in of_methods for second in seconds]
        done, planned = len(spent), sum(planned for _, planned in of_methods)
        counted = f"{done} of {planned} training runs are finished"
        if not spent or done == planned:
            return counted
        mean = sum(spent) / done
        left = sum(
            (planned - len(seconds)) * (sum(seconds) / len(seconds) if seconds else mean)
            for seconds, planned in of_methods
        )
        left /= min(self._parallel, planned - done)
        end = datetime.fromtimestamp(self._now() + left).astimezone()
        return (
            f"{counted}, {mean / 60:.1f} minutes per run, {_duration(left)} left: expected end {end:%Y-%m-%d %H:%M %Z}"
        )

    def _of(self, method: Method) -> tuple[list[float], int]:
        """Return the seconds of a method's finished runs, and the number of its runs."""
        seconds: list[float] = []
        planned = 0
        for n in self._plan.sizes(method):
            known = known_runs(self._directory, self._plan, method, n)
            planned += max(len(known), self._plan.fewest())
            results = (read_finished(self._directory, run) for run in known)
            seconds += [result.seconds for result in results if result is not None]
        return seconds, planned


def _duration(seconds: float) -> str:
    minutes = round(timedelta(seconds=seconds) / timedelta(minutes=1))
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"
