import asyncio
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from brain_align.common.config.run import TimeoutsSection
from brain_align.common.errors import PipelineError, UserError
from brain_align.deploy.actors import pool as pools
from brain_align.deploy.actors.replica import State
from brain_align.deploy.services import room, services
from brain_align.deploy.services.room import Node, check_each_fits, shortage
from brain_align.deploy.services.services import LearnerGroup
from tests.stand_ins import LocalActor

SMALL = Node("n1 (10.0.0.1)", {"CPU": 8, "memory": 1e9}, {"CPU": 8})
LARGE = Node("n2 (10.0.0.2)", {"CPU": 16, "GPU": 4}, {"CPU": 2, "GPU": 1})


def request(cpus: float, gpus: float) -> SimpleNamespace:
    return SimpleNamespace(cpus=cpus, gpus=gpus)


@pytest.fixture(autouse=True)
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "nodes", lambda: [LARGE, SMALL])
    monkeypatch.setattr(room, "can_grow", lambda: False)


def test_an_actor_that_no_node_can_hold_is_refused_with_its_request_and_the_largest_node() -> None:
    check_each_fits({"sampler": request(16, 4), "prior": request(8, 0), "learner": request(0, 0)})
    expected = (
        "No node of the Ray cluster can hold one actor of learner: learner reserves 1 CPU and 5 GPU, and the largest, "
        "n2 (10.0.0.2), has 16 CPU and 4 GPU; lower its cpus or gpus, or add larger nodes."
    )
    with pytest.raises(UserError) as refused:
        check_each_fits({"sampler": request(16, 4), "learner": request(1, 5)})
    assert str(refused.value) == expected


def test_the_largest_node_is_the_one_with_most_of_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    head = Node("n0 (10.0.0.0)", {"CPU": 1, "GPU": 1}, {"CPU": 0.5})
    full = Node("n1 (10.0.0.1)", {"CPU": 8}, {"CPU": 1})
    monkeypatch.setattr(room, "nodes", lambda: [head, full])
    assert "the largest node has 8 CPU, and most is free on n1 (10.0.0.1): 1 CPU." in shortage(request(2, 0))
    assert shortage(request(9, 0)).endswith("the largest, n1 (10.0.0.1), has 8 CPU")
    assert shortage(request(0.5, 2)).endswith("the largest, n0 (10.0.0.0), has 1 CPU and 1 GPU")
    with pytest.raises(UserError, match="the largest, n1"):
        check_each_fits({"sampler": request(9, 0)})


def test_a_cluster_that_adds_nodes_by_itself_is_given_the_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "can_grow", lambda: True)
    check_each_fits({"learner": request(1, 5)})


def test_who_waits_hears_what_is_asked_for_and_what_is_free() -> None:
    assert shortage(request(1, 2)) == (
        "it reserves 1 CPU and 2 GPU on one node; the largest node has 16 CPU and 4 GPU, and most is free on "
        "n2 (10.0.0.2): 2 CPU and 1 GPU. Others hold the rest"
    )
    assert shortage(request(1, 1)) == "there is some for it on n2 (10.0.0.2), so its process is probably just starting"
    assert shortage(request(1, 5)).endswith("on one node, and the largest, n2 (10.0.0.2), has 16 CPU and 4 GPU")


class Unplaced(LocalActor):
    async def placed(self) -> None:
        await self.work(60)


def test_a_learner_that_finds_no_room_says_so_soon_and_ends_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "WAITS_SILENTLY", 0.02)
    assert pools.WAITS_SILENTLY < 20
    timeouts = TimeoutsSection(start=0.2)
    learner = LearnerGroup(2, lambda _rank, _log: Unplaced(), tmp_path.joinpath, timeouts, lambda: "it asks for much")
    learner.tell = told = Mock()
    with pytest.raises(PipelineError, match=r"learner-0, learner-1 found no room .* within 0\.2.* s: it asks for much"):
        asyncio.run(learner.start())
    told.assert_called_once_with("learner-0, learner-1 waits for room in the cluster: it asks for much.")
    assert learner.state is State.WAITING
