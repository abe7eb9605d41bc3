"""What an evaluation asks of its store, and how it fills it."""

import asyncio
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from brain_align.common.config.recipe import Recipe
from brain_align.common.durable import write_file
from brain_align.common.errors import UserError
from brain_align.common.policies import PolicyRegistry
from brain_align.common.requests import Prompt
from brain_align.common.schemas import GROUPS, batch_from_rows
from brain_align.common.store.commit_queue import CommitQueue
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.actors.pool import Pool, PoolSettings
from brain_align.deploy.conductor.group_scorer import scorers_at_work
from brain_align.deploy.evaluate.candidates import Candidate
from brain_align.deploy.evaluate.generation import Generation
from brain_align.deploy.evaluate.outcomes import measures_of, read_outcome, write_rows
from brain_align.deploy.evaluate.output import EvaluationDirectory, check_directory, save_recipe
from brain_align.deploy.evaluate.plan import lacking, make_series
from brain_align.deploy.evaluate.prompts import chosen, refuse_trained_on
from brain_align.deploy.evaluate.report import Opponent, document, short_names, tables
from brain_align.deploy.run.directory import RunDirectory
from tests.stand_ins import LocalActor, LocalSampler
from tests.unit.factories import PROBE, group, output, recipe_settings, scores
from tests.unit.stored_runs import stored_run

PROMPTS = [Prompt(f"p{number}", f"prompt {number}", (1, number), f"gold {number}") for number in range(300)]
NAMES = ["prior", "reward"]


class OneOutput(LocalSampler):
    """Samples one output for each prompt, with its number in it; `limit` requests, then it fails for good."""

    sampled: list[str]
    limit: int

    async def generate(self, request):
        if len(self.sampled) >= self.limit:
            raise UserError("enough")
        for group_id, prompt in zip(request.group_ids, request.prompts, strict=True):
            self.sampled.append(group_id)
            text = f"answer {prompt.prompt_id[1:]} of version {request.version}"
            rows = [
                group(
                    group_id,
                    prompt_id=prompt.prompt_id,
                    prompt_text=prompt.text,
                    gold_text=prompt.gold_text,
                    outputs=[output([1, 2], [-1.0, -0.5], text)],
                    lease_id=request.lease_id,
                )
            ]
            yield batch_from_rows(GROUPS, rows)


class Counting(LocalActor):
    """Gives each output the number of its prompt, and gold half of it."""

    name: str
    scored: list[str]

    async def ready(self):
        return {"name": self.name, "digest": "digest"}

    async def score(self, groups):
        rows = [
            scores(self.name, {row["group_id"]: [-2.0 if self.name == "prior" else float(row["prompt_id"][1:])]})
            for row in groups.select(["group_id", "prompt_id"]).to_pylist()
        ]
        self.scored.extend(groups["group_id"].to_pylist())
        return pa.concat_batches(rows)


@dataclass
class Bench:
    """An evaluation's store, filled by services of this process."""

    root: Path
    recipe: Recipe = field(default_factory=lambda: Recipe.model_validate(recipe_settings()))
    sampled: list[str] = field(default_factory=list)
    scored: list[str] = field(default_factory=list)
    counted: int = 0

    def series(self, version: int = 0, prompts=PROMPTS, *, greedy: bool = False):
        registry = PolicyRegistry(self.root / "policies")
        found = registry.publish(version, version, lambda place: write_file(place / "w", f"{version}"), PROBE)
        one = Candidate(f"run@{version}", "run", "run", self.recipe, found, RunDirectory(self.root))
        return make_series(one, prompts, self.recipe, "test", NAMES, greedy=greedy)

    def store(self):
        return SampleStore(self.root / "store", "evaluation")

    def fill(self, series, limit: int = 10**9):
        store = self.store()
        todo = lacking(store, series, self.recipe)
        made = type("Made", (OneOutput,), {"sampled": self.sampled, "limit": limit})
        log = RunDirectory(self.root).log
        sampler = Pool("sampler", 1, lambda name, _log: made(name), log, PoolSettings(start=5))
        pools = {name: Pool(name, 1, partial(self._scorer, name), log, PoolSettings(start=5)) for name in NAMES}

        async def run():
            queue = CommitQueue(store, "evaluation", lambda _groups, _rows: None)
            try:
                async with scorers_at_work(pools, self.recipe, print) as scorers:
                    wanted = {one: part.scorers for part in series for one in part.group_ids}
                    generation = Generation(self.recipe, queue, scorers, wanted, self._count)
                    await generation.score_stored(todo.scores)
                    await generation.sample(sampler, [one for part in todo.requests for one in part])
                    await generation.end()
            finally:
                for pool in (sampler, *pools.values()):
                    pool.kill()
                await asyncio.to_thread(queue.close)

        asyncio.run(asyncio.wait_for(run(), 60))
        return todo

    def _scorer(self, name, _replica, _log):
        made = Counting()
        made.name, made.scored = name, self.scored
        return made

    def _count(self, outputs):
        self.counted += outputs


def test_what_is_stored_is_neither_sampled_nor_scored_again(tmp_path):
    bench = Bench(tmp_path)
    series = [bench.series(0), bench.series(1)]
    with pytest.raises(UserError, match="enough"):
        bench.fill(series, limit=256)  # it breaks off after two requests of 128
    assert len(bench.sampled) == 256
    todo = bench.fill(series)
    assert todo.groups >= 344
    assert len(bench.sampled) == len(set(bench.sampled)) == 600
    left = lacking(bench.store(), series, bench.recipe)
    assert left.groups == 0
    bench.sampled.clear()
    bench.fill(series)
    assert not bench.sampled


def test_progress_counts_every_output_once(tmp_path):
    bench = Bench(tmp_path)
    todo = bench.fill([bench.series(0)])
    assert bench.counted == todo.groups == 300


def test_more_prompts_or_another_version_add_to_what_is_there(tmp_path):
    bench = Bench(tmp_path)
    bench.fill([bench.series(0, PROMPTS[:200])])
    bench.fill([bench.series(0), bench.series(1, PROMPTS[:10])])
    assert len(bench.sampled) == len(set(bench.sampled)) == 310


def test_outputs_of_other_weights_or_decoding_or_sampling_are_never_taken_for_these(tmp_path):
    bench = Bench(tmp_path)
    hot = Bench(tmp_path, Recipe.model_validate(recipe_settings(sampling={"max_tokens": 9})))
    series = [bench.series(0), bench.series(1), bench.series(0, greedy=True), hot.series(0)]
    ids = [group for one in series for group in one.group_ids]
    assert len(ids) == len(set(ids))
    assert [request.greedy for request in series[2].requests] == [True] * 3


def outcomes(bench, prompts):
    store = bench.store()
    measures = measures_of(bench.recipe)
    return [read_outcome(bench.series(number, prompts), store, prompts, measures) for number in (0, 1)]


def test_the_figures_are_of_the_stored_values_and_the_table_has_them_all(tmp_path):
    bench = Bench(tmp_path)
    prompts = PROMPTS[:20]
    bench.fill([bench.series(0, prompts), bench.series(1, prompts)])
    both = outcomes(bench, prompts)
    found = document(bench.recipe, "test", both, Opponent("column 'label'", is_column=True), ["a note"])
    entry = found["outputs"][1]
    assert (entry["what"], entry["version"], entry["prompts"]) == ("run@1", 1, 20)
    assert entry["mean"]["reward"]["mean"] == pytest.approx(9.5)  # of 0 to 19
    assert entry["kl_to_prior"]["mean"] == pytest.approx(-1.5 + 2.0)
    assert entry["against_opponent"]["reward"]["wins"] == pytest.approx(95.0)  # gold has 0.5; only 0 is less
    assert found["pairs"][0]["measures"]["reward"]["ties"] == 100.0
    assert found["measures"] == {"reward": {"trained_on": True}}
    write_rows(tmp_path / "outputs.parquet", both)
    rows = pq.read_table(tmp_path / "outputs.parquet").to_pylist()
    assert len(rows) == 40
    assert rows[23]["output"] == "answer 3 of version 1"
    assert (rows[23]["scores.reward"], rows[23]["reference_scores.reward"], rows[23]["tokens"]) == (3.0, 0.5, 2)
    for table in tables(found):
        assert table.rows


def test_a_model_takes_the_place_of_missing_references(tmp_path):
    bench = Bench(tmp_path)
    prompts = PROMPTS[:5]
    bench.fill([bench.series(0, prompts), bench.series(1, prompts)])
    found = document(bench.recipe, "test", outcomes(bench, prompts), Opponent("run@0", is_column=False), [])
    assert found["opponent"] == {"name": "run@0", "kind": "model"}
    assert found["outputs"][0]["against_opponent"] == {}
    assert found["outputs"][1]["against_opponent"]["reward"]["ties"] == 100.0
    assert tables(found)


def test_a_prompt_without_an_output_is_null_in_the_table_and_counted(tmp_path):
    bench = Bench(tmp_path)
    bench.fill([bench.series(0, PROMPTS[:3]), bench.series(1, PROMPTS[:4])])
    one = read_outcome(bench.series(0, PROMPTS[:4]), bench.store(), PROMPTS[:4], measures_of(bench.recipe))
    assert one.outputs.texts[3] is None
    assert one.rows["output"].null_count == one.rows["scores.reward"].null_count == 1


def test_prompts_that_a_run_has_seen_are_refused(tmp_path):
    run = stored_run(tmp_path)
    recipe = Recipe.model_validate(recipe_settings())
    seen, new = Prompt("x", "  A  Prompt\n", (1,), None), Prompt("y", "another", (1,), None)
    refuse_trained_on(run, [new], recipe, "test")
    with pytest.raises(UserError, match=r"was trained on 1 of the 2 prompts of test.jsonl \(such as 'A Prompt'\)"):
        refuse_trained_on(run, [seen, new], recipe, "test")


def test_prompts_are_those_that_all_can_read_in_the_order_of_the_data():
    class Read:
        def __init__(self, ids):
            self.ids = ids

        def identities(self):
            return ((one, None) for one in self.ids)

    made: Any = Read
    assert chosen(made("abcde"), [made("edba"), made("abcd")], 2) == ["a", "b"]
    assert chosen(made("abcde"), [made("edb")], 9) == ["b", "d", "e"]


def test_other_scorers_under_the_same_name_are_refused_and_further_ones_are_not(tmp_path):
    directory = EvaluationDirectory(tmp_path / "out")
    settings = recipe_settings()
    save_recipe(directory, Recipe.model_validate(settings))
    two = settings | {"scorers": {**settings["scorers"], "second": {"kind": "hh", "path": "p"}}}
    check_directory(directory, Recipe.model_validate(two))
    save_recipe(directory, Recipe.model_validate(two))
    check_directory(directory, Recipe.model_validate(settings))
    for scorers in (
        {"reward": {"kind": "tldr", "path": "other"}},
        two["scorers"] | {"second": {"kind": "hh", "path": "q"}},
    ):
        with pytest.raises(UserError, match="holds values of other scorers"):
            check_directory(directory, Recipe.model_validate(settings | {"scorers": scorers}))
    with pytest.raises(UserError, match=r"policy\.model"):
        check_directory(directory, Recipe.model_validate(settings | {"policy": {"model": "another"}}))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(UserError, match="not a directory of an evaluation"):
        check_directory(EvaluationDirectory(tmp_path / "other"), Recipe.model_validate(settings))


def test_names_are_short_only_where_they_stay_apart():
    assert short_names(["runs/a@1", "runs/a@2"]) == {"runs/a@1": "a@1", "runs/a@2": "a@2"}
    assert short_names(["x/a@1", "y/a@1"]) == {"x/a@1": "x/a@1", "y/a@1": "y/a@1"}
