import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pyarrow as pa
import pytest

from brain_align.common.errors import PipelineError, UserError
from brain_align.common.requests import Prompt, SampleRequest
from brain_align.deploy.actors.pool import Pool, PoolSettings
from brain_align.deploy.conductor.sampling import Sampling
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.schedule.quarantine import Item
from tests.stand_ins import LocalSampler

PROMPTS = tuple(Prompt(f"p{number}", "text", (1,), None) for number in range(8))
IDS = tuple(f"g{number}" for number in range(8))
REQUEST = SampleRequest("train-0000-0000", "train", 0, 0, 2, 1, IDS, PROMPTS, "policies")


class Fragile(LocalSampler):
    """Dies of some prompts, whenever their turn comes, or so many times."""

    deaths: dict[str, int]
    seen: list[str]

    async def sample(self, prompt: Prompt) -> None:
        await asyncio.sleep(0)
        self.seen.append(prompt.prompt_id)
        if self.deaths.get(prompt.prompt_id, 0) > 0:
            self.deaths[prompt.prompt_id] -= 1
            self.kill()
            self._check()


class Record:
    """What came of a request."""

    def __init__(self) -> None:
        self.commits: list[list[str]] = []
        self.given_up: list[Item] = []
        self.seen: list[str] = []

    async def commit(self, _request: SampleRequest, groups: pa.RecordBatch) -> None:
        await asyncio.sleep(0)
        self.commits.append(groups["group_id"].to_pylist())

    @property
    def groups(self) -> list[str]:
        return sorted(group for commit in self.commits for group in commit)


def sample(folder: Path, deaths: dict[str, int], *, whole: bool, kind: type[LocalSampler] = Fragile) -> Record:
    record = Record()
    made = type("Made", (kind,), {"deaths": dict(deaths), "seen": record.seen})
    settings = PoolSettings(start=5, slots=1 if whole else 2, backoff=0.001)
    pool = Pool("sampler", 2, lambda name, _log: made(name), RunDirectory(folder).log, settings)
    subject = Sampling(pool, whole=whole, timeout=5, commit=record.commit, give_up=record.given_up.append)

    async def run() -> None:
        await pool.start()
        await subject.sample(REQUEST, await pool.acquire())

    asyncio.run(asyncio.wait_for(run(), 20))
    return record


def test_groups_are_committed_as_they_finish(tmp_path: Path) -> None:
    assert sample(tmp_path, {}, whole=False).commits == [[group] for group in IDS]


def test_in_strict_mode_a_lease_is_one_commit_in_its_order(tmp_path: Path) -> None:
    assert sample(tmp_path, {}, whole=True).commits == [list(IDS)]


def test_what_is_committed_when_a_sampler_dies_is_not_sampled_again(tmp_path: Path) -> None:
    record = sample(tmp_path, {"p3": 1}, whole=False)
    assert record.groups == list(IDS) and not record.given_up
    assert sorted(record.seen) == sorted([prompt.prompt_id for prompt in PROMPTS] + ["p3"])


def test_in_strict_mode_it_is_sampled_again_with_all_its_prompts(tmp_path: Path) -> None:
    record = sample(tmp_path, {"p3": 1}, whole=True)
    assert record.commits == [list(IDS)] and not record.given_up
    assert record.seen == ["p0", "p1", "p2", "p3", *(prompt.prompt_id for prompt in PROMPTS)]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("poison", [{"p5"}, {"p0", "p7"}])
def test_prompts_that_keep_killing_samplers_are_found_and_left_out(
    tmp_path: Path, whole: bool, poison: set[str]
) -> None:
    record = sample(tmp_path, dict.fromkeys(poison, 1000), whole=whole)
    rest = [group for group in IDS if group.replace("g", "p") not in poison]
    assert record.groups == rest
    assert len(record.commits) == (1 if whole else len(rest))
    assert {item.prompt_id for item in record.given_up} == poison
    item = record.given_up[0]
    assert (item.purpose, item.round, item.service) == ("train", 0, "sampler") and "was lost" in item.error


def test_a_prompt_is_not_left_out_for_samplers_that_die_by_chance(tmp_path: Path) -> None:
    record = sample(tmp_path, {"p1": 2, "p2": 2, "p6": 2}, whole=False)
    assert record.groups == list(IDS) and not record.given_up


class Silent(LocalSampler):
    async def generate(self, request: SampleRequest):
        async for groups in super().generate(request.without([IDS[2]])):
            yield groups


@pytest.mark.parametrize("whole", [False, True])
def test_a_sampler_that_leaves_out_a_group_ends_the_run(tmp_path: Path, whole: bool) -> None:
    with pytest.raises(PipelineError, match="left out 1 groups of request train-0000-0000"):
        sample(tmp_path, {}, whole=whole, kind=Silent)


class Mute(LocalSampler):
    async def generate(self, request: SampleRequest) -> AsyncGenerator[pa.RecordBatch]:
        for groups in tuple[pa.RecordBatch, ...]():
            yield groups


@pytest.mark.parametrize("whole", [False, True])
def test_a_sampler_that_gives_nothing_at_all_ends_the_run(tmp_path: Path, whole: bool) -> None:
    with pytest.raises(PipelineError, match="left out 8 groups of request train-0000-0000"):
        sample(tmp_path, {}, whole=whole, kind=Mute)


class Refusing(LocalSampler):
    async def sample(self, prompt: Prompt) -> None:
        raise UserError(f"prompt {prompt.prompt_id} is empty")


def test_what_the_user_must_put_right_ends_the_run_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prompt p0 is empty"):
        sample(tmp_path, {}, whole=False, kind=Refusing)


class Broken(Fragile):
    """Its engine fails, but its process lives on."""

    async def sample(self, prompt: Prompt) -> None:
        self.seen.append(prompt.prompt_id)
        if self.deaths.get(prompt.prompt_id, 0) > 0:
            self.deaths[prompt.prompt_id] -= 1
            raise PipelineError("engine dead")


def test_a_sampler_whose_engine_fails_is_started_again(tmp_path: Path) -> None:
    record = sample(tmp_path, {"p4": 1}, whole=False, kind=Broken)
    assert record.groups == list(IDS) and not record.given_up
