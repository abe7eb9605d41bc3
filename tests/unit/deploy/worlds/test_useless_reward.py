"""A reward model that is known to be of no use is named by every command that uses it, before it is used."""

import io
from pathlib import Path

from brain_align.common.schemas import PRIOR
from brain_align.deploy.commands.doctor import examine
from brain_align.deploy.commands.scoring import resolved_for_scoring
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.preflight import check_inputs
from brain_align.deploy.services.trial import Trial
from tests.unit.pretrained_base import USELESS, recipe_with_useless_reward


def test_the_checks_before_every_start_say_it(tmp_path: Path) -> None:
    recipe = recipe_with_useless_reward(tmp_path)
    assert check_inputs(recipe, RunDirectory(tmp_path / "run")).notes[-1] == USELESS
    (tmp_path / "world" / "world.json").unlink()
    assert USELESS not in check_inputs(recipe, RunDirectory(tmp_path / "run")).notes


def test_brain_doctor_says_it(tmp_path: Path) -> None:
    text = io.StringIO()
    recipe = recipe_with_useless_reward(tmp_path)
    trials = {name: Trial(None, None) for name in (PRIOR, *recipe.scorers)}
    assert examine(recipe, PlainConsole(file=text, width=400), lambda *_: trials) == 0
    assert f"        {USELESS}\n" in text.getvalue()


def test_scoring_says_it_of_the_scorers_that_are_asked(tmp_path: Path) -> None:
    recipe, run = recipe_with_useless_reward(tmp_path), RunDirectory(tmp_path / "run")
    for scorers, said in ((["reward", "length"], f"{USELESS}\n"), (["length"], "")):
        text = io.StringIO()
        resolved_for_scoring(recipe, scorers, run, PlainConsole(file=text, width=400))
        assert text.getvalue() == said
