import asyncio
import contextlib
import itertools
import math
import os
import re
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from brain_align.common.config.inputs import PolicySection
from brain_align.common.config.recipe import Recipe
from brain_align.common.config.scorers import Dtype, FunctionSection, GPTJRewardSection
from brain_align.common.data.conversations import Message, as_text
from brain_align.common.errors import UserError
from brain_align.common.schemas import GROUPS, PRIOR, SCORES, batch_from_rows
from brain_align.scorer import catalogue
from brain_align.scorer.catalogue import build_scorer
from brain_align.scorer.kinds.function import load_function
from brain_align.scorer.kinds.gptj import load_reward_model
from brain_align.scorer.kinds.prior import load_prior
from brain_align.scorer.scorer import Resources
from brain_align.scorer.text_models.formats import HH, TLDR
from tests.unit.common.nn.logprob_calls import group_logprobs
from tests.unit.factories import recipe_settings
from tests.unit.forked import in_child
from tests.unit.scorer.test_gptj_reward import TOKENIZER, tiny_weights, write
from tests.unit.tiny_models import CONTEXT, EOS_ID, llama, save

PROMPT = "the cat\nTL;DR:"


def group(name="g", outputs=("a", "bb"), gold=None, prompt=PROMPT, prompt_ids=(1, 2), token_ids=None):
    token_ids = token_ids or [[5 + index] * (index + 1) for index in range(len(outputs))]
    return {
        "group_id": name,
        "prompt_id": name,
        "round": 0,
        "prompt_text": prompt,
        "prompt_token_ids": list(prompt_ids),
        "gold_text": gold,
        "proposal_version": 0,
        "proposal_digest": "",
        "outputs": [
            {"token_ids": ids, "token_logprobs": [0.0] * len(ids), "text": text, "finish_reason": "stop"}
            for text, ids in zip(outputs, token_ids, strict=True)
        ],
        "temperature": 1.0,
        "max_tokens": 8,
        "lease_id": "lease",
        "seed": 0,
        "sampler_id": "sampler",
        "started_at": 0.0,
        "finished_at": 0.0,
    }


def score(scorer, *groups):
    scores = scorer.score(batch_from_rows(GROUPS, list(groups)))
    assert scores.schema == SCORES
    assert set(scores["scorer"].to_pylist()) <= {scorer.name}
    assert set(scores["scorer_digest"].to_pylist()) <= {scorer.digest}
    return scores.to_pylist()


# -- reward models


def load_reward(path, kind, dtype: Dtype = "float32", *, together=False):
    settings = GPTJRewardSection(kind=kind, path=str(path), dtype=dtype)
    return load_reward_model("reward", settings, Resources(["cpu"], 10_000, together))


@pytest.fixture(params=[TLDR, HH], ids=["tldr", "hh"])
def make_reward_model(request, tmp_path):
    config, weights = tiny_weights()
    write(tmp_path, request.param, weights, config)
    TOKENIZER.save_pretrained(tmp_path)
    return partial(load_reward, tmp_path, request.param.name)


@pytest.fixture
def reward_model(make_reward_model):
    return make_reward_model()


GROUPS_OF_TEXTS = (
    group("one", outputs=(" sat", "", " sat on the mat" * 3), gold=" the cat sat"),
    group("two", outputs=(" the text of the start" * 20, " ß日本")),
    group("three", outputs=(" on", " the", " mat"), gold=""),
)


def test_a_value_per_output_and_one_for_gold(reward_model):
    rows = score(reward_model, *GROUPS_OF_TEXTS)
    assert [row["group_id"] for row in rows] == ["one", "two", "three"]
    assert [len(row["values"]) for row in rows] == [3, 2, 3]
    assert [row["gold_value"] is None for row in rows] == [False, True, False]
    assert {row["error"] for row in rows} == {None}
    everything = [value for row in rows for value in row["values"]]
    assert len(set(everything)) == len(everything)
    assert all(math.isfinite(value) for value in everything)


def test_values_do_not_depend_on_the_other_groups(reward_model):
    together = score(reward_model, *GROUPS_OF_TEXTS)
    alone = [score(reward_model, one)[0] for one in reversed(GROUPS_OF_TEXTS)][::-1]
    for row in (*together, *alone):
        del row["scored_at"]
    assert together == alone


def test_groups_that_are_computed_together_take_one_pass_and_get_the_values_they_get_alone(
    make_reward_model, monkeypatch
):
    alone, together = make_reward_model(), make_reward_model(together=True)
    passes = []
    forward = together._values.decoder.model.forward

    def counted(**inputs):
        passes.append(inputs["input_ids"].shape)
        return forward(**inputs)

    monkeypatch.setattr(together._values.decoder.model, "forward", counted)
    assert alone.digest == together.digest
    for one, other in zip(score(alone, *GROUPS_OF_TEXTS), score(together, *GROUPS_OF_TEXTS), strict=True):
        assert other["values"] == pytest.approx(one["values"], abs=2e-5)
        assert other["gold_value"] == (one["gold_value"] and pytest.approx(one["gold_value"], abs=2e-5))
    assert len(passes) == 1


def test_a_conversation_has_no_value_from_a_scorer_of_plain_text_and_its_neighbours_have(reward_model):
    talk = as_text([Message(role="user", content="Hi"), Message(role="assistant", content="Hello")])
    first, second = score(reward_model, group(prompt=talk, gold=" on"), group("other"))
    assert (first["values"], first["gold_value"]) == ([None, None], None)
    assert first["error"].startswith("the prompt is a conversation")
    assert None not in second["values"] and second["error"] is None


def test_gold_is_scored_as_an_output_of_the_same_text_is(reward_model):
    (row,) = score(reward_model, group(outputs=(" the cat sat", " on"), gold=" the cat sat"))
    assert row["gold_value"] == pytest.approx(row["values"][0], abs=1e-5)


def test_an_empty_batch_gives_no_rows(reward_model):
    assert score(reward_model) == []


def test_a_reward_that_is_not_finite_is_null_with_its_error(reward_model):
    with torch.no_grad():
        reward_model._values._head.weight.fill_(float("nan"))
    (row,) = score(reward_model, group(gold="x"))
    assert row["values"] == [None, None]
    assert row["gold_value"] is None
    assert "text 0 has the value nan" in row["error"]


def test_a_reward_models_digest_depends_on_its_weights_and_type(tmp_path):
    digests = set()
    variants: list[tuple[int, Dtype]] = [(0, "float32"), (0, "bfloat16"), (1, "float32"), (0, "float32")]
    for seed, dtype in variants:
        config, weights = tiny_weights(seed=seed)
        write(tmp_path, TLDR, weights, config)
        TOKENIZER.save_pretrained(tmp_path)
        digests.add(load_reward(tmp_path, "tldr", dtype).digest)
    assert len(digests) == 3


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    config, weights = tiny_weights()
    config.eos_token_id = 3
    write(tmp_path, HH, weights, config)
    TOKENIZER.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"ends texts with token {len(TOKENIZER) - 1}, the model with 3"):
        load_reward(tmp_path, "hh")


# -- prior


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sft")
    save(llama(), directory)
    return str(directory)


def policy(model, **settings):
    return PolicySection(model=model, **({"dtype": "float32"} | settings))


def test_the_prior_gives_sums_of_log_probabilities_of_token_ids(sft):
    prior = load_prior(policy(sft), "cpu", max_tokens=10_000)
    token_ids = [[7, 8, EOS_ID], [9], []]
    (row,) = score(prior, group(outputs=("x", "y", ""), token_ids=token_ids, gold="gold"))
    with torch.no_grad():
        expected = group_logprobs(llama(), [1, 2], token_ids).tolist()
    assert row["scorer"] == PRIOR
    assert row["values"] == pytest.approx(expected, abs=1e-5)
    assert row["values"][2] == 0
    assert row["gold_value"] is None
    assert row["error"] is None


def test_a_group_that_the_prior_cannot_read_is_null_and_the_others_are_not(sft):
    prior = load_prior(policy(sft), "cpu", max_tokens=10_000)
    long, fine = score(prior, group(prompt_ids=[1] * CONTEXT), group())
    assert long["values"] == [None, None]
    assert f"{CONTEXT + 2} tokens" in long["error"]
    assert None not in fine["values"]


def test_the_priors_digest_depends_on_its_weights_and_type(sft, tmp_path):
    save(llama(seed=1), tmp_path)
    digests = {
        load_prior(policy(sft), "cpu", max_tokens=100).digest,
        load_prior(policy(sft, dtype="bfloat16"), "cpu", max_tokens=100).digest,
        load_prior(policy(str(tmp_path)), "cpu", max_tokens=100).digest,
        load_prior(policy(sft, quantization="nf4"), "cpu", max_tokens=100).digest,
    }
    assert len(digests) == 4


# -- functions


def lengths(prompts, outputs):
    assert len(set(prompts)) == 1
    return [float(len(output)) for output in outputs]


def with_holes(prompts, outputs):
    return [math.nan if output == "nan" else math.inf if output == "inf" else 1e39 for output in outputs]


def raising(prompts, outputs):
    if "bad" in outputs:
        raise KeyError("bad")
    return [1] * len(outputs)


def leaving(prompts, outputs):
    sys.exit("no licence")


def making_up(prompts, outputs):
    try:
        time.sleep(60 if "slow" in outputs else 0)
    except BaseException:  # noqa: BLE001 - as careless code does
        return [0.0] * len(outputs)
    return [1.0] * len(outputs)


def waiting_for_threads(prompts, outputs):
    released = threading.Event()
    with ThreadPoolExecutor() as threads:
        try:
            futures = [threads.submit(released.wait, 60 if output == "slow" else 0) for output in outputs]
            return [float(future.result()) for future in futures]
        finally:
            with contextlib.suppress(Exception):
                threads.shutdown()
            released.set()  # or the test's process could not end


def hanging(prompts, outputs):
    while "forever" in outputs:
        with contextlib.suppress(Exception):
            time.sleep(0.01)
    if "backtracking" in outputs:
        re.match(r"(a+)+$", "a" * 40 + "b")
    return [1.0] * len(outputs)


ANSWERS = {
    "too_few": [1.0],
    "text": "ab",
    "texts": ["1", "2"],
    "none": None,
    "one": 1.0,
    "nones": [None, 1.0],
}


def odd(prompts, outputs):
    return ANSWERS[outputs[0]]


def numpy(prompts, outputs):
    return np.arange(len(outputs), dtype=np.float32)


def kinds_of_numbers(prompts, outputs):
    return (True, np.float64(2.5), 10**400)[: len(outputs)]


FORMS: dict[str, Any] = {
    "a tensor": torch.tensor,
    "a tensor with a gradient": lambda values: torch.tensor(values, requires_grad=True),
    "an array": np.array,
    "a list of tensors": lambda values: [torch.tensor(value) for value in values],
    "a generator": lambda values: (value for value in values),
    "a map": lambda values: map(float, values),
    "a coroutine": lambda values: later(values),
    "a coroutine of an array": lambda values: later(np.array(values)),
}
STRANGE: dict[str, tuple[Any, str]] = {
    "a column": (lambda values: torch.tensor(values)[:, None], "returned [2.0], which is not a number"),
    "a dictionary": (lambda values: {"scores": values}, "returned a dict, not a list of numbers"),
    "a set": (set, "returned a set, not a list of numbers"),
    "bytes": (lambda values: bytes(len(values)), "returned a bytes, not a list of numbers"),
    "nobody ends it": (lambda values: itertools.count(), "returned 3 values for 2 outputs"),
    "one fails": (lambda values: (1 / value for value in (1.0, 0.0)), "raised ZeroDivisionError"),
    "it ends": (lambda values: (sys.exit(4) for value in values), "raised SystemExit: 4"),
    "it hangs": (lambda values: (sleeping(value) for value in values), "returned no values within 0.5 s"),
    "it waits": (lambda values: asyncio.sleep(60), "returned no values within 0.5 s"),
    "cancelled": (lambda values: cancelled(), "raised CancelledError: "),
}


def sleeping(value):
    time.sleep(60)
    return value


async def later(values):
    await asyncio.sleep(0.001)
    return values


async def cancelled():
    raise asyncio.CancelledError("no")


def in_forms(prompts, outputs):
    return FORMS[prompts[0]]([2.0, 3.0][: len(outputs)])


def in_strange_forms(prompts, outputs):
    return STRANGE[prompts[0]][0]([2.0, 3.0])


def with_an_alarm(prompts, outputs):
    """Limit each output's time by itself, as verifiers of answers do, and leave an alarm."""
    values = []
    for output in outputs:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        try:
            time.sleep(30 if output == "slow" else 0)
            values.append(1.0)
        except KeyboardInterrupt:
            values.append(0.0)
        signal.alarm(0)
    signal.alarm(1)
    time.sleep(30 if "slower" in outputs else 0)
    return values


def forking(prompts, outputs):
    if not os.fork():
        sys.exit(0) if "exit" in outputs else None
        if "raise" in outputs:
            raise ValueError("in the child")
        return [0.0] * len(outputs)
    os.wait()
    return [1.0] * len(outputs)


HERE = __name__


def function(path, name="truth", **settings):
    section = {"kind": "function", "function": path} | settings
    return load_function(name, FunctionSection.model_validate(section))


def test_a_function_gets_texts_and_its_values_are_kept():
    scorer = function(f"{HERE}:lengths")
    first, second = score(scorer, group(outputs=("a", "bb", ""), gold="gold"), group())
    assert (first["values"], first["gold_value"], first["error"]) == ([1, 2, 0], 4, None)
    assert (second["values"], second["gold_value"], second["error"]) == ([1, 2], None, None)
    (row,) = score(function(f"{HERE}:numpy"), group())
    assert row["values"] == [0, 1]


def test_values_that_are_not_finite_are_null_and_the_others_stay():
    (row,) = score(function(f"{HERE}:with_holes"), group(outputs=("nan", "inf", "large")))
    assert row["values"] == [None, None, None]
    assert row["error"].split("; ")[0] == "output 0 has the value nan"
    (row,) = score(function(f"{HERE}:kinds_of_numbers"), group(outputs=("a", "b", "c"), gold="g"))
    assert row["values"] == [1, 2.5, None]
    assert row["gold_value"] == 1
    assert row["error"] == "output 2 has the value inf"


def test_an_exception_costs_its_own_group_alone():
    scorer = function(f"{HERE}:raising")
    fine, bad, gold = score(scorer, group(), group(outputs=("good", "bad")), group(gold="bad"))
    assert (fine["values"], fine["error"]) == ([1, 1], None)
    assert (bad["values"], bad["error"]) == ([None, None], "the function raised KeyError: 'bad'")
    assert (gold["values"], gold["gold_value"]) == ([1, 1], None)
    assert "KeyError" in gold["error"]


def test_a_function_that_would_end_the_process_does_not():
    (row,) = score(function(f"{HERE}:leaving"), group())
    assert (row["values"], row["error"]) == (
        [None, None],
        "the function raised RuntimeError: it called sys.exit('no licence')",
    )


@pytest.mark.parametrize("text", ["forever", "backtracking"])
def test_a_function_that_hangs_is_given_up_in_time_and_asked_again_for_the_next_group(text):
    began = time.monotonic()
    late, next_ = score(function(f"{HERE}:hanging", timeout=0.2), group(outputs=(text, "b")), group(name="next"))
    assert time.monotonic() - began < 10
    assert (late["values"], late["error"]) == ([None, None], "the function returned no values within 0.2 s")
    assert (next_["values"], next_["error"]) == ([1, 1], None)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.parametrize("name", ["making_up", "waiting_for_threads"])
def test_what_a_function_makes_of_its_interruption_is_no_value_and_does_not_keep_it_going(name):
    began = time.monotonic()
    late, next_ = score(function(f"{HERE}:{name}", timeout=0.2), group(outputs=("slow", "b")), group(name="next"))
    assert time.monotonic() - began < 10
    assert (late["values"], late["error"]) == ([None, None], "the function returned no values within 0.2 s")
    assert None not in next_["values"]
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.parametrize("form", FORMS)
def test_numbers_may_come_in_any_form(form):
    (row,) = score(function(f"{HERE}:in_forms"), group(prompt=form, outputs=("a", "b"), gold="g"))
    assert (row["values"], row["gold_value"], row["error"]) == ([2, 3], 2, None)


@pytest.mark.parametrize("form", STRANGE)
def test_whatever_else_comes_is_null_with_the_reason(form):
    scorer = function(f"{HERE}:in_strange_forms", timeout=0.5)
    (row,) = score(scorer, group(prompt=form, outputs=("a", "b")))
    assert row["values"] == [None, None]
    assert STRANGE[form][1] in row["error"]


def test_a_function_may_set_alarms_of_its_own_and_is_limited_all_the_same():
    scorer = function(f"{HERE}:with_an_alarm", timeout=0.3)
    first, late = score(scorer, group(outputs=("a", "slow")), group(outputs=("slow", "slower")))
    assert (first["values"], first["error"]) == ([1, 0], None)
    assert (late["values"], late["error"]) == ([None, None], "the function returned no values within 0.3 s")
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) != signal.default_int_handler


@pytest.mark.parametrize("how", ["exit", "raise", "return"])
def test_a_function_that_forks_leaves_one_process(how, tmp_path):
    def check():
        rows = score(function(f"{HERE}:forking"), *[group(name=f"{i}", outputs=(how, "b"), gold=how) for i in range(3)])
        with open(tmp_path / "seen", "a", encoding="utf-8") as seen:
            seen.write("once\n")
        return 0 if all(row["values"] == [1, 1] and row["gold_value"] == 1 for row in rows) else 50

    assert in_child(check) == 0
    assert (tmp_path / "seen").read_text() == "once\n"


def test_in_another_thread_there_is_no_limit_and_no_harm():
    rows = []
    thread = threading.Thread(target=lambda: rows.extend(score(function(f"{HERE}:hanging", timeout=5), group())))
    thread.start()
    thread.join()
    assert rows[0]["values"] == [1, 1]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("too_few", "returned 1 values for 2 outputs"),
        ("text", "returned a str, not a list of numbers"),
        ("texts", "returned '1', which is not a number"),
        ("none", "returned a NoneType, not a list of numbers"),
        ("one", "returned a float, not a list of numbers"),
        ("nones", "returned None, which is not a number"),
    ],
)
def test_what_is_no_list_of_numbers_is_null(answer, message):
    (row,) = score(function(f"{HERE}:odd"), group(outputs=(answer, "b")))
    assert row["values"] == [None, None]
    assert message in row["error"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no.such.module:f", "'no.such.module' cannot be imported"),
        (f"{HERE}:absent", "has no function 'absent'"),
        (HERE, "has no function ''"),
        (f"{HERE}:ANSWERS", "has no function 'ANSWERS'"),
        (":f", "cannot be imported"),
        ("tests.unit.scorer.ending_script:f", "cannot be imported: it ends with status 3"),
    ],
)
def test_functions_that_are_not_there_are_refused(path, message):
    with pytest.raises(UserError, match=rf"scorers\.truth\.function: .*{message}"):
        function(path)


def test_a_function_may_be_exported_lazily(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lazy_rewards.py").write_text(
        "def __getattr__(name):\n"
        "    if name == 'f': return lambda prompts, outputs: [4.0] * len(outputs)\n"
        "    if name == 'g': import no_such_package\n"
        "    raise AttributeError(name)\n"
    )
    assert score(function("lazy_rewards:f"), group())[0]["values"] == [4, 4]
    with pytest.raises(UserError, match=r"'lazy_rewards:g' cannot be imported: No module named 'no_such_package'"):
        function("lazy_rewards:g")
    with pytest.raises(UserError, match=r"lazy_rewards has no function 'absent'"):
        function("lazy_rewards:absent")


def test_a_functions_digest_depends_on_its_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    digests = []
    for source in ("def f(p, o): return [1.0] * len(o)\n", "def f(p, o): return [2.0] * len(o)\n") * 2:
        (tmp_path / "a_reward.py").write_text(source)
        sys.modules.pop("a_reward", None)
        digests.append(function("a_reward:f").digest)
    assert digests[0] != digests[1]
    assert digests[:2] == digests[2:]


def test_a_functions_source_may_be_in_the_encoding_that_it_declares(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = "# coding: latin-1\ndef f(p, o): return [float('é' in one) for one in o]\n"
    (tmp_path / "a_latin_reward.py").write_bytes(source.encode("latin-1"))
    assert function("a_latin_reward:f").digest


# -- from settings


def test_scorers_are_built_from_the_sections_of_a_recipe(sft, tmp_path):
    config, weights = tiny_weights()
    write(tmp_path, HH, weights, config)
    TOKENIZER.save_pretrained(tmp_path)
    settings = recipe_settings(
        policy={"model": sft, "dtype": "float32"},
        scorers={
            "truth": {"kind": "function", "function": f"{HERE}:lengths"},
            "reward": {"kind": "hh", "path": str(tmp_path), "dtype": "float32"},
        },
    )
    recipe = Recipe.model_validate(settings)
    for name in (PRIOR, *recipe.scorers):
        (row,) = score(build_scorer(recipe.scorer(name), name, recipe.policy, tmp_path), group(gold="gold"))
        assert row["scorer"] == name
        assert None not in row["values"]


def test_only_a_scorer_that_asked_for_a_gpu_gets_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert catalogue._devices(0) == ["cpu"]
    assert catalogue._devices(0.5) == ["cuda:0"]
    assert catalogue._devices(2) == ["cuda:0", "cuda:1"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert catalogue._devices(2) == ["cpu"]


def test_scores_survive_arrow():
    scores = function(f"{HERE}:with_holes").score(batch_from_rows(GROUPS, [group()]))
    assert scores["values"].type == pa.list_(pa.float32())
    assert scores["values"].to_pylist() == [[None, None]]
