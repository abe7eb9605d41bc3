import pickle

import pytest

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import LearnerOutOfMemoryError, PipelineError
from brain_align.deploy.run.start import with_smaller_passes
from tests.unit.factories import recipe_settings


def test_a_run_is_resumed_with_half_the_budget_until_its_passes_fit():
    started: list[int] = []
    said: list[str] = []

    def run(recipe):
        budget = recipe.learner.micro_batch_tokens or 1000
        started.append(budget)
        if budget > 300:
            raise LearnerOutOfMemoryError("learner-1: out of memory.", budget // 2)
        return "summary"

    recipe = Recipe.model_validate(recipe_settings())
    assert with_smaller_passes(run, recipe, said.append) == "summary"
    assert started == [1000, 500, 250]
    assert said[0] == "learner-1: out of memory. The services start again with learner.micro_batch_tokens=500."
    assert len(said) == 2
    assert recipe.learner.micro_batch_tokens is None


def test_other_failures_end_the_run():
    def run(_recipe):
        raise PipelineError("lost")

    with pytest.raises(PipelineError, match="lost"):
        with_smaller_passes(run, Recipe.model_validate(recipe_settings()), print)


def test_the_error_survives_its_way_through_ray():
    error = pickle.loads(pickle.dumps(LearnerOutOfMemoryError("no memory", 64)))
    assert (str(error), error.smaller) == ("no memory", 64)
