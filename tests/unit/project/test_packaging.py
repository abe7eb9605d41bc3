"""The wheel: what it ships, and that an installation works from any folder without the repository."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.locations import ROOT

ROOMS = ("common", "deploy", "learner", "sampler", "scorer")
SHIPPED = (".py", ".yaml", ".html", ".css", ".js", ".jinja", ".j2", ".txt")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build leaves files in the tree."""
    work = tmp_path_factory.mktemp("wheel")
    for name in (*ROOMS, "brain_align"):
        shutil.copytree(ROOT / name, work / "tree" / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, work / "tree" / name)
    pip(["wheel", "--no-build-isolation", "--wheel-dir", str(work), "."], work / "tree")
    (built,) = work.glob("*.whl")
    return built


def pip(arguments: list[str], folder: Path) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--no-deps", "--no-index", "-q"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_wheel_ships_the_package_alone_and_all_of_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"brain_align"}
    wanted = {
        f"brain_align/{path.relative_to(ROOT)}"
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {Path(name).suffix for name in wanted} <= set(SHIPPED), "package-data must name every kind of file"
    assert wanted | {"brain_align/__init__.py"} == {name for name in names if ".dist-info/" not in name}


def test_an_installation_runs_where_the_users_own_files_are_called_like_our_rooms(wheel: Path, tmp_path: Path) -> None:
    pip(["install", "--target", str(tmp_path / "site"), str(wheel)], tmp_path)
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ROOMS:
        (mine / f"{name}.py").write_text("raise AssertionError('the user did not ask for this module')\n")
    code = f"import sys; sys.path.insert(1, {str(tmp_path / 'site')!r}); import brain_align.deploy.cli as cli; " + (
        f"assert cli.__file__.startswith({str(tmp_path)!r}), cli.__file__; cli.main(['run', 'nothing-like-it'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=mine, capture_output=True, text=True, check=False)
    assert "compare-demo.yaml, compare-smollm.yaml, demo.yaml" in done.stderr, done.stderr
