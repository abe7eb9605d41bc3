"""Write a run's policy for use elsewhere.

Writes one version of the policy as an adapter (PEFT), or as a whole model (transformers).

Examples:
  brain export runs/demo --output my-adapter
  brain export runs/demo --output my-model --merge --version newest
"""

import argparse
import contextlib
import shutil
from pathlib import Path

from brain_align.common.config.inputs import PolicySection
from brain_align.common.durable import new_directory
from brain_align.common.errors import UserError
from brain_align.common.policies import PolicyRegistry, ProposalVersion
from brain_align.deploy.commands.arguments import add_run
from brain_align.deploy.console import say
from brain_align.deploy.run.directory import RunDirectory, saved_recipe
from brain_align.deploy.run.resolve import resolve
from brain_align.deploy.run.summary import read_summary

GROUP = "Train"

_MARKER = "version.json"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_run(parser)
    parser.add_argument("--version", default="best", help="best (on validation prompts; the default), newest, or N")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a directory that does not exist yet")
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
    policy = resolve(saved_recipe(directory), None, begun=directory).recipe.policy
    found = _find_version(directory, version)
    if output.exists():
        raise UserError(f"{output} exists already; name a new directory with --output.")
    from brain_align.common.nn.models.adapters import CONFIG, WEIGHTS  # torch and peft: seconds

    with new_directory(output.absolute()) as target:
        if policy.method == "lora" and not merge:
            for name in (CONFIG, WEIGHTS):
                shutil.copyfile(found.path / name, target / name)
            base = f"{policy.model}{', quantised to nf4' if policy.quantization else ''}"
            return f"version {found.version}: {output} (PeftModel.from_pretrained; its base is {base})"
        if policy.method == "lora":
            _write_merged(policy, found.path, target)
        else:
            shutil.copytree(found.path, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(_MARKER))
        _write_companions(policy, target)
    return f"version {found.version}: {output} (AutoModelForCausalLM.from_pretrained)"


def _find_version(directory: RunDirectory, version: str) -> ProposalVersion:
    registry = PolicyRegistry(directory.policies)
    versions = registry.versions()
    if not versions:
        raise UserError(f"The run in {directory.root} has not published a version yet.")
    if version == "newest":
        return registry.verify(versions[-1])
    if version == "best":
        summary = read_summary(directory)
        if summary is None:
            raise UserError(f"The run in {directory.root} has not ended, so no version is the best yet; set --version.")
        return registry.verify(summary["best_version"])
    if not version.isdigit() or int(version) not in versions:
        raise UserError(
            f"--version {version}: the run in {directory.root} has versions 0 to {versions[-1]}; give one of them, "
            f"best or newest."
        )
    return registry.verify(int(version))


def _write_merged(policy: PolicySection, adapter: Path, target: Path) -> None:
    """Write the model with the adapter added to its weights, which are dequantised first if need be."""
    from brain_align.common.nn.models.adapters import load_adapter
    from brain_align.common.nn.models.causal_lm import load_causal_lm
    from brain_align.common.nn.models.saving import load_dequantized, save_causal_lm

    if policy.quantization is None:
        model = load_causal_lm(policy.model, policy.dtype)
    else:
        model = load_dequantized(policy.model, policy.dtype)
    save_causal_lm(load_adapter(model, adapter).merge_and_unload(), target)


def _write_companions(policy: PolicySection, target: Path) -> None:
    """Write the tokenizer and the generation config, which belong to a whole model."""
    from transformers import GenerationConfig

    from brain_align.common.nn.models.causal_lm import load_tokenizer

    load_tokenizer(policy.tokenizer or policy.model).save_pretrained(target)
    with contextlib.suppress(OSError):  # a model need not have one
        GenerationConfig.from_pretrained(policy.model).save_pretrained(target)
