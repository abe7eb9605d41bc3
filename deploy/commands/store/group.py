"""Inspect, export, maintain and re-use stored samples.

A STORE is a run directory, a store directory, or a store's URI: what a run has sampled, scored and trained
(docs/store-tools.md).

Examples:
  brain store ls runs/demo
  brain store export runs/demo --format parquet --output samples.parquet
"""

import argparse

from brain_align.deploy.commands.arguments import add_commands

GROUP = "Data"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the commands of this folder."""
    add_commands(parser, "brain_align.deploy.commands.store")
