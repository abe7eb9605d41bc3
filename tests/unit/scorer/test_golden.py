import json
from pathlib import Path

import pytest

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import ScorerAwayError, UserError
from brain_align.common.schemas import PRIOR
from brain_align.scorer.catalogue import build_scorer
from brain_align.scorer.golden import check_golden
from brain_align.scorer.text_models.formats import TLDR
from tests.unit.factories import recipe_settings
from tests.unit.scorer.http_service import serving
from tests.unit.scorer.test_gptj_reward import TOKENIZER, tiny_weights, write
from tests.unit.tiny_models import llama, save

shift = 0.0


def moving(prompts: list[str], outputs: list[str]) -> list[float | None]:
    if shift == -2:
        return [float("nan") if not output else len(output) for output in outputs]
    return [None if shift == -1 else len(output) + shift for output in outputs]


def failing(prompts: list[str], outputs: list[str]) -> list[float]:
    raise ValueError("no such prompt")


def check(golden: Path, **section: object) -> None:
    recipe = Recipe.model_validate(recipe_settings(scorers={"reward": section}))
    scorer = build_scorer(recipe.scorers["reward"], "reward", recipe.policy, golden.parent)
    check_golden(scorer, recipe.scorers["reward"], golden)


def test_a_scorer_that_has_drifted_stops_the_run_with_both_numbers(tmp_path, monkeypatch):
    path = tmp_path / "golden" / "reward.json"
    settings = {"kind": "function", "function": f"{__name__}:moving"}
    check(path, **settings)
    before = path.read_bytes()
    check(path, **settings)
    monkeypatch.setattr(f"{__name__}.shift", 0.5)
    with pytest.raises(UserError) as drifted:
        check(path, **settings)
    assert "had the value 31.0, now it has 31.5" in str(drifted.value)
    assert "its files are the same" in str(drifted.value)
    monkeypatch.setattr(f"{__name__}.shift", -1)
    with pytest.raises(ScorerAwayError, match=r"reward returns no values: the function"):
        check(path, **settings)
    monkeypatch.setattr(f"{__name__}.shift", -2)
    with pytest.raises(ScorerAwayError, match=r"no value for the golden text '', which had 0.0: output 1 has the"):
        check(path, **settings)  # it has not drifted: a service may have failed in the middle
    assert path.read_bytes() == before


def test_a_function_that_has_nothing_to_say_about_golden_texts_may_be_right_all_the_same(tmp_path):
    for _ in range(2):
        check(tmp_path / "golden.json", kind="function", function=f"{__name__}:failing")
    assert not (tmp_path / "golden.json").exists()  # null is no value to compare with


def test_null_of_an_earlier_version_is_replaced_once_the_function_is_mended(tmp_path, monkeypatch):
    path = tmp_path / "golden.json"
    path.write_text('{"scorer": "reward", "digest": "former", "values": [null, 0.0, null, null]}')
    settings = {"kind": "function", "function": f"{__name__}:moving"}
    check(path, **settings)
    assert json.loads(path.read_text())["values"] == [31.0, 0.0, 22.0, 45.0]
    monkeypatch.setattr(f"{__name__}.shift", 0.5)
    with pytest.raises(UserError, match="drifted"):
        check(path, **settings)


@pytest.mark.parametrize("content", ["{", '{"scorer": "reward"}', '{"scorer": "r", "digest": "", "values": [1]}'])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "golden.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"golden.json .* restore or delete it"):
        check(path, kind="function", function=f"{__name__}:moving")


def test_an_endpoint_that_cannot_be_reached_stops_the_start(tmp_path):
    with serving(lambda body: (200, {"scores": [1.0] * len(body["outputs"])})) as service:
        check(tmp_path / "golden.json", kind="http", url=service.url)
    with pytest.raises(ScorerAwayError, match=r"scorers.reward returns no values: .* was asked 2 times: ConnectError"):
        check(tmp_path / "golden.json", kind="http", url=service.url, attempts=2, backoff=0)


def test_a_judge_is_asked_but_not_held_to_its_word(tmp_path):
    ratings = iter(range(1, 9))

    def answer(body):
        return 200, {"choices": [{"message": {"content": f"[[{next(ratings)}]]"}}]}

    with serving(answer) as service:
        for _ in range(2):
            judge = {"kind": "judge", "url": service.url, "model": "m", "instructions": "{prompt}{output}"}
            check(tmp_path / "golden.json", **judge)
    assert not (tmp_path / "golden.json").exists()


def test_a_prior_of_other_weights_is_found_out(tmp_path):
    path = tmp_path / "prior.json"
    model = tmp_path / "model"

    def check_prior() -> None:
        settings = recipe_settings(policy={"model": str(model), "dtype": "float32"})
        recipe = Recipe.model_validate(settings)
        check_golden(build_scorer(recipe.prior, PRIOR, recipe.policy, tmp_path), recipe.policy, path)

    save(llama(), model)
    check_prior()
    check_prior()
    save(llama(seed=1), model)
    with pytest.raises(UserError, match=r"'prior' has drifted: .*; its files have changed"):
        check_prior()


def test_a_reward_model_of_other_weights_is_found_out_and_one_of_another_precision_is_not(tmp_path):
    path = tmp_path / "reward.json"
    settings = {"kind": "tldr", "path": str(tmp_path / "model")}

    def replace(seed: int) -> None:
        config, weights = tiny_weights(seed=seed)
        write(tmp_path / "model", TLDR, weights, config)
        TOKENIZER.save_pretrained(tmp_path / "model")

    replace(seed=0)
    check(path, **settings, dtype="float32")
    check(path, **settings, dtype="bfloat16")
    replace(seed=1)
    with pytest.raises(UserError, match="'reward' has drifted"):
        check(path, **settings, dtype="float32")
