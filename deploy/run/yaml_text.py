"""YAML texts of plain values, of bounded size: whatever they hold, reading them ends soon."""

from collections.abc import Mapping
from typing import Any

import yaml

LARGEST = 1 << 20
"""Characters of the largest text that is read: recipes have a thousandth of it."""
_MOST_VALUES = 100_000  # a text of a few lines can stand for billions of them by aliases of aliases
_DEEPEST = 50
_LARGEST_NUMBER = 1 << 64
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """A loader whose errors name the place of a value that Python cannot hold, such as the date 2024-13-45."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        merged = [value for key, value in node.value if key.tag == _MERGE]
        merged = [one for value in merged for one in (value.value if isinstance(value, yaml.SequenceNode) else [value])]
        for one in merged:
            if isinstance(one, yaml.MappingNode):
                self.flatten_mapping(one)
        if sum(len(one.value) for one in merged) > _MOST_VALUES:
            raise yaml.constructor.ConstructorError(None, None, "it merges too many values", node.start_mark)
        super().flatten_mapping(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
                raise ValueError("the number is too large")
            return value
        except ValueError as error:
            problem = str(error).partition(";")[0]
        except (KeyError, AttributeError, IndexError):  # what PyYAML makes of a tag that its text does not suit
            problem = f"{node.value!r} is not a valid {node.tag.rpartition(':')[2]}"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def load_yaml(text: str) -> Any:
    """Read a YAML text of plain values; a value that Python cannot hold is a `yaml.YAMLError`, too."""
    if len(text) > LARGEST:
        raise yaml.YAMLError("it is too long")
    try:
        value = yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise yaml.YAMLError("its values are nested too deeply") from None
    _count(value, 0, {})
    return value


def _count(value: Any, depth: int, known: dict[int, int]) -> int:
    """Return the number of values in one; refuse one that aliases make huge, too deep or part of itself."""
    if depth > _DEEPEST:
        raise yaml.YAMLError("its values are nested too deeply")
    if not isinstance(value, dict | list | tuple | set):
        return 1
    if id(value) not in known:
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(one, depth + 1, known) for one in inner)
    if known[id(value)] > _MOST_VALUES:
        raise yaml.YAMLError("its aliases stand for too many values")
    return known[id(value)]


def yaml_problem(error: yaml.YAMLError) -> str:
    """Say on one line what is wrong with a YAML text, and where."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())


def dump_yaml(settings: Mapping[str, Any]) -> str:
    """Write settings as YAML, in the order of the recipe."""
    return yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
