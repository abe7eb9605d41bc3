"""An actor whose engine is lost ends itself, unless the engine can run nothing at all: that the user must mend."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from brain_align.common.errors import EngineLostError, EngineUnfitError, UserError
from brain_align.common.policies import ProposalModel
from brain_align.common.requests import SampleRequest
from brain_align.sampler import service
from brain_align.sampler.service import SamplerActor
from tests.unit.factories import recipe_settings

FATAL = "(EngineCore pid=7) ERROR 11-28 22:39:01 [core.py:900] "


class Ended(Exception):
    """In place of the end of the process."""


class Lost:
    """A sampler whose engine writes a log and dies."""

    def __init__(self, log: Path, text: str, error: EngineLostError) -> None:
        self._log, self._text, self._error = log, text, error

    async def generate(self, _request: SampleRequest) -> AsyncIterator[Any]:
        with open(self._log, "a", encoding="utf-8") as file:
            file.write(self._text)
        raise self._error
        yield


def generate(log: Path, text: str, error: EngineLostError, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(_status: int) -> None:
        raise Ended

    monkeypatch.setattr(service, "redirect_output", lambda _path: None)
    monkeypatch.setattr(service.os, "_exit", end)
    log.write_text("RuntimeError: of an earlier process\n")
    actor = SamplerActor("sampler-0", recipe_settings(), ProposalModel("org/model", None), str(log))
    actor._sampler = cast(Any, Lost(log, text, error))

    async def scene() -> None:
        async for _ in actor.generate(cast(Any, None)):
            pass

    asyncio.run(scene())


def test_an_engine_that_cannot_run_the_model_is_the_user_s_to_mend(tmp_path: Path, monkeypatch) -> None:
    text = f"{FATAL}RuntimeError: Unsupported CPU attention configuration: head_dim=16\n"
    with pytest.raises(UserError) as refused:
        generate(tmp_path / "log", text, EngineUnfitError("it died"), monkeypatch)
    assert str(refused.value).startswith(
        "vLLM's engine started with policy.model=org/model, but died when it first computed with it: RuntimeError: "
        "Unsupported CPU attention configuration: head_dim=16. It cannot run this model here"
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", EngineUnfitError("killed: nothing is in its log")),
        (f"{FATAL}torch.OutOfMemoryError: CUDA out of memory.\n", EngineUnfitError("the moment is to blame")),
        (f"{FATAL}RuntimeError: a prompt is to blame\n", EngineLostError("later")),
    ],
)
def test_whatever_may_pass_or_comes_later_ends_the_actor(tmp_path: Path, monkeypatch, text: str, error: Any) -> None:
    with pytest.raises(Ended):
        generate(tmp_path / "log", text, error, monkeypatch)
