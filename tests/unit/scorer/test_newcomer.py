"""The claim that a new kind of scorer takes two files, its settings and itself, and cannot pass unchecked."""

from typing import get_args

import pytest

from brain_align.common.config.scorers import ScorerPool, ScorerSection
from brain_align.scorer.catalogue import KINDS, check_scorer
from tests.locations import ROOT
from tests.unit.planted import run_planted

SETTINGS = '''
class PlantedSection(ScorerPool):
    """A planted kind of scorer."""

    kind: Literal["planted"]
    shift: float = Field(1.0, description="a planted setting")


ScorerSection = Annotated[
    PlantedSection
    | '''
ITSELF = """
from brain_align.common.config.scorers import PlantedSection
from brain_align.common.errors import UserError
from brain_align.scorer.scorer import EXACT, Annotation, Kind, Scorer, annotate


class PlantedScorer(Scorer):
    def __init__(self, name, shift):
        self.name, self.digest, self._shift = name, "planted", shift

    def score(self, batch):
        return annotate(self, batch, lambda group: Annotation([self._shift] * len(group["outputs"])))


def check(name, settings):
    if settings.shift < 0:
        raise UserError("a negative shift")


KIND = Kind(
    section=PlantedSection,
    load=lambda name, settings, resources: PlantedScorer(name, settings.shift),
    check=check,
    tolerance=lambda settings: EXACT,
    must_answer=False,
    reads_turns=lambda settings: False,
    source=lambda settings: f"shift {settings.shift}",
)
"""
CODE = """
from pathlib import Path
from brain_align.common.config.validation import parse_recipe
from brain_align.common.errors import UserError
from brain_align.deploy.commands.doctor import _described
from brain_align.scorer.catalogue import build_scorer, check_scorer
from brain_align.scorer.golden import check_golden
from tests.unit.factories import groups, recipe_settings

recipe = parse_recipe(recipe_settings(scorers={"reward": {"kind": "planted", "shift": 3}}), "planted.yaml")
section = recipe.scorers["reward"]
check_scorer("reward", section)
try:
    check_scorer("reward", section.model_copy(update={"shift": -1}))
except UserError as error:
    print("refused:", error)
scorer = build_scorer(section, "reward", recipe.policy, Path("policies"))
for _ in range(2):
    check_golden(scorer, section, Path("golden.json"))
print(scorer.score(groups("a"))["values"].to_pylist())
print(_described(recipe, "reward"))
"""


def test_a_new_kind_is_a_section_and_a_file(tmp_path):
    union = "ScorerSection = Annotated[\n    "
    settings = (ROOT / "common/config/scorers.py").read_text().replace(f"\n{union}", f"\n{SETTINGS}")
    printed = run_planted(tmp_path, {"common/config/scorers.py": settings}, {"scorer/kinds/planted.py": ITSELF}, CODE)
    assert printed.splitlines() == ["refused: a negative shift", "[[3.0, 3.0]]", "planted, shift 3.0, for training"]


def test_every_kind_of_the_settings_is_in_the_table_and_no_other():
    assert set(KINDS) == set(get_args(get_args(ScorerSection)[0]))


def test_a_kind_that_the_table_lacks_is_an_error_and_not_unchecked():
    with pytest.raises(KeyError):
        check_scorer("reward", ScorerPool(kind="unheard of"))
