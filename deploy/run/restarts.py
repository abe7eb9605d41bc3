"""Starting a run's services again where only that helps: the learner ran out of memory."""

from collections.abc import Callable
from typing import TypeVar

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import LearnerOutOfMemoryError

T = TypeVar("T")


def with_smaller_passes(run: Callable[[Recipe], T], recipe: Recipe, say: Callable[[str], None]) -> T:
    """Run, and resume with half the token budget as often as the learner has too little memory for a pass.

    A resumed run goes on from the last checkpoint and takes the recorded steps again on the same groups.

    Args:
        run: one start of the services, to the end of the run.
        recipe: to start with.
        say: is told of every new start.
    """
    while True:
        try:
            return run(recipe)
        except LearnerOutOfMemoryError as error:
            say(f"{error} The services start again with learner.micro_batch_tokens={error.smaller}.")
            learner = recipe.learner.model_copy(update={"micro_batch_tokens": error.smaller})
            recipe = recipe.model_copy(update={"learner": learner})
