"""Text on disk is UTF-8 whatever the locale is: every place that reads or writes text says so."""

import ast
from pathlib import PurePosixPath

import pytest

from tests.locations import ROOT
from tests.unit.project.test_import_rules import sources

_OPENERS = {"open", "fdopen", "FileHandler", "NamedTemporaryFile", "TemporaryFile", "TextIOWrapper", "makefile"}
_BINARY_BY_DEFAULT = {"NamedTemporaryFile", "TemporaryFile", "makefile"}
_ALWAYS_TEXT = {"read_text", "write_text", "getoutput", "getstatusoutput"}
_PROCESSES = {"run", "Popen", "check_output", "check_call", "call"}


def without_encoding(code: str) -> list[int]:
    """Return the lines of calls that read or write text in the locale's encoding."""
    return sorted(
        call.lineno for call in ast.walk(ast.parse(code)) if isinstance(call, ast.Call) and _uses_locale(call)
    )


def _uses_locale(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in keywords:
        return False
    if name in _PROCESSES:
        return "text" in keywords or "universal_newlines" in keywords
    return name in _ALWAYS_TEXT or (name in _OPENERS and _opens_text(call, name, keywords.get("mode")))


def _opens_text(call: ast.Call, name: str, mode: ast.expr | None) -> bool:
    modes = [
        one.value
        for one in (*call.args, mode)
        if isinstance(one, ast.Constant) and isinstance(one.value, str) and set(one.value) <= set("rwxabt+")
    ]
    if not modes:  # a method `open` may be of anything, such as os.open, which has flags
        return name not in _BINARY_BY_DEFAULT and (name != "open" or isinstance(call.func, ast.Name))
    return not any("b" in mode for mode in modes)


@pytest.mark.parametrize("file", sources(), ids=str)
def test_no_text_is_read_or_written_in_the_locale_s_encoding(file: PurePosixPath) -> None:
    assert not without_encoding((ROOT / file).read_text(encoding="utf-8")), f"{file}: say encoding='utf-8'"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("open(p)", True),
        ("open(p, 'w')", True),
        ("open(p, 'rb')", False),
        ("open(p, mode='xb')", False),
        ("open(p, 'a', encoding='utf-8')", False),
        ("p.open('w')", True),
        ("gzip.open(p, 'rt')", True),
        ("gzip.open(p, 'rb')", False),
        ("os.open(p, os.O_RDONLY)", False),
        ("store.open(read_only=True)", False),
        ("p.read_text()", True),
        ("p.write_text(x, encoding='utf-8')", False),
        ("os.fdopen(1, 'w')", True),
        ("logging.FileHandler(p)", True),
        ("tempfile.NamedTemporaryFile()", False),
        ("tempfile.NamedTemporaryFile('w')", True),
        ("subprocess.run(x, text=True)", True),
        ("subprocess.run(x)", False),
    ],
)
def test_what_counts(code: str, found: bool) -> None:
    assert bool(without_encoding(code)) is found
