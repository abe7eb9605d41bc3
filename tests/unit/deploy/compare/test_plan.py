import argparse
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from brain_align.common.errors import UserError
from brain_align.deploy.cli import main
from brain_align.deploy.commands import compare as command
from brain_align.deploy.commands.arguments import parsed
from brain_align.deploy.compare.plan.layout import ComparisonDirectory, check_comparison, save_comparison
from brain_align.deploy.compare.plan.methods import method_recipe, parse_method, refuse_equal
from brain_align.deploy.compare.plan.request import KL_BUDGETS, Options, Request, parse_request
from brain_align.deploy.compare.plan.saved_request import read_request, save_request
from brain_align.deploy.compare.plan.training_runs import at_edge, best_rate, run_recipe, seed_recipe, seed_run_id
from brain_align.deploy.compare.results.choices import chosen_rates, unfinished
from brain_align.deploy.run.recipe_files import load_recipe
from tests.locations import ROOT
from tests.unit.deploy.compare.compared_runs import BRAIN, WARM, finish_run, finished_comparison, plan, recipe


def request(**options: Any) -> Request:
    return parse_request(recipe(), Options(**{"objectives": "brain", "seeds": "0", **options}))


def test_every_method_has_the_same_grid_on_the_first_seed_and_one_rate_on_the_others() -> None:
    work = plan(seeds=(3, 4), rates=(1e-4, 1e-3), sizes=(2, 4))
    assert [(run.learning_rate, run.seed) for run in work.grid(BRAIN, 8)] == [(1e-4, 3), (1e-3, 3)]
    assert work.grid(WARM, 8) == [type(run)(WARM, run.learning_rate, run.seed, run.n) for run in work.grid(BRAIN, 8)]
    chosen = work.chosen(BRAIN, 8, 1e-3)
    assert [(run.seed, run.n, run.learning_rate) for run in chosen] == [(3, 8, 1e-3), (4, 8, 1e-3)]
    assert (work.sizes(BRAIN), work.sizes(WARM)) == ([8, 2, 4], [8])
    assert work.fewest() == 2 + 1


def test_smaller_groups_have_a_grid_of_their_own() -> None:
    work = plan(seeds=(3, 4), rates=(1e-4, 1e-3), sizes=(2,))
    assert [(run.n, run.learning_rate, run.seed) for run in work.grid(BRAIN, 2)] == [(2, 1e-4, 3), (2, 1e-3, 3)]
    assert [(run.n, run.seed) for run in work.chosen(BRAIN, 2, 1e-4)] == [(2, 3), (2, 4)]


def test_cells_differ_in_what_they_are_about_and_in_nothing_else(tmp_path: Path) -> None:
    directory, base = ComparisonDirectory(tmp_path), recipe()
    (first, second), warm = plan().grid(BRAIN, 8), plan().grid(WARM, 8)[0]
    one, two, three = (run_recipe(base, run, directory) for run in (first, second, warm))
    assert (one.learner.learning_rate, two.learner.learning_rate) == (1e-4, 1e-3)
    assert (one.objective.temperature, three.objective.temperature) == (1.0, 2.0)
    assert len({one.run.dir, two.run.dir, three.run.dir}) == 3
    same = {"run": base.run, "learner": base.learner, "objective": base.objective}
    assert one.model_copy(update=same) == two.model_copy(update=same) == three.model_copy(update=same) == base


def test_a_seed_s_groups_are_the_same_whatever_is_learned_from_them(tmp_path: Path) -> None:
    directory = ComparisonDirectory(tmp_path)
    of_seed = seed_run_id(seed_recipe(recipe(), 1, directory))
    assert of_seed == seed_run_id(seed_recipe(recipe(objective={"temperature": 3.0}), 1, directory))
    assert of_seed != seed_run_id(seed_recipe(recipe(), 2, directory))
    assert of_seed != seed_run_id(seed_recipe(recipe(algorithm={"rounds": 9}), 1, directory))


def test_a_method_takes_from_the_recipe_what_is_no_other_method_s() -> None:
    base = recipe(objective={"name": "dpo-sft", "beta": 0.7, "temperature": 0.2, "reward": "reward"})
    own = {label: method_recipe(base, parse_method(label)).objective for label in ("brain", "ipo:tau=0.3", "dpo-sft")}
    assert own["brain"].model_dump() == {
        "name": "brain",
        "reward": "reward",
        "reward_transform": "none",
        "temperature": 0.2,
        "truncated": "keep",
        "truncated_penalty": None,
        "goodness": "bradley-terry",
    }
    assert own["ipo:tau=0.3"].model_dump(include={"tau", "temperature"}) == {"tau": 0.3, "temperature": 0.2}
    assert own["dpo-sft"].model_dump(include={"beta"}) == {"beta": 0.7}
    assert parse_method("my.losses:mine:options={}").objective == "my.losses:mine"


def test_a_method_of_human_pairs_needs_them_and_samples_no_groups() -> None:
    with pytest.raises(
        UserError,
        match=r"--objectives dpo trains on human preference pairs; .* with --pairs, or choose dpo-sft",
    ):
        method_recipe(recipe(), parse_method("dpo"))
    made = method_recipe(recipe(objective={"reward": "reward"}), parse_method("dpo"), pairs="/pairs")
    assert (made.objective.reward, made.sampler.replicas, made.store.uri) == ("human", 0, "/pairs")


def test_the_best_rate_wins_most_and_then_has_the_higher_reward() -> None:
    assert best_rate({1e-3: (50.0, 1.0), 1e-4: (50.0, 2.0), 1e-2: (40.0, 9.0)}) == 1e-4
    assert best_rate({1e-3: (50.0, 1.0), 1e-4: (50.0, 1.0)}) == 1e-4
    assert best_rate({}) is None


def test_a_rate_at_the_edge_is_told_apart() -> None:
    assert [at_edge(rate, [1, 2, 3]) for rate in (1, 2, 3)] == [True, False, True]
    assert not at_edge(1, [1])


def test_finished_cells_are_not_trained_again_and_missing_ones_are(tmp_path: Path) -> None:
    work = plan()
    directory = finished_comparison(tmp_path, work)
    assert chosen_rates(directory, work, BRAIN, 8) == [1e-3]
    assert not unfinished(directory, work)
    assert unfinished(directory, plan(seeds=(0, 1, 2)))
    assert unfinished(directory, plan(sizes=(4,)))
    directory.examination(work.grid(WARM, 8)[1].name).unlink()
    assert unfinished(directory, work)


def test_a_failed_rate_is_out_of_the_choice(tmp_path: Path) -> None:
    work, directory = plan(), ComparisonDirectory(tmp_path)
    assert chosen_rates(directory, work, BRAIN, 8) == []
    finish_run(directory, work.grid(BRAIN, 8)[0], validation=10.0, wins=4)
    assert chosen_rates(directory, work, BRAIN, 8) == [1e-4]
    assert unfinished(directory, work)


def test_options_are_read() -> None:
    asked = request(objectives="brain, brain:temperature=2", seeds="0,7", learning_rates="1e-3,1e-4", group_sizes="4,2")
    assert [method.label for method in asked.methods] == ["brain", "brain:temperature=2"]
    assert (asked.seeds, asked.learning_rates, asked.group_sizes) == ((0, 7), (1e-4, 1e-3), (2, 4))
    assert asked.swept == ("brain",)
    assert "dpo" not in [method.label for method in request(objectives=None).methods]
    assert [method.label for method in request(objectives=None, pairs="pairs").methods][:2] == ["dpo", "dpo-sft"]
    assert request(learning_rates="0.0012345").learning_rates == (0.0012345,)
    assert request().learning_rates == (3.33e-4, 1e-3, 3e-3)  # a third, once and thrice the recipe's


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"objectives": "brian"}, "unknown objective 'brian'; did you mean brain?"),
        ({"objectives": "brain:hot"}, "'hot' in 'brain:hot' is not a setting; write NAME:setting=value"),
        ({"objectives": "brain,brain"}, "--objectives names brain twice"),
        ({"objectives": " "}, "--objectives is empty"),
        ({"seeds": "0,one"}, "--seeds 0,one: expected numbers separated by commas"),
        ({"seeds": ""}, "--seeds : expected one or more numbers"),
        ({"objectives": "brain:temperature=2,brain: temperature=2"}, "--objectives names brain_temperature=2 twice"),
        ({"learning_rates": "1e-3,1.0000001e-3"}, "--learning-rates names 0.001 twice"),
        (
            {"learning_rates": "0"},
            "--learning-rates 0: expected one or more numbers, all of them above 0",
        ),
        ({"group_sizes": "8"}, r"--n 8: groups have n=8 outputs .* choose numbers from 2 to 7"),
        ({"learning_rates": "1e-3,nan"}, "--learning-rates 1e-3,nan: nan is not a finite number"),
        ({"learning_rates": "1e400"}, "--learning-rates 1e400: inf is not a finite number"),
        ({"group_sizes": "4", "swept": "dpo"}, "--n-objectives: 'dpo' is not among --objectives"),
        ({"group_sizes": "4", "swept": ""}, "--n-objectives is empty"),
        ({"group_sizes": "4", "swept": "brain,brain"}, "--n-objectives names brain twice"),
        ({"swept": "brain"}, "--n-objectives brain: no group sizes are given .* such as --n 2,4"),
        (
            {"objectives": "rso,ipo", "group_sizes": "2"},
            "--n 2 applies to dpo-sft and brain, .* with --n-objectives",
        ),
        (
            {"objectives": "brain:name=dpo-sft"},
            "'brain:name=dpo-sft' renames its objective; write dpo-sft",
        ),
        ({"objectives": "brain:temperature=1:temperature=2"}, "sets temperature twice; write it once"),
        ({"objectives": "my.losses:mine:gain=1:gain=2"}, "sets gain twice"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_sentence(options: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        request(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("twins", ["brain,brain:temperature=1", "rso,ipo:tau=0.1,ipo:tau=0.10"])
def test_one_method_written_in_two_ways_is_refused(twins: str) -> None:
    first, second = twins.split(",")[-2:]
    with pytest.raises(UserError, match=rf"--objectives: {first} and {second} are the same objective .* name only one"):
        refuse_equal(recipe(), [parse_method(name) for name in twins.split(",")])


def test_methods_that_differ_in_a_setting_or_in_their_name_may_stand_together() -> None:
    names = ("brain", "brain:temperature=2", "brain-fixed-proposal", "dpo-sft+iw+n", "dpo-sft", "dpo-sft:beta=0.5")
    refuse_equal(recipe(), [parse_method(name) for name in names])
    with pytest.raises(UserError, match="brain and brain:temperature=2 are the same objective"):
        refuse_equal(recipe(objective={"temperature": 2.0}), [parse_method(name) for name in names])


def test_objectives_without_the_usual_swept_ones_are_trained_at_other_sizes_where_asked() -> None:
    assert request(objectives="rso,ipo", group_sizes="4", swept="ipo").swept == ("ipo",)


def test_a_setting_that_an_objective_does_not_have_is_refused(tmp_path: Path) -> None:
    method = parse_method("brain:temprature=2")
    run = type(plan().grid(BRAIN, 8)[0])(method, 1e-3, 0, 8)
    with pytest.raises(UserError, match=r"unknown setting objective\.temprature; did you mean objective\.temperature"):
        run_recipe(recipe(), run, ComparisonDirectory(tmp_path))


def test_the_directory_of_another_comparison_is_refused_and_its_own_taken_up(tmp_path: Path) -> None:
    directory = ComparisonDirectory(tmp_path / "out")
    check_comparison(directory, recipe())
    save_comparison(directory, recipe(), {"prompts": "digest"})
    # what each run has of its own does not matter
    changed = recipe(seed=5).model_copy(update={"learner": recipe().learner.model_copy(update={"learning_rate": 1.0})})
    check_comparison(directory, changed)
    with pytest.raises(UserError, match=r"comparison of another recipe.*\n  algorithm\.rounds: 5 there, 9 now"):
        check_comparison(directory, recipe(algorithm={"rounds": 9}))
    with pytest.raises(UserError, match="started with the prompts digest, which is now other"):
        save_comparison(directory, recipe(), {"prompts": "other"})
    save_comparison(directory, recipe(), {"prompts": "digest", "pairs": "people's"})  # dpo came later
    save_comparison(directory, recipe(), {"prompts": "digest"})
    with pytest.raises(UserError, match="started with the pairs people's, which is now others'"):
        save_comparison(directory, recipe(), {"prompts": "digest", "pairs": "others'"})
    for text in ("{", "[]"):
        directory.facts.write_text(text)
        with pytest.raises(UserError, match=r"inputs\.json does not hold the inputs of a comparison; restore"):
            save_comparison(directory, recipe(), {"prompts": "digest"})
        assert directory.facts.read_text() == text


def test_no_run_at_a_time_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "deploy/recipes/compare-demo.yaml", "--parallel", "0"]) == 2
    assert "--parallel 0: at least one training run must run at a time" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed: 0\n", "setting name is required and missing"),
        ("seed: [0\n", "is not valid YAML"),
        ("", "it must hold `name: value` settings"),
    ],
)
def test_a_truncated_or_foreign_configuration_is_named_with_a_remedy(tmp_path: Path, text: str, problem: str) -> None:
    directory = ComparisonDirectory(tmp_path)
    directory.config.write_text(text)
    with pytest.raises(UserError, match=problem) as caught:
        check_comparison(directory, recipe())
    said = str(caught.value)
    assert said.startswith(f"{directory.config} does not hold the recipe of a comparison (")
    assert said.endswith("); restore the file, or choose another directory with --out.")
    assert "\n" not in said
    assert said.count(str(directory.config)) == 1


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"is not a comparison \(it has thesis\.tex, but no compare\.yaml\)"):
        check_comparison(ComparisonDirectory(tmp_path), recipe())
    with pytest.raises(UserError, match="is a file, not a comparison; name a new or empty directory with --out"):
        check_comparison(ComparisonDirectory(tmp_path / "thesis.tex"), recipe())


def test_what_is_asked_for_is_added_to_what_was_asked_for(tmp_path: Path) -> None:
    first = request(objectives="dpo,rso", seeds="3,4", learning_rates="1e-3,1e-4", pairs="s3://pairs")
    save_request(tmp_path / "request.json", first)
    begun = read_request(tmp_path / "request.json")
    assert begun == first
    again = parse_request(recipe(), Options(), begun)
    assert again == first, "the same command without options goes on with all of it"
    wider = Options(objectives="rso,ipo", seeds="5,3", learning_rates="1e-2", group_sizes="4", swept="ipo")
    more = parse_request(recipe(), wider, begun)
    assert [method.label for method in more.methods] == ["dpo", "rso", "ipo"]
    assert (more.seeds, more.learning_rates) == ((3, 4, 5), (1e-4, 1e-3, 1e-2)), "rates are still chosen on seed 3"
    assert (more.group_sizes, more.swept, more.pairs) == ((4,), ("ipo",), "s3://pairs")
    most = parse_request(recipe(), Options(group_sizes="2", swept="rso"), more)
    assert (most.group_sizes, most.swept) == ((2, 4), ("ipo", "rso"))
    assert parse_request(recipe(), Options(group_sizes="2"), more).swept == ("ipo",)
    assert parse_request(recipe(), Options(objectives="rso,brain"), more).swept == ("ipo", "brain"), "brain is new"
    same = parse_request(recipe(), Options(learning_rates="1.0000001e-3"), first)
    assert same.learning_rates == first.learning_rates, "a run's directory is named by six digits"


def test_kl_budgets_are_added_and_a_comparison_that_was_begun_without_any_has_none(tmp_path: Path) -> None:
    assert request().kl_budgets == KL_BUDGETS
    begun = request(kl_budgets="2,0.5")
    assert begun.kl_budgets == (0.5, 2.0)
    assert parse_request(recipe(), Options(kl_budgets="1,2.0"), begun).kl_budgets == (0.5, 1.0, 2.0)
    without = request(kl_budgets="none")
    assert without.kl_budgets == () == parse_request(recipe(), Options(), without).kl_budgets
    with pytest.raises(UserError, match=r"--kl-budgets none: this comparison has the budgets 0\.5, 2; omit"):
        parse_request(recipe(), Options(kl_budgets="none"), begun)
    save_request(tmp_path / "request.json", begun)
    saved = json.loads((tmp_path / "request.json").read_text())
    older = {name: value for name, value in saved.items() if name not in ("kl_budgets", "read", "read_seed")}
    (tmp_path / "request.json").write_text(json.dumps(older))
    old = read_request(tmp_path / "request.json")
    assert old is not None and parse_request(recipe(), Options(), old).kl_budgets == ()


@pytest.mark.parametrize("text", ["0", "1,-2", "1,one", ""])
def test_kl_budgets_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--kl-budgets"):
        request(kl_budgets=text)


def test_the_number_of_outputs_to_read_grows_and_needs_a_budget(tmp_path: Path) -> None:
    begun = request(read=3)
    save_request(tmp_path / "request.json", begun)
    assert read_request(tmp_path / "request.json") == begun
    assert json.loads((tmp_path / "request.json").read_text())["read_seed"] == 0
    assert [parse_request(recipe(), Options(read=read), begun).read for read in (None, 2, 4)] == [3, 3, 4]
    for read in (0, recipe().evaluation.test_prompts + 1):
        with pytest.raises(UserError, match=rf"--read {read}: the outputs of 1 to "):
            request(read=read)
    with pytest.raises(UserError, match="--read 3: the outputs to read are those of the best versions within a KL"):
        request(read=3, kl_budgets="none")


def test_pairs_bring_dpo_and_are_refused_where_nothing_trains_on_them() -> None:
    begun = request(objectives=None)
    more = parse_request(recipe(), Options(pairs="pairs"), begun)
    assert [method.label for method in more.methods] == [*(method.label for method in begun.methods), "dpo"]
    assert parse_request(recipe(), Options(pairs="pairs"), more).methods == more.methods
    with pytest.raises(
        UserError, match=r"--pairs pairs: none of --objectives \(brain\) trains on human preference pairs"
    ):
        request(objectives="brain", pairs="pairs")


def test_a_request_that_nobody_has_written_is_none_and_a_foreign_one_is_named(tmp_path: Path) -> None:
    assert read_request(tmp_path / "request.json") is None
    save_request(tmp_path / "request.json", request())
    good = re.sub(r"\s", "", (tmp_path / "request.json").read_text())
    strange = [good.replace('"brain"', "1"), good.replace("[0]", '["x"]'), good.replace("[0]", '"012"')]
    assert good not in strange
    for text in ("{", "[]", '{"objectives": ["brain"]}', *strange):
        (tmp_path / "request.json").write_text(text)
        with pytest.raises(UserError, match=r"request\.json was not written by brain compare; remove it and give all"):
            read_request(tmp_path / "request.json")


def test_the_command_at_the_head_of_the_recipe_compares_the_paper_s_methods_and_policy_gradients() -> None:
    file = ROOT / "deploy" / "recipes" / "compare-smollm.yaml"
    comments = [line.removeprefix("#") for line in file.read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
    (printed,) = re.findall(r"brain compare ((?:.*\\\n)*.*)", "\n".join(comments))
    parser = argparse.ArgumentParser()
    command.add(parser)
    options = parsed(parser, shlex.split(printed.replace("\\\n", " ")))
    labels = options.objectives.split(",")
    assert {"dpo-sft", "dpo-sft+iw", "dpo-sft+iw+n", "brain", "brain-no-baseline", "rloo", "gspo"} <= set(labels)
    base = load_recipe(file, options.overrides)
    assert [method_recipe(base, parse_method(label)).objective.name for label in labels]
