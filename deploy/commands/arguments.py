"""Arguments that several commands have."""

import argparse
from pathlib import Path


def add_recipe(parser: argparse.ArgumentParser, what: str = "a YAML recipe, e.g. deploy/recipes/demo.yaml") -> None:
    """Add RECIPE."""
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help=what)


def add_overrides(parser: argparse.ArgumentParser, what: str = "settings that replace the recipe's") -> None:
    """Add any number of `key.sub=value`, behind everything else that has no name."""
    # With a default, argparse does not call them required.
    parser.add_argument("overrides", nargs="*", default=[], metavar="key.sub=value", help=what)
