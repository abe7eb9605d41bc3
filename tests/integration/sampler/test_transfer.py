"""Whole models that are sent to vLLM's real engine; and what it does when they do not arrive, or not as published."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from brain_align.common.errors import EngineLostError, UserError
from brain_align.common.nn.weight_link import Link
from brain_align.common.policies import PolicyRegistry
from brain_align.learner.publishing import weight_server
from brain_align.learner.publishing.weight_server import WeightServer
from brain_align.sampler.sampler import Sampler
from brain_align.sampler.weights.engine_weights import EngineWeights
from tests.integration.sampler.sampled_policies import (
    Policies,
    base_model,
    make_policies,
    outputs,
    probe_of,
    sampled,
    worst_gap,
)
from tests.unit.tiny_models import save

pytestmark = pytest.mark.timeout(600)

LOAD_LIMIT = 20.0


def started(policies: Policies) -> Sampler:
    return policies.sampler(
        full=True,
        policy={"model": str(policies.model), "dtype": "float32", "method": "full", "adapter": None},
        sampler={"delivery": "transfer"},
        timeouts={"load": LOAD_LIMIT},
    )


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@dataclass(frozen=True)
class World:
    policies: Policies
    server: WeightServer
    sampler: Sampler


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    policies = make_policies(tmp_path_factory.mktemp("transfer"))
    server = WeightServer(policies.registry, "127.0.0.1", 60)
    threading.Thread(target=server.serve, daemon=True).start()
    sampler = started(policies)
    yield World(policies, server, sampler)
    sampler.close()
    server.close()


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from files."""

    async def refuse(_weights: EngineWeights, directory: Path) -> None:
        raise AssertionError(f"{directory} was read")

    monkeypatch.setattr(EngineWeights, "load", refuse)
    monkeypatch.setattr(PolicyRegistry, "verify", refuse)


@pytest.mark.usefixtures("no_files")
def test_versions_that_are_sent_have_the_learner_s_log_probabilities(loop: asyncio.Runner, world: World) -> None:
    policies = world.policies
    models = {0: base_model(1), 1: base_model(5)}
    for version, model in models.items():
        policies.publish_whole(version, model, world.server.address)
    for version in (0, 1, 0):
        assert worst_gap(loop.run(sampled(world.sampler, policies.lease(version, alone=False))), models[version]) < 1e-4


def test_what_is_sampled_does_not_depend_on_how_the_weights_came(
    loop: asyncio.Runner, world: World, tmp_path: Path
) -> None:
    policies, sampler = world.policies, world.sampler
    for version in (2, 3):
        policies.publish_whole(version, base_model(version), world.server.address)
    from_files = Policies(policies.model, PolicyRegistry(tmp_path))
    from_files.publish_whole(2, base_model(2))  # without a server
    sent = loop.run(sampled(sampler, policies.lease(2, alone=True)))
    loop.run(sampled(sampler, policies.lease(3, alone=True)))
    read = loop.run(sampled(sampler, from_files.lease(2, alone=True)))
    assert outputs(sent) == outputs(read)


def alter(link: Link, path: Path, size: int, buffer) -> None:
    buffer[:size].zero_()
    link.send(buffer[:size])


def break_off(link: Link, path: Path, size: int, buffer) -> None:
    raise OSError("as if it had been killed")


def hang(link: Link, path: Path, size: int, buffer) -> None:
    time.sleep(LOAD_LIMIT)


@pytest.mark.parametrize(
    ("version", "fault", "why"),
    [
        (10, alter, "the received files have digest"),
        (11, break_off, "onnection"),
        (12, hang, "it took longer than 10 s"),
        (13, None, "Connection refused"),
        (14, None, "published without a weight server"),
    ],
)
def test_what_does_not_arrive_as_published_is_read_from_its_files(
    loop: asyncio.Runner,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    version: int,
    fault,
    why: str,
) -> None:
    if fault is not None:
        monkeypatch.setattr(weight_server, "_send_file", fault)
    address = {13: "127.0.0.1:9", 14: None}.get(version, world.server.address)
    model = base_model(version)
    world.policies.publish_whole(version, model, address)
    with caplog.at_level(logging.WARNING, "brain_align.sampler"):
        rows = loop.run(sampled(world.sampler, world.policies.lease(version, alone=False)))
    assert worst_gap(rows, model) < 1e-4
    said = [record.getMessage() for record in caplog.records if record.name == "brain_align.sampler.weights.delivery"]
    assert len(said) == 1
    assert said[0].startswith(f"sampler-0 takes proposal version {version} from its files, since phase `fetch` of its")
    assert why in said[0]


def wide(directory: Path) -> None:
    save(base_model(head=16), directory)


def incomplete(missing: str, directory: Path) -> None:
    save(base_model(), directory)
    tensors = load_file(directory / "model.safetensors")
    del tensors[f"{missing}.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


DOWN, KEYS = "model.layers.1.mlp.down_proj", "model.layers.1.self_attn.k_proj"


@pytest.mark.parametrize(
    ("version", "write", "why"),
    [
        (20, wide, ""),
        (21, partial(incomplete, DOWN), f"lacks weights of the model: {DOWN}.weight"),
        (22, partial(incomplete, KEYS), r"lacks weights of the model: model.layers.1.self_attn.qkv_proj \(\d+ of \d+ "),
    ],
)
def test_an_engine_that_was_sent_another_model_is_not_used_again(
    loop: asyncio.Runner, world: World, version: int, write: Callable[[Path], None], why: str
) -> None:
    policies = world.policies
    policies.registry.publish(version, version, write, probe_of(base_model()), world.server.address)
    other = started(policies)
    try:
        reason = rf"(?s)refuses .* {version} in phase `load`.*vLLM does not load the weights that it received.*{why}"
        with pytest.raises(UserError, match=reason):
            loop.run(sampled(other, policies.lease(version, alone=False)))
        with pytest.raises(EngineLostError, match="parts of several models"):
            other.heartbeat()
    finally:
        other.close()
