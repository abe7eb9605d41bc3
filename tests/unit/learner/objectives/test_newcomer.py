"""The claim that a new objective takes two files: its settings, and its loss."""

from tests.locations import ROOT
from tests.unit.planted import run_planted

SETTINGS = '''

class PlantedSection(PairSection):
    """A planted objective."""

    name: Literal["planted"]
    slope: float = Field(2.0, gt=0, description="a planted setting")
'''
LOSS = """
from brain_align.learner.objectives.dpo import paired
from brain_align.learner.objectives.pairs import margins, mean_over_pairs, winners
from brain_align.learner.objectives.values import Definition


def planted(values, settings):
    return mean_over_pairs(-settings.slope * margins(values.policy_logprobs), winners(values, settings.pairs))


OBJECTIVES = {"planted": Definition(planted, paired)}
"""
CODE = """
from brain_align.common.config.validation import parse_recipe
from brain_align.learner.objectives.catalogue import make_objective
from tests.unit.factories import recipe_settings
from tests.unit.learner.objectives.objective_values import random_values

recipe = parse_recipe(recipe_settings(objective={"name": "planted", "slope": 3}), "planted.yaml")
assert parse_recipe(recipe.model_dump(mode="json"), "saved") == recipe
objective, values = make_objective(recipe.objective), random_values()
objective(values).loss.backward()
print(recipe.has_fixed_proposal, values.policy_logprobs.grad.abs().max() > 0)
"""


def test_a_new_objective_is_a_section_and_a_loss(tmp_path):
    path = "common/config/objective_sections.py"
    settings = (ROOT / path).read_text() + SETTINGS
    printed = run_planted(tmp_path, {path: settings}, {"learner/objectives/planted.py": LOSS}, CODE)
    assert "True tensor(True)" in printed
