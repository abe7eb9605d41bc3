import json
from itertools import product
from statistics import geometric_mean

import pytest
import torch

from brain_align.deploy.cli import main
from brain_align.deploy.lab.figures import gradient_figures
from brain_align.deploy.lab.training import Budget, train
from brain_align.deploy.lab.world import METHODS, World, draw, make_world
from brain_align.learner.objectives.catalogue import make_objective

pytestmark = pytest.mark.timeout(300)  # the laboratory takes 20 s of a core

WORLDS = 3
COUNTS = ["4", "8", "16", "32", "64"]
PLOTS = ["gradient_bias", "gradient_relative_variance", "gradient_variance", "kl_posterior_policy"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    directory = tmp_path_factory.mktemp("lab") / "out"
    threads = torch.get_num_threads()
    assert main(["lab", "--out", str(directory), "--seed", "5", "--worlds", str(WORLDS)]) == 0
    torch.set_num_threads(threads)
    return directory


@pytest.fixture(scope="module")
def report(lab):
    return json.loads((lab / "lab.json").read_text())


def by_place(report, field):
    return {(row["progress"], row["method"], str(row["n"])): row[field] for row in report["gradients"]}


def test_the_files(lab):
    names = {file.name for file in lab.iterdir()}
    assert names == {"lab.json", *(f"{plot}.{kind}" for plot in PLOTS for kind in ("svg", "png"))}
    assert all((lab / f"{plot}.svg").read_text().count("<path") > 10 for plot in PLOTS)


@pytest.mark.parametrize("n", ["2", *COUNTS])
def test_brain_ends_at_the_posterior_of_every_world_with_any_number_of_outputs(report, n):
    assert report["seeds"] == [5, 6, 7]
    assert report["kl_posterior_policy_range"]["brain"][n][1] < 0.01
    for method, divergences in report["kl_posterior_policy_by_round"].items():
        assert divergences[n][0] > 0.3, method
        assert divergences[n][-1] == report["kl_posterior_policy"][method][n] < divergences[n][0] / 5, method
    ends = {method: by_count[n] for method, by_count in report["kl_posterior_policy"].items()}
    assert max(ends["brain"], ends["gdc++"]) < min(ends["dpg"], ends["brain-no-baseline"])


@pytest.mark.parametrize("method", METHODS)
def test_more_outputs_bring_the_policy_nearer(report, method):
    ends = report["kl_posterior_policy"][method]
    assert [ends[n] for n in ("2", "8", "32")] == sorted((ends[n] for n in ("2", "8", "32")), reverse=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", ["2", *COUNTS])
def test_each_method_is_reported_at_its_best_learning_rate_which_is_no_end_of_the_grid(report, method, n):
    tried = {
        row["learning_rate"]: row["kl_posterior_policy"]
        for row in report["trainings"]
        if (row["method"], str(row["n"])) == (method, n)
    }
    rates = report["budget"]["learning_rates"]
    assert list(tried) == rates
    means = {rate: geometric_mean(by_world) for rate, by_world in tried.items()}
    best = report["learning_rate"][method][n]
    assert best in rates[1:-1]
    assert report["kl_posterior_policy"][method][n] == pytest.approx(min(means.values())) == pytest.approx(means[best])
    assert report["kl_posterior_policy_range"][method][n] == [min(tried[best]), max(tried[best])]


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 0.75])
def test_brain_s_gradient_varies_least_away_from_the_optimum(report, progress):
    variance = by_place(report, "variance")
    below = {(row["progress"], row["other"], str(row["n"])): row["variance"] for row in report["brain_below"]}
    for n, other in product(COUNTS, ("gdc++", "dpg", "brain-no-baseline")):
        pairs = zip(variance[progress, "brain", n], variance[progress, other, n], strict=True)
        assert all(ours < theirs for ours, theirs in pairs), (n, other)
        assert below[progress, other, n] == WORLDS


@pytest.mark.parametrize(("name", "progress"), [("gradient_variance", 0.0), ("gradient_variance_halfway", 0.5)])
def test_variances_are_means_over_worlds(report, name, progress):
    for (place, method, n), by_world in by_place(report, "variance").items():
        if place == progress:
            assert report[name][method][n] == pytest.approx(sum(by_world) / WORLDS)
            assert report[f"{name}_range"][method][n] == [min(by_world), max(by_world)]
    assert {method: list(by_count) for method, by_count in report[name].items()} == {
        method: ["2", *COUNTS] for method in METHODS
    }


@pytest.mark.parametrize("world", range(WORLDS))
def test_only_self_normalised_estimates_are_biased_and_less_with_more_outputs(report, world):
    bias, error = by_place(report, "bias"), by_place(report, "bias_error")
    for progress in (0.0, 0.5):
        for place in product([progress], ["dpg", "gdc++"], ["2", *COUNTS]):
            assert bias[place][world] < 3 * error[place][world], place
        brain = [bias[progress, "brain", n][world] for n in ("2", *COUNTS)]
        assert brain == sorted(brain, reverse=True)
        assert brain[0] > 0.5
        assert brain[-1] < 0.15


@pytest.mark.parametrize("method", METHODS)
def test_trainings_side_by_side_are_those_that_an_objective_alone_would_have(method):
    rates, seed, n = (0.05, 0.2), 3, 4
    worlds = [make_world(0), make_world(1)]
    budget = Budget(rounds=2, updates=3, groups=5, learning_rates=rates)
    expected = trained_one_by_one(worlds, method, n, budget, seed)
    torch.testing.assert_close(train(worlds, method, n, budget, seed)[:, :, -1], expected, rtol=1e-9, atol=1e-12)


def trained_one_by_one(worlds, method, n, budget, seed):
    """The last KL of each, with an objective that observes its own training.  # [rates, worlds]"""
    generator = torch.Generator().manual_seed(seed)
    lanes = list(product(budget.learning_rates, worlds))
    policies = [world.log_prior.clone().requires_grad_() for _, world in lanes]
    optimizers = [torch.optim.Adam([policy]) for policy in policies]
    objectives = [make_objective(METHODS[method]) for _ in lanes]
    steps = budget.rounds * budget.updates
    for step in range(steps):
        if step % budget.updates == 0:
            proposals = torch.stack([policy.log_softmax(0).detach() for policy in policies])
        shaped = proposals.view(len(budget.learning_rates), len(worlds), -1)
        drawn = draw(shaped, budget.groups, n, generator).flatten(0, 1)
        for (rate, world), policy, optimizer, objective, proposal, outcomes in zip(
            lanes, policies, optimizers, objectives, proposals, drawn, strict=True
        ):
            values = world.groups(outcomes, policy.log_softmax(0), proposal, torch.tensor(0.0))
            objective.observe(values)
            optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
            optimizer.zero_grad()
            objective.losses(values).mean().backward()
            optimizer.step()
    ends = [
        world.kl_to_posterior(policy.log_softmax(0)).item() for (_, world), policy in zip(lanes, policies, strict=True)
    ]
    return torch.tensor(ends, dtype=torch.float64).view(len(budget.learning_rates), len(worlds))


@pytest.mark.parametrize("method", ["dpg", "gdc++"])
@pytest.mark.parametrize("n", [2, 8])
def test_the_variance_where_it_has_a_closed_form(method, n):
    # An estimate is the mean of n independent c(y)·(e_y − q), e_y the indicator of y.
    world = make_world(3)
    log_policy = world.log_policy(0.5)
    proposal, policy, posterior = world.log_prior.exp(), log_policy.exp(), world.log_posterior.exp()
    coefficient = posterior / proposal - (policy / proposal if method == "gdc++" else 0)
    squared_norm = 1 - 2 * policy + policy.square().sum()
    second_moment = (proposal * coefficient.square() * squared_norm).sum()
    expected = (second_moment - (posterior - policy).square().sum()) / n
    generator = torch.Generator().manual_seed(0)
    measured = gradient_figures(world, method, n, log_policy, world.log_prior, generator)
    assert measured.variance == pytest.approx(expected.item(), rel=0.05)


@pytest.mark.parametrize("method", ["dpg", "gdc++"])
def test_a_running_mean_of_z_takes_a_constant_of_the_rewards_away(method):
    world, budget = make_world(2), Budget(rounds=2, updates=5)
    shifted = World(world.log_prior, world.rewards + 3.0)
    divergences = train([world], method, 4, budget, seed=1)
    assert (divergences[..., -1] < divergences[..., 0]).any()
    torch.testing.assert_close(train([shifted], method, 4, budget, seed=1), divergences, rtol=1e-6, atol=0)


def test_one_seed_gives_one_world():
    first, again, other = make_world(1), make_world(1), make_world(2)
    assert torch.equal(first.rewards, again.rewards)
    assert not torch.equal(first.rewards, other.rewards)
    assert first.kl_to_posterior(first.log_posterior).item() == pytest.approx(0, abs=1e-25)
    posterior, prior = first.log_posterior.exp(), first.log_prior
    expected = (posterior * (first.log_posterior - prior)).sum()
    assert first.kl_to_posterior(prior).item() == pytest.approx(expected.item())
    assert set(METHODS) == {"brain", "brain-no-baseline", "dpg", "gdc++"}


def test_bad_places_are_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["lab", "--out", str(tmp_path / "file")]) == 2
    assert "is a file; name a directory" in capsys.readouterr().err
    assert main(["lab", "--out", str(tmp_path / "out"), "--seed", "-1"]) == 2
    assert "--seed -1 is negative" in capsys.readouterr().err
    assert main(["lab", "--out", str(tmp_path / "out"), "--worlds", "0"]) == 2
    assert "--worlds 0 is too few" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
