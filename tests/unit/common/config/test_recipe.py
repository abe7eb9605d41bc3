import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from brain_align.common.config import validation
from brain_align.common.config.objectives import OBJECTIVE_NAMES
from brain_align.common.config.recipe import Recipe
from brain_align.common.config.reference import all_sections
from brain_align.common.config.run_identity import differing_settings, recipe_digest
from brain_align.common.config.validation import parse_recipe, valid_names
from brain_align.common.errors import UserError
from brain_align.deploy.run.recipe_files import load_recipe
from brain_align.deploy.run.resolve import with_world
from tests.locations import ROOT
from tests.unit.factories import recipe_settings

FULL = {"model": "m", "method": "full"}
JUDGE = {"kind": "judge", "url": "http://here/v1", "model": "m", "instructions": "rate {prompt} {output}"}
DATA = {"train": "t", "validation": "v", "test": "t"}
TWO = {"reward": 1, "b": -1}
PAIR = {"reward": JUDGE, "b": {"kind": "function", "function": "m:f", "use": "evaluation"}}
RECIPES = sorted((ROOT / "deploy/recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_shipped_recipes_are_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert "{world}" not in str(with_world(recipe, Path("/world")).recipe.model_dump())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"sampling": {"n": 1}}, "sampling.n=1 is refused: input should be greater than or equal to 2"),
        (
            {"sampling": {"temprature": 1}},
            "unknown setting sampling.temprature; did you mean sampling.temperature?",
        ),
        ({"sampling": {"top_p": 0.9}}, "top_p cuts outputs off from the proposal"),
        ({"sampling": {"top_k": 50}}, "top_k cuts outputs off from the proposal"),
        ({"sampling": {"stop": ["\n"], "presence_penalty": 1}}, "presence_penalty, stop cuts outputs off"),
        ({"sampling": {"stop": [""]}}, "sampling.stop.0='' is refused"),
        (
            {"sampling": {"top_k": 5, "allow_truncated_support": True}, "logprobs": {"proposal": "recomputed"}},
            "but sampling.top_k samples from another",
        ),
        ({"sampler": {"tensor_parallel": 2}}, "gpus=0; set gpus=2"),
        ({"sampler": {"vllm": {"max_loras": 8}}}, "vllm.max_loras is set by the sampler itself"),
        ({"sampler": {"vllm": {"load_format": "dummy"}}}, "vllm.load_format is set by the sampler itself"),
        (
            {"sampler": {"vllm": {"weight_transfer_config": "x"}}},
            "vllm.weight_transfer_config is set by the sampler itself",
        ),
        (
            {"sampler": {"delivery": "transfer"}},
            "policy.method=lora publishes adapters, which are small and loaded from their files",
        ),
        (
            {"sampler": {"delivery": "merged"}, "policy": {"model": "m", "method": "full", "dtype": "float32"}},
            "delivery=merged adds adapters to the model's weights, and policy.method=full publishes whole models",
        ),
        ({"sampling": {"temperature": 0.7}}, "temperature=0.7 makes the proposal q' a different distribution"),
        ({"learner": {"zero_stage": 9}}, "learner.zero_stage=9 is refused"),
        ({"learnr": {}}, "unknown setting learnr; did you mean learner?"),
        (
            {"objective": {"reward": "judge"}},
            "objective.reward='judge' does not name a scorer (available: reward); set objective.reward: reward",
        ),
        (
            {"objective": {"name": "dop"}},
            "objective.name='dop' is not an objective; did you mean dpo? Available: brain, ",
        ),
        ({"objective": {"name": "ipo", "goodness": "logistic"}}, "unknown setting objective.goodness; valid: name, "),
        ({"objective": {"name": "dpo-sft", "bta": 1}}, "unknown setting objective.bta; did you mean objective.beta?"),
        ({"objective": {"name": "cdpo", "epsilon": 0.5}}, "objective.epsilon=0.5 is refused"),
        ({"objective": {"name": "dpo"}}, "objective.name=dpo with reward=human trains on human preference pairs"),
        (
            {"objective": {"name": "dpo-sft"}, "algorithm": {"proposal": "updated"}},
            "objective.name=dpo-sft is defined on outputs of the prior",
        ),
        (
            {"objective": {"name": "slic"}, "data": DATA | {"gold_column": None}},
            "objective.name=slic with sft_on=gold trains on gold texts",
        ),
        (
            {"objective": {"name": "rso", "accepted": 8}, "sampling": {"n": 8}},
            "objective.name=rso would accept 8 of 8 outputs per prompt, so that nothing is rejected",
        ),
        ({"objective": {"name": "rso"}, "sampling": {"n": 2}}, "would accept 2 of 2 outputs"),
        (
            {"objective": {"name": "dpo+nll", "sft_on": "gold"}, "data": DATA | {"gold_column": None}},
            "or set objective.sft_on=best (chosen for dpo+nll)",
        ),
        (
            {"scorers": {"human": {"kind": "tldr", "path": "p"}, "reward": JUDGE}},
            "`human` is the name of human choices",
        ),
        ({"scorers": {"reward": {"kind": "tldr"}}}, "setting scorers.reward.path is required and missing"),
        (
            {"scorers": {"reward": {"kind": "tldr", "path": "p", "pth": 1}}},
            "did you mean scorers.reward.path?",
        ),
        ({"algorithm": {"batch_prompts": 9, "prompts_per_round": 8}}, "a step cannot use a group twice"),
        ({"data": {"train": "t", "validation": "v"}}, "setting data.test is required and missing"),
        ({"scorers": {"reward": {"kind": "tdlr"}}}, "kind must be one of tldr, hh, classifier, function, http, judge"),
        ({"scorers": {"reward": {"path": "p"}}}, "scorers.reward.kind must be one of"),
        (
            {"scorers": {"reward": JUDGE, "tldr": {"kind": "hh", "path": "p", "gpu": 1}}},
            "unknown setting scorers.tldr.gpu;",
        ),
        ({"scorers": {"reward": JUDGE | {"url": "x"}}}, "scorers.reward.url='x' is refused"),
        ({"scorers": {"reward": JUDGE | {"instructions": "{prompt}"}}}, "instructions lack {output}"),
        ({"scorers": {"reward": JUDGE | {"pattern": "("}}}, "pattern='(' is not a regular expression"),
        ({"scorers": {"reward": JUDGE | {"pattern": "[0-9]"}}}, "has no group"),
        ({"scorers": {"reward": JUDGE | {"lowest": 10}}}, "lowest=10 must be less than highest=10"),
        ({"rewards": {"both": {"kind": "max", "weights": TWO}}}, "rewards.both.kind='max' is refused"),
        (
            {"rewards": {"both": {"kind": "min", "weights": {"reward": 1, "b": 1}}}},
            "weights='b' does not name a scorer",
        ),
        ({"rewards": {"both": {"kind": "min", "weights": {"reward": 1, "b": 0}}}}, "weights.b=0 has no effect"),
        (
            {"rewards": {"both": {"kind": "min", "wieghts": {}, "weights": TWO}}, "scorers": PAIR},
            "did you mean rewards.both.weights?",
        ),
        ({"rewards": {"both": {"kind": "min", "weights": TWO, "step": 1}}}, "step is for kind lexicographic"),
        ({"rewards": {"b": {"kind": "min", "weights": TWO}}, "scorers": PAIR}, "has the name of a scorer"),
        (
            {"rewards": {"both": {"kind": "min", "weights": TWO}}, "scorers": PAIR, "objective": {"reward": "both"}},
            "scorers.b.use must be `training`",
        ),
        ({"evaluation": {"truth": "oracle"}}, "evaluation.truth='oracle' does not name a scorer"),
        (
            {"policy": FULL | {"quantization": "nf4"}},
            "policy: quantization=nf4 freezes the weights that method=full trains",
        ),
        ({"policy": FULL | {"adapter": {"r": 8}}}, "policy: method=full trains the model's own weights and no adapter"),
        ({"policy": FULL | {"sft_adapter": "sft"}}, "merge sft_adapter into the model first"),
        ({"policy": FULL}, "policy.method=full in bfloat16 needs a float32 copy of the weights"),
        (
            {"policy": FULL, "learner": {"zero_stage": 2, "offload_optimizer": True}},
            "learner.offload_optimizer=true with policy.method=full in bfloat16 needs learner.zero_stage=3",
        ),
        (
            {"policy": {"model": "m", "quantization": "nf4"}, "learner": {"zero_stage": 3}},
            "DeepSpeed cannot partition 4-bit weights; set zero_stage=2",
        ),
        ({"learner": {"offload_optimizer": True}}, "learner: offload_optimizer=true needs zero_stage=1 or more"),
        ({"policy": {"model": "m", "quantization": "int8"}}, "policy.quantization='int8' is refused"),
    ],
)
def test_a_bad_setting_gets_one_clear_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_recipe(recipe_settings(**settings), "bad.yaml")
    assert str(refused.value).count("\n") == 0, str(refused.value)
    assert sentence in str(refused.value)
    assert str(refused.value).startswith("bad.yaml: ")


@pytest.mark.parametrize("name", OBJECTIVE_NAMES)
def test_every_objective_has_a_section_that_survives_being_saved(name: str) -> None:
    stored = {"sampler": {"replicas": 0}, "store": {"uri": "elsewhere"}} if name == "dpo" else {}
    recipe = parse_recipe(recipe_settings(objective={"name": name, "temperature": 0.2}, **stored), "x.yaml")
    assert recipe.objective.name == name
    assert parse_recipe(recipe.model_dump(mode="json"), "saved") == recipe


@pytest.mark.parametrize(
    ("objective", "proposal", "fixed"),
    [
        ("brain", None, False),
        ("brain", "fixed", True),
        ("brain-fixed-proposal", None, True),
        ("brain-fixed-proposal", "fixed", True),
        ("dpo-sft+iw+n", None, True),
        ("simpo", None, True),
        ("simpo", "updated", False),
        ("gdc++", None, False),
    ],
)
def test_whether_the_proposal_is_fixed(objective: str, proposal: str | None, fixed: bool) -> None:
    settings = recipe_settings(objective={"name": objective}, algorithm={"proposal": proposal})
    assert Recipe.model_validate(settings).has_fixed_proposal == fixed


def test_every_wrong_setting_is_named_at_once() -> None:
    with pytest.raises(UserError) as refused:
        parse_recipe(recipe_settings(sampling={"n": 0, "max_tokens": 0}), "bad.yaml")
    assert len(str(refused.value).splitlines()) == 2


def test_overrides_replace_and_create(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(recipe_settings()))
    recipe = load_recipe(path, ["learner.learning_rate=3e-4", "sampling.n=4", "data.path=../here:there"])
    assert (recipe.learner.learning_rate, recipe.sampling.n, recipe.data.path) == (3e-4, 4, "../here:there")
    with pytest.raises(UserError, match="is not a valid override"):
        load_recipe(path, ["sampling.n"])
    with pytest.raises(UserError, match="name is a value, not a section"):
        load_recipe(path, ["name.x=1"])


def test_a_value_that_yaml_cannot_hold_is_refused_in_a_file_and_text_in_an_override(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(recipe_settings()))
    assert load_recipe(path, ["name=2024-13-45"]).name == "2024-13-45"
    problems = {
        "2024-13-45": r"month must be in 1\.\.12",
        "9" * 5000: r"Exceeds the limit \(4300",
        "!!bool maybe": "'maybe' is not a valid bool",
        "!!timestamp soon": "'soon' is not a valid timestamp",
        "!!int ''": "'' is not a valid int",
    }
    for value, problem in problems.items():
        path.write_text(f"name: a\ndata:\n  path: {value}\n")
        with pytest.raises(UserError, match=rf"^\S+x\.yaml is not valid YAML: line 3, column 9: {problem}[^;\n]*\.$"):
            load_recipe(path)


def test_a_recipe_that_is_missing_or_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shipped recipes are .*demo.yaml"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="is not a recipe"):
        load_recipe(tmp_path / "list.yaml")
    (tmp_path / "torn.yaml").write_text("a: [1\n")
    with pytest.raises(
        UserError, match=r"torn\.yaml is not valid YAML: line 2, column 1: expected ',' or '\]', but got"
    ):
        load_recipe(tmp_path / "torn.yaml")


def test_operational_settings_do_not_change_the_run() -> None:
    base = Recipe.model_validate(recipe_settings())
    scaled = Recipe.model_validate(
        recipe_settings(
            sampler={"replicas": 4},
            scorers={"reward": {"kind": "tldr", "path": "reward", "replicas": 3}},
            run={"dir": "elsewhere"},
            timeouts={"lease": 5},
        )
    )
    assert recipe_digest(base) == recipe_digest(scaled)
    changed = Recipe.model_validate(recipe_settings(seed=1, sampling={"n": 8}))
    assert recipe_digest(base) != recipe_digest(changed)
    lines = differing_settings(base.model_dump(mode="json"), changed.model_dump(mode="json"))
    assert lines == ["sampling.n: 32 there, 8 now", "seed: 0 there, 1 now"]


def test_valid_names_walk_through_optional_sections_and_named_scorers() -> None:
    assert "kind" in valid_names(["prepare"])
    assert "replicas" in valid_names(["scorers", "anything"])
    assert valid_names(["no", "such"]) == []


def test_world_without_prepare_is_refused() -> None:
    recipe = Recipe.model_validate(recipe_settings(policy={"model": "{world}/policy"}))
    with pytest.raises(UserError, match="no `prepare` section"):
        with_world(recipe, None)


def test_truncated_sampling_is_taken_from_who_means_it_and_stop_strings_leave_tokens_the_policy_s():
    allowed = {"allow_truncated_support": True}
    stopped = Recipe.model_validate(recipe_settings(sampling={"stop": ["\n"], **allowed}))
    assert stopped.sampling.truncating() == ["stop"]
    assert stopped.sampling.tokens_are_the_policy_s
    narrowed = Recipe.model_validate(recipe_settings(sampling={"stop": ["\n"], "min_p": 0.1, **allowed}))
    assert narrowed.sampling.truncating() == ["min_p", "stop"]
    assert not narrowed.sampling.tokens_are_the_policy_s


@pytest.mark.parametrize(
    ("timeout", "lease", "groups"), [(60, 1800, 13), (10, 1800, 16), (800, 1800, 1), (60, 14400, 16), (5, 12, 1)]
)
def test_a_call_of_a_function_has_as_many_groups_as_there_is_time_for(
    timeout: float, lease: float, groups: int
) -> None:
    truth = {"kind": "function", "function": "truth:length", "timeout": timeout}
    recipe = Recipe.model_validate(recipe_settings(scorers={"reward": truth}, timeouts={"lease": lease}))
    assert recipe.groups_per_call("reward") == groups
    assert recipe.groups_per_call("prior") == recipe.sampler.lease_prompts


def test_a_function_with_more_time_than_its_call_is_refused_with_what_to_set() -> None:
    truth = {"kind": "function", "function": "truth:length", "timeout": 900}
    with pytest.raises(ValueError, match=r"set the timeout to 810 at most, or raise timeouts\.lease"):
        Recipe.model_validate(recipe_settings(scorers={"reward": truth}))


@pytest.mark.parametrize(
    ("file", "digest"),
    [
        ("demo.yaml", "1d9ff1fb68c2c60cc4f12368cda520b6"),
        ("compare-demo.yaml", "5b169ebd657a691f38b9bf638643eef6"),
        ("hh-mini.yaml", "3b130b43308134744838d1cb54768c7a"),
        ("tldr-mini.yaml", "a42cb7f43a456de6615f11179e855aea"),
    ],
)
def test_the_identity_of_a_run_survives_changes_of_the_code(file: str, digest: str) -> None:
    """Else runs that were begun before such a change could not be resumed."""
    assert recipe_digest(load_recipe(ROOT / "deploy/recipes" / file)) == digest


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lr": 1e-5}, "unknown setting lr; did you mean learner.learning_rate?"),
        ({"learner": {"batch_size": 4}}, "unknown setting learner.batch_size; did you mean algorithm.batch_prompts?"),
        ({"epochs": 3}, "did you mean algorithm.rounds?"),
        ({"beta": 0.1}, "did you mean objective.temperature?"),
        ({"objective": {"name": "dpo-sft", "betta": 1}}, "did you mean objective.beta?"),
        ({"sampling": {"num_generations": 4}}, "did you mean sampling.n?"),
        ({"sampling": {"max_new_tokens": 4}}, "did you mean sampling.max_tokens?"),
        ({"objective": {"name": "grpo"}}, "objective.name='grpo' is not implemented; the closest is brain, which"),
        ({"objective": {"name": "grpo"}}, "rloo and gspo are clipped policy gradients"),
        ({"objective": {"name": "PPO"}}, "is not implemented; the closest is brain, which"),
        ({"objective": {"name": "dapo"}}, "is not implemented; the closest is brain, which"),
    ],
)
def test_habits_of_other_libraries_are_understood(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        parse_recipe(recipe_settings(**settings), "other.yaml")


def test_settings_of_other_libraries_are_answered_with_settings_that_exist() -> None:
    names = {setting.name for section in all_sections() for setting in section.settings}
    sections = {name.rpartition(".")[0] for name in names}
    assert set(validation._ELSEWHERE.values()) <= names | sections


def test_contradictions_are_named_together_also_beside_settings_that_are_refused() -> None:
    settings = recipe_settings(
        sampling={"n": 0, "top_p": 0.5, "temperature": 2},
        objective={"reward": "none"},
        algorithm={"batch_prompts": 9, "prompts_per_round": 8},
        store={"replay": True},
    )
    with pytest.raises(UserError) as refused:
        parse_recipe(settings, "bad.yaml")
    lines = str(refused.value).splitlines()
    assert [line.removeprefix("bad.yaml: ").partition(" ")[0] for line in lines] == [
        "sampling.n=0",
        "sampling:",
        "sampling:",
        "objective.reward='none'",
        "store.replay",
        "algorithm.batch_prompts=9",
    ]
    settings["sampling"]["n"] = 2
    with pytest.raises(UserError) as refused:
        parse_recipe(settings, "bad.yaml")
    assert len(str(refused.value).splitlines()) == 5


def test_a_contradiction_that_a_refused_setting_may_cause_is_not_reported() -> None:
    settings = recipe_settings(sampler={"replicas": -1}, store={"uri": "u", "replay": True})
    with pytest.raises(UserError) as refused:
        parse_recipe(settings, "bad.yaml")
    assert len(str(refused.value).splitlines()) == 1  # without -1, replicas=1 would contradict store.replay
