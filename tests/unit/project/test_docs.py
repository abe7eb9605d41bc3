"""The documentation names what exists: paths, links, commands, make targets; and README's quickstart is valid."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from brain_align.common.config.scorers import FunctionSection
from brain_align.common.schemas import SCORES
from brain_align.deploy import cli
from brain_align.deploy.commands.arguments import parsed
from brain_align.deploy.run.recipe_files import load_recipe
from brain_align.scorer.kinds.function import load_function
from tests.unit.factories import groups

ROOT = Path(__file__).parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]  # the changelog may name what is gone

_ROOMS = "brain_align|common|sampler|scorer|learner|deploy|tests|docs|requirements"
_PATH = re.compile(rf"(?<![\w/.-])(?:{_ROOMS})/[\w*./-]*(?:\.(?:py|yaml|md|svg|txt|sh|ipynb)\b|/(?=`))")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)


def page_id(page: Path) -> str:
    return page.name


def code_blocks(text: str) -> Iterator[str]:
    yield from (block.group(2) for block in _FENCED.finditer(text))
    yield from (block.group() for block in _INDENTED.finditer(_FENCED.sub("", text)))


def brain_commands(page: Path) -> Iterator[list[str]]:
    for block in code_blocks(page.read_text()):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            command = line.strip().removeprefix("$ ")
            if command.startswith("brain "):
                given = re.sub(r"\[(--[^]]+)\]", r"\1", command)  # [--option]: may be left out
                yield shlex.split(given, comments=True)[1:]


def anchors(page: Path) -> set[str]:
    """The ids that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", _FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", CURRENT, ids=page_id)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    named = set(_PATH.findall(page.read_text()))
    assert [path for path in sorted(named) if not list(ROOT.glob(path))] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_relative_link_and_anchor_of_a_page_exists(page: Path) -> None:
    broken = []
    for link in _LINK.findall(_FENCED.sub("", page.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_the_index_lists_every_page() -> None:
    listed = {Path(link).name for link in _LINK.findall((ROOT / "docs/index.md").read_text())}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - listed == {"index.md"}


@pytest.mark.parametrize("page", CURRENT, ids=page_id)
def test_every_brain_command_of_a_page_parses(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for command in brain_commands(page):
        try:
            options = parsed(cli._parser(), command)
        except SystemExit:
            pytest.fail(f"brain {shlex.join(command)}")
        recipe = Path(command[1])
        if command[0] in ("run", "compare", "doctor") and recipe.exists():
            load_recipe(recipe, options.overrides)  # raises where a setting does not exist, or has no such value


def test_pages_name_commands_and_make_targets_that_exist() -> None:
    assert sum(len(list(brain_commands(page))) for page in CURRENT) > 20  # they are found at all
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    benches = {f"bench-{path.stem.replace('_', '-')}" for path in (ROOT / "tests/bench").glob("[a-z]*.py")}
    named = {name for page in CURRENT for name in re.findall(r"`?make ([a-z-]+)[`\s]", "\n".join(_commands_in(page)))}
    assert named >= {"demo", "test", "bench-learner"}
    assert named - targets - benches == set()


def _commands_in(page: Path) -> Iterator[str]:
    text = page.read_text()
    yield from code_blocks(text)
    yield from re.findall(r"`make [^`]+`", text)


@pytest.fixture
def quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory with the files that README's quickstart prints, as the current directory."""
    section = (ROOT / "README.md").read_text().split("\n## Quickstart", 1)[1].split("\n## ", 1)[0]
    for before, block in zip(_FENCED.split(section)[0::3], _FENCED.split(section)[2::3], strict=False):
        name = re.findall(r"`(\w+\.(?:py|yaml))`", before)
        if name:
            (tmp_path / name[-1]).write_text(block)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.py", "quickstart.yaml", "rewards.py"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_quickstart_s_recipe_fits_its_prompts(quickstart: Path) -> None:
    recipe = load_recipe(Path("quickstart.yaml"), [])
    exec(compile(Path("prompts.py").read_text(), "prompts.py", "exec"), {})
    rows = {split: len(Path(f"{split}.jsonl").read_text().splitlines()) for split in ("train", "validation", "test")}
    assert rows["train"] >= recipe.algorithm.prompts_per_round * recipe.algorithm.rounds
    assert rows["validation"] == recipe.evaluation.validation_prompts
    assert rows["test"] >= recipe.evaluation.test_prompts
    assert {section.path for section in (recipe.data.train, recipe.data.validation, recipe.data.test)} == {
        f"{split}.jsonl" for split in rows
    }


def test_the_quickstart_s_reward_scores_and_prefers_short_complete_answers(quickstart: Path) -> None:
    section = load_recipe(Path("quickstart.yaml"), []).scorers["brevity"]
    assert isinstance(section, FunctionSection)
    scorer = load_function("brevity", section)
    texts = ["The moon shines at night.", "The moon is a very long story that never", "Moon."]
    outputs = [{"token_ids": [1], "token_logprobs": [-1.0], "text": text, "finish_reason": "stop"} for text in texts]
    scored = scorer.score(groups("a", outputs=outputs))
    assert scored.schema.equals(SCORES)
    values = scored.to_pylist()[0]["values"]
    assert values[0] == pytest.approx(1 - 5 / 40)
    assert values[0] > values[1] > values[2]
