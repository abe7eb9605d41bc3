"""Cells of `make bench-peer` outlive neither their recipe nor their data."""

import json
import shutil
from pathlib import Path

import pytest

from tests.bench.peer_cases import cases, identity
from tests.bench.peer_cases.cases import DEMO, GRPO, OVERLAPPED, SMOLLM, STRICT, Cell, prepare
from tests.bench.peer_cases.identity import digest_of, set_aside, stamped
from tests.unit.pretrained_base import chat_model
from tests.unit.tiny_models import gpt2_like_tokenizer

CELL = Cell(DEMO, STRICT, None, 0)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe of all cases, which lie in an empty directory; their data is what data.txt says."""
    copy, data = tmp_path / "recipe.yaml", tmp_path / "data.txt"
    shutil.copy(cases.recipe_file(DEMO), copy)
    data.write_text("data")
    for module in (cases, identity):
        monkeypatch.setattr(module, "FOLDER", tmp_path / "peer")
        monkeypatch.setattr(module, "WORK", tmp_path / "peer" / "work")
        monkeypatch.setattr(module, "recipe_file", lambda _: copy)
    monkeypatch.setattr(identity, "_data_digest", lambda _: data.read_text())
    return copy


def finish(cell: Cell) -> None:
    """Train and judge a cell, as far as files show it."""
    cell.work.mkdir(parents=True)
    with stamped(cell):
        (cell.work / "trained.json").write_text('{"points": []}')
    shutil.copy(cell.work / "trained.json", cell.result)


def edited(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("temperature: 0.1", "temperature: 0.2"))


def test_a_cell_of_todays_recipe_stays_whatever_its_comments_say(recipe: Path, capsys) -> None:
    finish(CELL)
    assert json.loads(CELL.result.read_text()) == json.loads((CELL.work / "trained.json").read_text())
    recipe.write_text(f"# Another comment.\n{recipe.read_text()}")
    set_aside(DEMO)
    assert CELL.result.exists() and CELL.work.exists() and not capsys.readouterr().out


@pytest.mark.parametrize("change", ["recipe", "data", "no digest", "half written"])
def test_cells_of_another_recipe_or_other_data_are_set_aside_and_named(change: str, recipe: Path, capsys) -> None:
    finish(CELL)
    if change == "recipe":
        edited(recipe)
    elif change == "data":
        (recipe.parent / "data.txt").write_text("other data")
    else:
        for file in (CELL.result, CELL.work / "trained.json"):
            file.write_text("{}" if change == "no digest" else '{"dig')
    set_aside(DEMO)
    assert not CELL.result.exists() and not CELL.work.exists()
    aside = recipe.parent / "peer" / "aside" / f"{CELL.name}.json.1"
    assert f"{CELL.name}.json: of another recipe, case or data; it is {aside} now" in capsys.readouterr().out
    assert (recipe.parent / "peer" / "work" / "aside" / f"{CELL.name}.1" / "trained.json").exists() and aside.exists()
    set_aside(DEMO)
    assert not capsys.readouterr().out, "once"


def test_a_recipe_that_is_edited_while_a_cell_trains_is_not_what_it_trained_with(recipe: Path) -> None:
    CELL.work.mkdir(parents=True)
    with stamped(CELL):
        edited(recipe)
        (CELL.work / "trained.json").write_text("{}")
    set_aside(DEMO)
    assert not CELL.work.exists()


def test_all_that_tells_cells_apart_enters(recipe: Path) -> None:
    others = [
        Cell(DEMO, OVERLAPPED, None, 0), Cell(DEMO, GRPO, 1e-3, 0), Cell(DEMO, GRPO, 3e-4, 0),
        Cell(DEMO, STRICT, None, 1), Cell(DEMO, STRICT, None, 0, 2), Cell(DEMO, STRICT, None, 0, 2, smoke=True),
    ]  # fmt: skip
    assert len({digest_of(cell) for cell in (CELL, *others)}) == 7


def test_other_posts_and_another_model_are_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Path
) -> None:
    tokenizer, folder = gpt2_like_tokenizer(), recipe.parent / "peer" / "work" / "tldr"

    def posts(word: str) -> Path:
        text = word
        while len(tokenizer(text)["input_ids"]) < 300:
            text = f"{text} {word}"
        file = tmp_path / f"{word}.jsonl"
        file.write_text("".join(json.dumps({"prompt": text, "label": str(number)}) + "\n" for number in range(80)))
        return file

    monkeypatch.setenv("PEER_MODEL", str(chat_model(tmp_path / "model")))
    monkeypatch.setenv("PEER_TLDR", str(posts("cat")))
    assert prepare(SMOLLM) is None
    train = folder / "train.jsonl"
    written = train.stat().st_mtime_ns
    assert prepare(SMOLLM) is None and train.stat().st_mtime_ns == written
    monkeypatch.setenv("PEER_TLDR", str(posts("dog")))
    assert prepare(SMOLLM) is None and "dog" in train.read_text() and "cat" not in train.read_text()
    before = (folder / "source.txt").read_text()
    other = chat_model(tmp_path / "other", template=None)
    monkeypatch.setenv("PEER_MODEL", str(other))
    assert prepare(SMOLLM) is None and (folder / "source.txt").read_text() != before
