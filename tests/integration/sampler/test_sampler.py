"""The sampler on vLLM's real engine: its versions, what it guarantees, and what it refuses."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from brain_align.common.config.sampling import SamplingSection
from brain_align.common.errors import EngineLostError, UserError
from brain_align.common.policies import PolicyRegistry
from brain_align.sampler.engine.engine import Engine
from brain_align.sampler.engine.settings import EngineSettings
from brain_align.sampler.sampler import Sampler
from tests.integration.deploy.pipeline_runs import ROOT, environment
from tests.integration.sampler.sampled_policies import (
    EOS_ID,
    TOKENIZER,
    VOCABULARY,
    Policies,
    base_model,
    make_policies,
    outputs,
    sampled,
    worst_gap,
)
from tests.unit.tiny_models import save

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Policies:
    made = make_policies(tmp_path_factory.mktemp("sampler"))
    for version in range(4):
        made.publish(version, made.adapted(version))
    return made


@pytest.fixture(scope="module")
def sampler(policies: Policies) -> Iterator[Sampler]:
    """Samples from adapters, three of which it holds at once."""
    started = policies.sampler(algorithm={"max_staleness": 1})
    yield started
    started.close()


def test_versions_are_sampled_side_by_side_each_with_its_own_log_probabilities(
    loop: asyncio.Runner, policies: Policies, sampler: Sampler
) -> None:
    async def side_by_side():
        leases = [policies.lease(version, alone=False, seed=seed) for seed in range(2) for version in range(3)]
        return await asyncio.gather(*(sampled(sampler, lease) for lease in leases))

    for version, rows in zip([0, 1, 2] * 2, loop.run(side_by_side()), strict=True):
        assert {row["proposal_version"] for row in rows} == {version}
        assert {row["proposal_digest"] for row in rows} == {policies.registry.get(version).digest}
        assert worst_gap(rows, policies.adapted(version)) < 1e-4
        for output in (output for row in rows for output in row["outputs"]):
            ended = output["token_ids"][-1] == EOS_ID
            assert output["finish_reason"] == ("stop" if ended else "length")
            assert ended or len(output["token_ids"]) == 16
    fourth = loop.run(sampled(sampler, policies.lease(3, alone=False)))  # the longest unused one made room
    assert worst_gap(fourth, policies.adapted(3)) < 1e-4
    assert worst_gap(loop.run(sampled(sampler, policies.lease(0, alone=False))), policies.adapted(0)) < 1e-4


def test_groups_are_handed_out_as_they_are_finished(loop: asyncio.Runner, policies: Policies, sampler: Sampler) -> None:
    async def first_then_pulse():
        lease = policies.lease(1, alone=False, prompts=[[5 + place] * 8 for place in range(24)])
        groups = sampler.generate(lease)
        before = sampler.heartbeat()
        first = await anext(groups)
        during = sampler.heartbeat()
        await groups.aclose()  # what is still running is given up
        return before, first, during

    before, first, during = loop.run(first_then_pulse())
    assert first.num_rows == 1
    assert during.running + during.waiting == 4 * 23
    assert during.outputs - before.outputs == 4
    assert during.tokens - before.tokens == sum(len(one["token_ids"]) for one in first["outputs"][0].as_py())
    assert during.idle_seconds < 5
    assert sampler.heartbeat().running == 0


def test_a_lease_that_is_sampled_alone_yields_the_same_bytes_whatever_was_before_and_in_any_sampler(
    loop: asyncio.Runner, policies: Policies, sampler: Sampler, tmp_path: Path
) -> None:
    lease = policies.lease(1, alone=True, seed=7)

    async def between_others():
        rest = [policies.lease(version, alone=False, seed=version) for version in (0, 2, 3)]
        first = await sampled(sampler, lease)
        again, *_ = await asyncio.gather(sampled(sampler, lease), *(sampled(sampler, other) for other in rest))
        other_seed = await sampled(sampler, policies.lease(1, alone=True, seed=8))
        return first, again, other_seed

    first, again, other_seed = loop.run(between_others())
    assert outputs(first) == outputs(again)
    assert outputs(first) != outputs(other_seed)
    elsewhere = json.loads(sampled_elsewhere(policies, tmp_path))
    assert outputs(first) == elsewhere


def sampled_elsewhere(policies: Policies, directory: Path) -> str:
    """The same lease's outputs from another process; which is then killed, and must leave no engine behind."""
    script = Path(__file__).with_name("sampler_process.py")
    log, result = directory / "log", directory / "outputs.json"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [sys.executable, str(script), str(policies.model), str(policies.registry.root), str(result)],
            cwd=ROOT,
            stdout=out,
            stderr=out,
            env=environment() | {"PYTHONPATH": str(ROOT)},
        )
    deadline = time.monotonic() + 300
    while not result.exists():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    engine = [child for child in psutil.Process(process.pid).children(recursive=True) if child.memory_info().rss > 5e8]
    assert engine
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(engine, timeout=20)
    assert not alive, f"{alive} survived their sampler"
    return result.read_text()


def test_a_version_that_cannot_be_loaded_is_refused_and_the_others_go_on(
    loop: asyncio.Runner, policies: Policies, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brain_align.sampler.weights.versions.VISIBLE_WITHIN", 1.0)
    before = loop.run(sampled(sampler, policies.lease(1, alone=True)))
    damaged = policies.publish(10, policies.adapted(10))
    weights = damaged.path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"torn")
    refuse(loop, sampler, policies, 10, r"sampler-0 refuses .* 10 in phase `verify` \(it keeps: .*damaged")
    policies.publish(11, policies.adapted(11, rank=32))
    refuse(loop, sampler, policies, 11, "in phase `load`.*LoRA rank 32 is greater than max_lora_rank 8")
    wide = Policies(policies.model.parent / "wide", policies.registry)
    save(base_model(head=64), wide.model)
    policies.publish(12, wide.adapted(12))
    refuse(loop, sampler, policies, 12, "in phase `load`.*vLLM does not load the adapter")
    policies.publish(13, policies.adapted(13), probed=policies.adapted(14))
    refuse(loop, sampler, policies, 13, r"in phase `probe`.* nats, the learner gave it .* 0\.001 are allowed")
    refuse(loop, sampler, policies, 99, "version 99 .* never published")
    assert outputs(loop.run(sampled(sampler, policies.lease(1, alone=True)))) == outputs(before)


def refuse(loop: asyncio.Runner, sampler: Sampler, policies: Policies, version: int, why: str) -> None:
    with pytest.raises(UserError, match=f"(?s){why}"):
        loop.run(sampled(sampler, policies.lease(version, alone=False)))


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ([], "Prompt p1 of request lease is empty"),
        ([5] * 33, "Prompt p1 of request lease has 33 tokens.* room for 32"),
        ([5, VOCABULARY], f"token id {VOCABULARY}, but the model's vocabulary ends at {EOS_ID}"),
        ([-1], "token id -1"),
    ],
)
def test_a_prompt_that_cannot_be_sampled_for_is_named(
    loop: asyncio.Runner, policies: Policies, sampler: Sampler, prompt: list[int], why: str
) -> None:
    with pytest.raises(UserError, match=why):
        loop.run(sampled(sampler, policies.lease(1, alone=False, prompts=[[5], prompt])))


def test_whole_models_take_turns_and_truncated_sampling_is_accounted_for(
    loop: asyncio.Runner, policies: Policies, tmp_path: Path
) -> None:
    whole = make_policies(tmp_path)
    models = [base_model(seed) for seed in (1, 5)]
    for version, model in enumerate(models):
        whole.publish_whole(version, model)
    sampling = {"n": 4, "max_tokens": 16, "top_k": 2, "stop": ["e"], "allow_truncated_support": True}
    started = whole.sampler(full=True, algorithm={"max_staleness": 1}, sampling=sampling)

    async def in_turns():
        return await asyncio.gather(*(sampled(started, whole.lease(version, alone=False)) for version in (0, 1, 0, 1)))

    async def lose_the_engine():
        under_way = asyncio.create_task(sampled(started, whole.lease(0, alone=False, prompts=[[5] * 9] * 64)))
        await asyncio.sleep(0.05)
        engines = [
            child
            for child in psutil.Process().children()
            if "EngineCore" in child.name() or "EngineCore" in " ".join(child.cmdline())
        ]
        max(engines, key=lambda child: child.create_time()).kill()  # numbers of processes wrap around
        await under_way

    try:
        for version, rows in zip((0, 1, 0, 1), loop.run(in_turns()), strict=True):
            assert_truncated(rows, models[version])
        with pytest.raises(EngineLostError):
            loop.run(lose_the_engine())
        with pytest.raises(EngineLostError):
            started.heartbeat()
    finally:
        started.close()


def test_adapters_that_are_merged_are_sampled_exactly_and_leave_nothing_behind(
    loop: asyncio.Runner, policies: Policies, tmp_path: Path
) -> None:
    own = Policies(policies.model, PolicyRegistry(tmp_path))
    adapted = [own.adapted(0), own.adapted(1, rank=16), own.adapted(2, rslora=True)]
    for version, model in enumerate(adapted):
        own.publish(version, model)
    started = own.sampler(merged=True, algorithm={"max_staleness": 1})

    async def in_turns():
        return await asyncio.gather(*(sampled(started, own.lease(version, alone=False)) for version in (0, 1, 2, 0)))

    try:
        for version, rows in zip((0, 1, 2, 0), loop.run(in_turns()), strict=True):
            assert {row["proposal_digest"] for row in rows} == {own.registry.get(version).digest}
            assert worst_gap(rows, adapted[version]) < 1e-4
        first, _, again = (loop.run(sampled(started, own.lease(version, alone=True))) for version in (1, 2, 1))
        assert outputs(first) == outputs(again)
        wide = Policies(tmp_path / "wide", own.registry)
        save(base_model(head=64), wide.model)
        own.publish(3, wide.adapted(3))
        refuse(loop, started, own, 3, r"in phase `load`.*weights have the shape \[")
    finally:
        started.close()


def test_an_engine_whose_weights_were_half_replaced_is_not_used_again(loop: asyncio.Runner, tmp_path: Path) -> None:
    """vLLM would refuse the next version too, since it keeps what it had of this one."""
    whole = make_policies(tmp_path)
    whole.publish_whole(0, base_model())
    whole.publish_whole(1, base_model(head=16))
    started = whole.sampler(full=True)
    try:
        refuse(loop, started, whole, 1, r"refuses .* 1 in phase `load`.*vLLM does not load the weights")
        with pytest.raises(EngineLostError, match="parts of several models"):
            loop.run(sampled(started, whole.lease(0, alone=False)))
        with pytest.raises(EngineLostError):
            started.heartbeat()
    finally:
        started.close()


def test_a_probe_goes_before_outputs_that_wait(loop: asyncio.Runner, policies: Policies) -> None:
    settings = EngineSettings(
        model=str(policies.model), dtype="float32", adapter_rank=None, adapters=1, receives=False, merges=False,
        max_model_tokens=64, tensor_parallel=1, repeatable=False, threads=1, kv_cache_gib=1, extra={"max_num_seqs": 2},
    )  # fmt: skip
    engine = Engine(settings)
    finished: list[int] = []

    async def flood() -> None:
        prompts, sampling = [[5 + place] * 8 for place in range(16)], SamplingSection(n=4, max_tokens=16)
        async for place, _ in engine.sample(prompts, sampling, n=4, end_tokens=[EOS_ID], adapter=None, seed=None):
            finished.append(place)

    async def probe_meanwhile() -> int:
        flooding = asyncio.create_task(flood())
        while not finished:
            await asyncio.sleep(0.001)
        assert len(await engine.continuation_logprobs([5, 6], [7, 8, 9], None)) == 3
        seen = len(finished)
        await flooding
        return seen

    try:
        assert loop.run(probe_meanwhile()) < 8
        assert len(finished) == 16
    finally:
        engine.close()


def assert_truncated(rows: list[dict], model) -> None:
    """Every token is one of the two likeliest, with its share of their probability; outputs end at their first "e"."""
    for row in rows:
        prompt = row["prompt_token_ids"]
        for output in row["outputs"]:
            ids = output["token_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
            top, which = logits.topk(2)
            ours = torch.where(which == torch.tensor(ids)[:, None], top.log_softmax(-1), -torch.inf).amax(-1)
            assert torch.allclose(ours, torch.tensor(output["token_logprobs"]), atol=1e-4)
            assert output["text"] == TOKENIZER.decode(ids, skip_special_tokens=True)
            assert "e" not in TOKENIZER.decode(ids[:-1], skip_special_tokens=True)
            assert ("e" in output["text"] or ids[-1] == EOS_ID) == (output["finish_reason"] == "stop")
