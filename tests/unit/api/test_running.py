import asyncio
import signal
import threading

import pytest
import torch

import brain_align
from brain_align.common.nn.models.adapters import save_adapter
from brain_align.deploy.api.running import without_event_loop
from brain_align.deploy.run.recipe_files import load_recipe
from brain_align.deploy.run.yaml_text import dump_yaml
from tests.unit.api.test_samples import expected_alpha
from tests.unit.deploy.commands.test_export import a_run, logprobs
from tests.unit.factories import recipe_settings
from tests.unit.stored_runs import stored_run

SUMMARY = {"best_version": 1}


# -- recipes


def test_a_recipe_is_a_file_a_shipped_name_or_nested_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = recipe_settings(name="mine")
    (tmp_path / "mine.yaml").write_text(dump_yaml(settings))
    assert load_recipe("mine.yaml") == load_recipe(tmp_path / "mine.yaml") == load_recipe(settings)
    assert load_recipe("demo") == load_recipe("demo.yaml") and load_recipe("demo").name == "demo"
    (tmp_path / "demo.yaml").write_text(dump_yaml(settings))
    assert load_recipe("demo.yaml").name == "mine", "a file of one's own takes precedence"


def test_overrides_are_nested_or_dotted_and_leave_the_rest():
    settings = recipe_settings(sampling={"n": 4, "max_tokens": 7})
    changes = {
        "sampling": {"n": 8},
        "learner.learning_rate": 1e-5,
        "algorithm": {"rounds": 3, "max_staleness": 1},
        "scorers": {"reward": {"path": "a: b #c"}, "odd": {"kind": "function", "function": "m:f"}},
        "policy.adapter": {"targets": ["q_proj", "v_proj"]},
        "run.dir": "runs/{name}",
        "seed": 3,
    }
    recipe = load_recipe(settings, changes)
    assert (recipe.sampling.n, recipe.sampling.max_tokens, recipe.seed) == (8, 7, 3)
    assert (recipe.learner.learning_rate, recipe.algorithm.rounds, recipe.algorithm.max_staleness) == (1e-5, 3, 1)
    assert recipe.scorers["reward"].model_dump()["path"] == "a: b #c" and set(recipe.scorers) == {"reward", "odd"}
    assert recipe.policy.adapter and recipe.policy.adapter.targets == ["q_proj", "v_proj"]
    assert settings["sampling"] == {"n": 4, "max_tokens": 7}, "the caller's settings stay"


@pytest.mark.parametrize(
    ("recipe", "overrides", "sentence"),
    [
        ("absent", {}, r"no recipe or run directory absent; shipped recipes are .*demo\.yaml"),
        (recipe_settings(), {"sampling.m": 3}, r"sampling\.m"),
        (recipe_settings(), {"sampling": {"n": "many"}}, r"sampling\.n"),
        (recipe_settings(), {"name.first": 1}, "name is a value, not a section"),
        (recipe_settings(), {"seed": object()}, "seed is a object; give a plain value"),
    ],
)
def test_what_is_no_recipe_is_one_sentence(recipe, overrides, sentence):
    with pytest.raises(brain_align.UserError, match=sentence):
        brain_align.run(recipe, **overrides)


# -- results


def test_a_result_opens_its_store_once(tmp_path):
    directory = stored_run(tmp_path, 0.5).rename(tmp_path / "moved")
    result = brain_align.RunResult(directory, SUMMARY)
    rows = result.store.to_pandas()
    assert rows.alpha[rows.group_id == "aa01"].tolist() == pytest.approx(expected_alpha("aa01", 0.5))
    assert result.store is result.store


def test_the_trained_policy_is_loaded(tmp_path):
    directory, trained = a_run(tmp_path)
    directory.adapter.mkdir()
    save_adapter(trained, directory.adapter)
    policy = brain_align.RunResult(directory.root, SUMMARY).policy
    assert (policy.path, policy.base, policy.version) == (directory.adapter, str(tmp_path / "model"), 1)
    torch.testing.assert_close(logprobs(policy.load()), logprobs(trained))
    assert policy.load_tokenizer()("the cat").input_ids


def test_a_whole_model_is_the_policy_where_all_weights_were_trained(tmp_path):
    directory, trained = a_run(tmp_path, method="full")
    policy = brain_align.RunResult(directory.root, SUMMARY).policy
    assert policy.base is None and policy.path == directory.policies / "v000001"
    torch.testing.assert_close(logprobs(policy.load()), logprobs(trained))


# -- in a notebook, whose cells run within an event loop


def test_what_goes_wrong_there_is_raised_there():
    def refuse():
        raise brain_align.UserError("no")

    async def cell():
        without_event_loop(refuse)

    with pytest.raises(brain_align.UserError, match="no"):
        asyncio.run(cell())


def test_an_interrupt_ends_the_run_and_not_only_the_cell():
    ended = []

    async def for_ever():
        try:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            while True:
                await asyncio.sleep(0.01)
        finally:
            ended.append(True)

    async def cell():
        without_event_loop(lambda: asyncio.run(for_ever()))

    with pytest.raises(KeyboardInterrupt):
        _run_plainly(cell())
    assert ended


def _run_plainly(cell):
    """As Jupyter does: SIGINT raises KeyboardInterrupt wherever the main thread is, also in a cell."""
    loop = asyncio.new_event_loop()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        loop.run_until_complete(cell)
    finally:
        signal.signal(signal.SIGINT, before)
        loop.close()
