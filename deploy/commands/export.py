"""Write a run's policy for use elsewhere.

Writes one version of the policy as an adapter (PEFT), or as a whole model (transformers), with the tokenizer, the chat
template that the run used, and a model card.

Examples:
  brain export runs/demo --output my-adapter
  brain export runs/demo --output my-model --merge --version newest
"""

import argparse
import os
import shutil
from pathlib import Path

from brain_align.common.config.inputs import PolicySection
from brain_align.common.durable import new_directory
from brain_align.common.errors import UserError
from brain_align.deploy.commands.arguments import add_run
from brain_align.deploy.console import say
from brain_align.deploy.run.directory import RunDirectory, saved_recipe
from brain_align.deploy.run.resolve import resolve
from brain_align.deploy.run.result.files import Result
from brain_align.deploy.run.summary import read_summary
from brain_align.deploy.run.versions import find_version

GROUP = "Train"

_MARKER = "version.json"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_run(parser)
    parser.add_argument("--version", default="best", help="best (on validation prompts; the default), newest, or N")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new or empty directory")
    parser.add_argument("--merge", action="store_true", help="merge an adapter into its model, and write the whole")


def run(options: argparse.Namespace) -> None:
    """Export a version."""
    say(export(options.run, options.version, options.output, merge=options.merge))


def export(run: Path, version: str, output: Path, *, merge: bool) -> str:
    """Write one version of a run's policy into a new directory, which appears whole or not at all.

    Return a sentence on what was written, and how to load it. A run or version that does not exist, an output that does
    and a model that cannot be loaded are refused.
    """
    directory = RunDirectory(run.absolute())
    recipe = resolve(saved_recipe(directory), None, begun=directory).recipe
    found = find_version(directory, version, f"--version {version}", "set --version")
    output = output.expanduser().absolute()
    _make_way(output)
    result = Result(recipe, directory, found, read_summary(directory))
    is_adapter = recipe.policy.method == "lora" and not merge
    with new_directory(output) as target:
        if is_adapter:
            notes = result.write_adapter(target)
        else:
            _write_model(recipe.policy, result.base.name if result.base.local else None, found.path, target)
            notes = result.complete_model(target)
    loader = "AutoPeftModelForCausalLM" if is_adapter else "AutoModelForCausalLM"
    quantized = f", quantised to {recipe.policy.quantization}" if recipe.policy.quantization else ""
    base = f"; its base is {result.base.name}{quantized}" if is_adapter else ""
    said = f"Exported version {found.version} to {output}. Load it with {loader}.from_pretrained{base}."
    return "\n".join([said, *(f"note: {note}" for note in notes)])


def _make_way(output: Path) -> None:
    """Refuse a place that holds anything; an empty directory may become the result."""
    try:
        if output.is_dir() and not output.is_symlink() and not any(output.iterdir()):
            output.rmdir()
            return
    except OSError as error:
        raise UserError(f"{output} cannot be used ({error.strerror}); name another directory with --output.") from None
    if os.path.lexists(output):
        raise UserError(f"{output} exists already; name a new directory with --output.")


def _write_model(policy: PolicySection, base: str | None, version: Path, target: Path) -> None:
    """Write whole weights: the version's, or the model's with its adapter added, dequantised if need be."""
    if policy.method == "full":
        shutil.copytree(version, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(_MARKER))
        return
    from brain_align.common.nn.models.adapters import load_adapter, merged  # torch and peft: seconds
    from brain_align.common.nn.models.causal_lm import load_causal_lm
    from brain_align.common.nn.models.saving import load_dequantized, save_causal_lm

    load = load_causal_lm if policy.quantization is None else load_dequantized
    model = load(base or policy.model, policy.dtype)
    save_causal_lm(merged(load_adapter(model, version)), target)
