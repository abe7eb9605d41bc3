"""The faults, one after the other, each while the run is at work with all its replicas."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.cluster import LEARNER, SAMPLER, SCORER, Cluster, until
from tests.chaos.command import Command
from tests.chaos.machines import ChaosError, Machines
from tests.chaos.outside import ObjectService, RewardService

TOKEN_SECONDS, SERVICE_SECONDS, NETWORK_SECONDS = 20.0, 20.0, 25.0
STEPS_BETWEEN = 3
_PACE, _SLOW_PACE = 0.3, 4.0  # seconds per answer of the reward service


@dataclass
class Scene:
    """Everything that takes part, and what has happened so far."""

    machines: Machines
    cluster: Cluster
    run: Command
    objects: ObjectService
    rewards: RewardService
    steps: int  # of the whole run
    limit: float
    planned: int  # faults
    record: list[dict[str, Any]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # processes that outlived what they belong to

    def settle(self) -> None:
        """Wait until the run is whole and has trained some steps since the last fault."""
        target = self.run.steps() + STEPS_BETWEEN
        self.run.until("all replicas are ready", lambda: self.paced() and self.run.whole())
        self.run.until(f"step {target} is recorded", lambda: self.paced() >= target)

    def paced(self) -> int:
        """Return the steps so far, and keep the run from ending before all faults have happened."""
        steps = self.run.steps()
        budget = (len(self.record) + 1) * self.steps / (self.planned + 1)
        self.rewards.pace = _PACE if steps < budget - STEPS_BETWEEN else _SLOW_PACE
        return steps

    def trains_again(self, since: float, fault: dict[str, Any]) -> None:
        """Wait until all stages work again, and note after how many seconds."""
        self.run.until("a group sampled after the fault is trained", lambda: self.run.trained_since(since))
        fault["seconds_to_training"] = round(time.time() - since, 1)

    def whole_again(self, since: float, fault: dict[str, Any]) -> None:
        """Wait until no replica is missing, and note after how many seconds."""
        self.run.until("all replicas are ready again", lambda: self.paced() and self.run.whole())
        fault["seconds_to_all_replicas"] = round(time.time() - since, 1)

    def back(self, since: float, fault: dict[str, Any]) -> None:
        """Wait until the run is as it was before the fault."""
        self.trains_again(since, fault)
        self.whole_again(since, fault)

    @contextmanager
    def fault(self, name: str, what: str) -> Iterator[dict[str, Any]]:
        """One fault: what the block notes is kept, and shown when it is over."""
        entry: dict[str, Any] = {"fault": name, "what": what, "at_step": self.run.steps()}
        say(f"{name}: {what}, after step {entry['at_step']}")
        yield entry
        entry["back_at_step"] = self.run.steps()
        self.record.append(entry)
        seconds = {key: value for key, value in entry.items() if key.startswith("seconds")}
        say(f"  over, at step {entry['back_at_step']}: {seconds}")


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def power_cut_of_a_worker(scene: Scene) -> None:
    """A machine with a sampler and a scorer loses power, and is started again once the run has noticed."""
    cluster = scene.cluster
    victim = chosen(cluster, SAMPLER, SCORER)
    with scene.fault("power cut of a worker", f"{victim} with {hosted(scene, victim)}") as entry:
        since = time.time()
        cluster.power_cut(victim)
        scene.run.until(
            "the loss of its replicas is noticed", lambda: scene.paced() is not None and not scene.run.whole()
        )
        entry["seconds_to_noticing"] = round(time.time() - since, 1)
        cluster.reboot(victim)
        scene.back(since, entry)


def token_expires(scene: Scene) -> None:
    """S3 answers ExpiredToken for a while."""
    with scene.fault("S3 token expired", f"for {TOKEN_SECONDS:.0f} s") as entry:
        scene.objects.expired.set()
        try:
            time.sleep(TOKEN_SECONDS)
        finally:
            scene.objects.expired.clear()
        scene.back(time.time(), entry)
        entry["seconds_down"] = TOKEN_SECONDS


def reward_service_away(scene: Scene) -> None:
    """The reward service refuses connections, then answers 503, and comes back."""
    rewards = scene.rewards
    with scene.fault("reward service away", f"for {SERVICE_SECONDS:.0f} s: refused, then 503") as entry:
        rewards.go_away()
        try:
            time.sleep(SERVICE_SECONDS / 2)
        finally:
            rewards.answer_503()
        refused = rewards.refused
        time.sleep(SERVICE_SECONDS / 2)
        rewards.come_back()
        entry["requests_answered_503"] = rewards.refused - refused
        entry["seconds_down"] = SERVICE_SECONDS
        scene.back(time.time(), entry)


def network_cut_of_a_worker(scene: Scene) -> None:
    """A machine with scorers loses its network for a while; its processes live on."""
    victim = chosen(scene.cluster, SCORER)
    what = f"{victim} with {hosted(scene, victim)}, for {NETWORK_SECONDS:.0f} s"
    with scene.fault("network cut of a worker", what) as entry:
        scene.machines.cut(victim)
        try:
            time.sleep(NETWORK_SECONDS)
        finally:
            scene.machines.mend(victim)
        entry["seconds_down"] = NETWORK_SECONDS
        scene.back(time.time(), entry)


def job_stop(scene: Scene) -> None:
    """SIGTERM to `brain run`, which must leave nothing behind; then it is resumed."""
    with scene.fault("SIGTERM and resume", f"on {scene.cluster.head}") as entry:
        since = time.time()
        entry["exit"] = scene.run.terminate()
        entry["seconds_to_end"] = round(time.time() - since, 1)
        entry["last_words"] = scene.run.last_words()
        expect_no_services(scene, "SIGTERM")
        entry["refusals"] = scene.run.resume(scene.cluster, scene.cluster.head)
        scene.back(since, entry)


def power_cut_of_the_head(scene: Scene) -> None:
    """The machine of head, driver and learner is gone for good; the run is resumed in a new cluster of the others."""
    cluster = scene.cluster
    with scene.fault("power cut of the head", f"{cluster.head} with driver and learner") as entry:
        since = time.time()
        others = cluster.workers
        cluster.power_cut(cluster.head)
        scene.run.wait_for_end()
        for name in others:
            cluster.stop_ray(name)
        expect_no_services(scene, "the head's power cut")
        cluster.start_head(others[0], works=True)
        cluster.join(*others[1:])
        entry["seconds_to_new_cluster"] = round(time.time() - since, 1)
        entry["refusals"] = scene.run.resume(cluster, cluster.head)
        scene.back(since, entry)


def kill_of_the_learner(scene: Scene) -> None:
    """kill -9 of the learner ends the run, which is resumed."""
    with scene.fault("kill -9 of the learner", f"on {scene.cluster.head}") as entry:
        since = time.time()
        for process in scene.machines.processes(scene.cluster.head, LEARNER):
            process.kill()
        entry["exit"] = scene.run.wait_for_end()
        if entry["exit"] == 0:
            raise ChaosError(f"The run ended with 0 after its learner was killed: {scene.run.last_words()}")
        entry["last_words"] = scene.run.last_words()
        expect_no_services(scene, "the learner's end")
        entry["refusals"] = scene.run.resume(scene.cluster, scene.cluster.head)
        scene.back(since, entry)


FAULTS: tuple[Callable[[Scene], None], ...] = (
    power_cut_of_a_worker,
    token_expires,
    reward_service_away,
    network_cut_of_a_worker,
    job_stop,
    power_cut_of_the_head,
    kill_of_the_learner,
)


def chosen(cluster: Cluster, *titles: str) -> str:
    victim = cluster.worker_with(*titles)
    if victim is None:
        raise ChaosError(f"No worker has {' and '.join(titles)}; the run is not spread over the machines.")
    return victim


def hosted(scene: Scene, name: str) -> str:
    counts = {title: len(scene.machines.titles(name, title)) for title in (SAMPLER, SCORER)}
    return ", ".join(f"{count} {title.removeprefix('ray::')}" for title, count in counts.items() if count)


def expect_no_services(scene: Scene, after: str) -> None:
    """Note what still runs on the cluster's machines a minute after the run's end."""
    try:
        until("all services of the run have ended", lambda: not scene.cluster.services(), 60)
    except ChaosError:
        scene.left += [f"{title} after {after}" for title in scene.cluster.services()]
        say(f"  still there a minute after {after}: {scene.left}")
