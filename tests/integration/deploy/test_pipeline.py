"""The whole pipeline with the real engines: vLLM, Ray, DeepSpeed, PEFT and Arrow."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from brain_align.common.nn.logprobs import SequenceLogprobs, request_of
from brain_align.common.nn.models.adapters import load_adapter
from brain_align.common.nn.models.causal_lm import load_causal_lm, load_tokenizer
from brain_align.common.policies import PolicyRegistry
from brain_align.common.schemas import PRIOR
from tests.integration.deploy.pipeline_runs import (
    FinishedRun,
    command,
    kill_tree,
    parts,
    run,
    started,
    wait_for,
)

pytestmark = pytest.mark.timeout(900)


def trained_groups(finished: FinishedRun) -> list[str]:
    return [group for row in finished.store().steps() for group in row["group_ids"]]


def policy_directory(finished: FinishedRun) -> str:
    import json

    world = json.loads((finished.directory / "run.json").read_text())["world"]
    return str(Path("build/worlds") / world / "policy")


def test_a_run_leaves_what_it_promises(uninterrupted: FinishedRun) -> None:
    summary = uninterrupted.summary()
    for side in ("before", "after"):
        figures = summary[side]
        assert 0 <= figures["train_rm_win_rate"] <= 100 and figures["train_rm_win_rate_ci95"] >= 0
        assert figures["prompts"] == 24 and figures["failed"] == 0
        assert 0 <= figures["truth_quality"] <= 1
    assert abs(summary["before"]["kl_to_prior"]) < 1e-4  # the proposal of version 0 is the prior
    assert {"prepare", "pipeline", "sampling", "scoring", "training", "total"} <= set(summary["seconds"])
    assert len(summary["config_digest"]) == 32
    assert "aligned (reward" in (uninterrupted.directory / "examples.md").read_text()
    page = (uninterrupted.directory / "report.html").read_text(encoding="utf-8")
    assert f"{summary['after']['mean_reward']:.3f}" in page and "The run has finished." in page
    assert 0 < summary["seconds"]["start"] < summary["seconds"]["pipeline"]
    assert list((uninterrupted.directory / "tensorboard").iterdir())
    for label in ("sampler-0", "scorer-reward-0", "scorer-prior-0", "scorer-truth-0", "learner-0", "brain"):
        assert (uninterrupted.directory / "logs" / f"{label}.log").exists()


def test_every_group_is_stored_scored_and_trained_exactly_once(uninterrupted: FinishedRun) -> None:
    store = uninterrupted.store()
    assert store.counts() == {"groups": 32, "scores": 64, "steps": 8}
    assert store.damaged == []
    assert sorted(trained_groups(uninterrupted)) == sorted(store.group_ids)
    rows = store.groups(list(store.group_ids)).to_pylist()
    assert all(row["proposal_version"] == row["round"] for row in rows)  # strict: Algorithm 1 to the letter
    assert all(len(row["outputs"]) == 8 for row in rows)
    assert [row["published_version"] for row in store.steps()] == [None] * 3 + [1] + [None] * 3 + [2]


def test_sampler_and_learner_agree_on_every_token(uninterrupted: FinishedRun) -> None:
    """vLLM's log-probabilities against the learner's forward pass on the same tokens: <= 1e-4 a token in float32."""
    store, registry = uninterrupted.store(), PolicyRegistry(uninterrupted.directory / "policies")
    worst, tokens = 0.0, 0
    for version in (0, 1):
        model = load_causal_lm(policy_directory(uninterrupted), "float32")
        logprobs = SequenceLogprobs(load_adapter(model, registry.verify(version).path))
        rows = store.groups(list(store.group_ids)).to_pylist()
        for row in [row for row in rows if row["proposal_version"] == version][:6]:
            ids = [output["token_ids"] for output in row["outputs"]]
            with torch.no_grad():
                ours = logprobs.token_logprobs([request_of(row["prompt_token_ids"], ids)])
            for output, mine in zip(row["outputs"], ours, strict=True):
                theirs = torch.tensor(output["token_logprobs"])
                worst = max(worst, float((theirs - mine).abs().max()))
                tokens += len(theirs)
    assert tokens > 500
    assert worst <= 1e-4
    gaps = [line["sampler_gap_max"] for line in uninterrupted.metrics() if "sampler_gap_max" in line]
    assert gaps and max(gaps) <= 1e-4


def test_prior_scores_are_the_prior_s_log_probabilities(uninterrupted: FinishedRun) -> None:
    """Version 0 is the prior, so what the sampler recorded for it must be what the prior scorer says."""
    store = uninterrupted.store()
    rows = store.groups(list(store.group_ids)).to_pylist()
    for row in (row for row in rows if row["proposal_version"] == 0):
        scored = store.scores([row["group_id"]], PRIOR)["values"][0].as_py()
        sampled = [sum(output["token_logprobs"]) for output in row["outputs"]]
        assert scored == pytest.approx(sampled, abs=1e-3)


def test_the_result_loads_as_a_peft_adapter_and_differs_from_the_prior(uninterrupted: FinishedRun) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(policy_directory(uninterrupted))
    tokenizer = load_tokenizer(policy_directory(uninterrupted))
    ids = torch.tensor([tokenizer.encode("SUBREDDIT: r/cats\nTITLE: a cat\nPOST: the cat sat.\nTL;DR:")])
    with torch.no_grad():
        before = base(ids).logits.clone()
        after = PeftModel.from_pretrained(base, uninterrupted.directory / "adapter")(ids).logits
    best = uninterrupted.summary()["best_version"]
    assert torch.equal(before, after) == (best == 0)


def test_the_terminal_stays_readable(uninterrupted: FinishedRun) -> None:
    lines = uninterrupted.output.splitlines()
    assert len(lines) < 60, uninterrupted.output
    for noise in ("WARNING", "INFO", "Traceback", "deepspeed", "kernels"):
        assert noise not in uninterrupted.output


def test_a_finished_run_only_shows_its_result(uninterrupted: FinishedRun) -> None:
    again = run(uninterrupted.directory)
    assert "finished" in again.output and "win rate vs. reference" in again.output


def test_a_run_directory_of_another_configuration_is_refused(uninterrupted: FinishedRun) -> None:
    import subprocess

    from tests.integration.deploy.pipeline_runs import ROOT, environment

    refused = subprocess.run(
        command(uninterrupted.directory, "learner.learning_rate=0.5"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert refused.returncode == 2
    assert "learner.learning_rate: 0.0015 there, 0.5 now" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_killed_twice_and_resumed_ends_with_the_same_bytes(uninterrupted: FinishedRun, tmp_path: Path) -> None:
    """SIGKILL of the whole process tree in the first round's sampling, then behind a checkpoint in mid-round.

    So groups in flight are sampled again, and then a step is trained again.
    """
    directory = tmp_path / "run"
    acknowledged = killed_when(lambda: parts(directory, "groups") >= 1, directory, tmp_path / "first.log")
    assert acknowledged and not trained_groups(FinishedRun(directory, ""))
    later = killed_when(lambda: parts(directory, "steps") >= 7, directory, tmp_path / "second.log")
    assert acknowledged <= later
    assert not (directory / "summary.json").exists()
    resumed = run(directory)
    assert set(resumed.store().group_ids) == set(uninterrupted.store().group_ids) >= later
    assert trained_groups(resumed) == trained_groups(uninterrupted)  # none lost, none twice, in the same order
    assert resumed.adapter_bytes() == uninterrupted.adapter_bytes()
    last = PolicyRegistry(directory / "policies").verify(2).digest
    assert last == PolicyRegistry(uninterrupted.directory / "policies").verify(2).digest


def killed_when(reached: Callable[[], bool], directory: Path, log: Path) -> set[str]:
    """Start the run, kill it at a moment, and return the groups that its store holds then."""
    with started(command(directory), log) as process:
        wait_for(reached, process, log)
        kill_tree(process.pid)
    return set(FinishedRun(directory, "").store().group_ids)
