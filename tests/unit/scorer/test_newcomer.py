"""The claim that a new kind of scorer takes two files, its settings and itself, and cannot pass unchecked."""

import subprocess
import sys
from typing import get_args

import pytest

from brain_align.common.config.scorers import ScorerPool, ScorerSection
from brain_align.scorer.catalogue import check_scorer, kind_of
from tests.locations import ROOT
from tests.unit.planted import run_planted

SETTINGS = '''
class PlantedSection(ScorerPool):
    """A planted kind of scorer."""

    FILE = "planted"
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
    reading=lambda settings: None,
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


@pytest.mark.parametrize("section", get_args(get_args(ScorerSection)[0]))
def test_every_kind_of_the_settings_names_its_file(section):
    assert kind_of(section.model_construct()).section is section


def test_every_file_of_a_kind_is_named():
    files = {path.stem for path in (ROOT / "scorer/kinds").glob("*.py") if "KIND = Kind(" in path.read_text()}
    assert files == {section.FILE for section in get_args(get_args(ScorerSection)[0])}


def test_a_kind_that_names_no_file_is_an_error_and_not_unchecked():
    with pytest.raises(AttributeError, match="FILE"):
        check_scorer("reward", ScorerPool(kind="unheard of"))


def test_a_function_is_loaded_without_torch():
    """An actor of a scorer imports what its own kind needs, which decides how fast it starts."""
    code = """
import sys
from pathlib import Path
from brain_align.common.config.inputs import PolicySection
from brain_align.common.config.scorers import FunctionSection
from brain_align.scorer.catalogue import build_scorer

section = FunctionSection(kind="function", function="brain_align.deploy.demo.truth:quality")
build_scorer(section, "truth", PolicySection(model="m"), Path("policies"))
print(sorted({"torch", "transformers", "peft"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
