"""Ray's texts about lost actors, as Ray 2.60 writes them, and what is made of them."""

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayActorError

from brain_align.deploy.actors import ray_causes
from brain_align.deploy.actors.ray_causes import cause

HEAD = """The actor died unexpectedly before finishing this task.
\tclass_name: A
\tactor_id: 34127f8a54379e48ba7110bc02000000
\tpid: 31979
\tnamespace: 79a1010d-7870-4d77-9d3f-553e78948fa2
\tip: 10.0.0.7
"""
KILLED = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was "
    "killed by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed"
)
EXITED = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "exits unexpectedly. Worker exits with an exit code 3."
)
NODE = (
    "The actor died because its node has died. Node Id: 76070f71df3a. the actor's node was terminated unexpectedly: "
    "health check failed due to missing too many heartbeats"
)
MEMORY = "Task was killed due to the node running low on memory.\nMemory on the node (IP: 10.0.0.7, ID: 76) where"
CREATION = "The actor died because of an error raised in its creation task, ray::B.__init__()\nRuntimeError: init broke"


class Told(ActorDiedError):
    """One of Ray's errors with a text that Ray makes from what its server says."""

    def __init__(self, text: str) -> None:
        RayActorError.__init__(self)
        self.text = text

    def __str__(self) -> str:
        return self.text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            Told(HEAD + KILLED),
            "its process was killed by SIGKILL (kill -9, or the kernel when memory ran out) or crashed, on node ",
        ),
        (Told(HEAD + EXITED), "its process ended with exit code 3, on node n7 (10.0.0.7); Told"),
        (Told(HEAD + NODE), "its node died or was cut off, on node n7 (10.0.0.7); Told"),
        (Told(HEAD + "The actor is dead because it was killed by `ray.kill`."), "it was ended, on node n7 (10.0.0.7)"),
        (Told(CREATION), "it could not be created: RuntimeError: init broke; Told"),
        (Told("Something new.\nDetails"), "Something new.; Told"),
        (OutOfMemoryError(MEMORY), "Ray ended it, because its node ran out of memory, on node n7 (10.0.0.7); OutOf"),
        (
            ActorUnavailableError("RpcError: Socket closed", b"1" * 16),
            "its process or its node cannot be reached; Actor",
        ),
    ],
)
def test_the_cause_and_the_node_are_told(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"NodeManagerAddress": "10.0.0.7", "NodeManagerHostname": "n7"}
    monkeypatch.setattr(ray_causes.ray, "nodes", lambda: [node])
    assert cause(error).startswith(said)


def test_a_cluster_that_does_not_answer_leaves_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> list[dict[str, str]]:
        raise ConnectionError

    monkeypatch.setattr(ray_causes.ray, "nodes", gone)
    assert cause(Told(HEAD + EXITED)) == "its process ended with exit code 3, on node 10.0.0.7; Told"
