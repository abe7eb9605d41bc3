"""Ray may start while other work goes on; without Ray itself."""

import threading
from collections.abc import Iterator

import pytest
import ray

from brain_align.common.config.run import RaySection
from brain_align.common.errors import UserError
from brain_align.deploy.services.ray_start import RayStart


class FakeRay:
    """Stands in for Ray: it starts when it is let, and remembers what was asked of it."""

    def __init__(self) -> None:
        self.may_start = threading.Event()
        self.asked: list[dict[str, object]] = []
        self.shut_down = threading.Event()
        self.error: Exception | None = None

    def init(self, **options: object) -> None:
        self.may_start.wait(10)
        self.asked.append(options)
        if self.error is not None:
            raise self.error

    def shutdown(self) -> None:
        self.shut_down.set()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRay]:
    fake = FakeRay()
    monkeypatch.setattr(ray, "init", fake.init)
    monkeypatch.setattr(ray, "shutdown", fake.shutdown)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield fake
    fake.may_start.set()


def start(**settings: object) -> RayStart:
    return RayStart(RaySection.model_validate(settings), {"CPU": 1.8})


def test_a_cluster_that_started_ahead_is_waited_for_and_ends_with_its_run(fake: FakeRay) -> None:
    subject = start(num_cpus=3)
    subject.ahead()
    assert not fake.asked  # the caller goes on at once
    fake.may_start.set()
    subject.wait()
    subject.wait()  # a run that starts its services again
    assert [options["num_cpus"] for options in fake.asked] == [3]
    assert not fake.shut_down.is_set()
    subject.end()
    assert fake.shut_down.is_set()


def test_a_run_that_is_refused_meanwhile_does_not_wait_for_ray(fake: FakeRay) -> None:
    subject = start()
    subject.ahead()
    subject.end()  # returns although Ray is still starting
    assert not fake.shut_down.is_set()
    fake.may_start.set()
    assert fake.shut_down.wait(10)


def test_an_error_of_the_start_is_raised_where_it_is_waited_for(fake: FakeRay) -> None:
    fake.error = RuntimeError("no memory for the object store")
    fake.may_start.set()
    subject = start()
    subject.ahead()
    with pytest.raises(UserError, match=r"Cannot start .* \(a local one\): no memory for the object store"):
        subject.wait()
    subject.end()


def test_a_cluster_that_is_there_already_is_only_connected_to_when_it_is_needed(fake: FakeRay) -> None:
    fake.may_start.set()
    subject = start(address="auto")
    subject.ahead()
    assert not fake.asked
    subject.wait()
    assert [options["address"] for options in fake.asked] == ["auto"]
    subject.end()
    assert fake.shut_down.is_set()
