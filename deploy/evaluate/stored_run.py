"""The evaluation of a finished run that trained from a store, and so had no samplers: its first and newest versions."""

import json
import subprocess
import sys

from brain_align.common.durable import write_file
from brain_align.common.errors import PipelineError, UserError, first_failure
from brain_align.common.policies import PolicyRegistry
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.evaluate.candidates import parse
from brain_align.deploy.evaluate.evaluate import Progress, evaluate
from brain_align.deploy.evaluate.job import Options
from brain_align.deploy.evaluate.output import EvaluationDirectory
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.summary import read_summary

_IMPORT_LIMIT = 300.0  # seconds


def evaluate_stored_run(run: RunDirectory, console: PlainConsole, progress: Progress, *, asked: bool) -> None:
    """Evaluate the newest version of a finished run on test prompts, beside version 0, below `RUN/evaluated`.

    The run's summary names the figures then. `asked`: the user has asked for it, so that whatever stands in its way is
    an error; otherwise it is said, and the run is as complete as it was.

    Raises:
        UserError, PipelineError: see `evaluate`; only if it was asked for.
    """
    output = EvaluationDirectory(run.root / "evaluated")
    if output.figures.exists():
        console.print(f"evaluated before: {output.figures}", soft_wrap=True)
        return
    summary = read_summary(run)
    assert summary is not None, "the run has ended"
    again = f"brain evaluate {run.root} {run.root}@0"
    if not has_vllm():
        if asked:
            raise UserError(f"Outputs are sampled with vLLM, which is not installed here; where it is: {again}")
        console.print(f"not evaluated: vLLM is not installed here; where it is: {again}", soft_wrap=True)
        return
    console.print("evaluating on test prompts; the run itself is complete", soft_wrap=True)
    newest = PolicyRegistry(run.policies).versions()[-1]
    whats = [f"{run.root}@{version}" for version in dict.fromkeys((newest, 0))]
    options = Options([parse(what) for what in whats], output=output.root)
    try:
        found = evaluate(options, console, progress)
    except (UserError, PipelineError, ExceptionGroup) as error:
        if asked:
            raise
        reason = first_failure(error) if isinstance(error, ExceptionGroup) else error
        console.print(f"not evaluated: {reason} Later: {again}", soft_wrap=True)
        return
    figures = output.figures.relative_to(run.root)
    summary["evaluation"] = f"of version {newest} on {found['prompts']} test prompts: {figures}"
    write_file(run.summary, json.dumps(summary, indent=1))


def has_vllm() -> bool:
    """Return whether vLLM can be imported, which is tried in a process of its own: it takes seconds, and memory."""
    command = [sys.executable, "-c", "import vllm"]
    try:
        return not subprocess.run(command, capture_output=True, timeout=_IMPORT_LIMIT, check=False).returncode
    except subprocess.TimeoutExpired:
        return False
