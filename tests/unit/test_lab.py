import json

import pytest
import torch

from deploy.cli import main
from deploy.lab.gradients import gradient_figures
from deploy.lab.training import Budget, train
from deploy.lab.world import METHODS, World, make_world

COUNTS = ["4", "8", "16", "32", "64"]
PLOTS = ["gradient_bias", "gradient_relative_variance", "gradient_variance", "kl_posterior_policy"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    directory = tmp_path_factory.mktemp("lab") / "out"
    threads = torch.get_num_threads()
    assert main(["lab", "--out", str(directory)]) == 0
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
def test_brain_ends_at_the_posterior_with_any_number_of_outputs(report, n):
    assert report["kl_posterior_policy"]["brain"][n] < 0.01
    for method, divergences in report["kl_posterior_policy_by_round"].items():
        assert divergences[n][0] > 0.3, method
        assert divergences[n][-1] == report["kl_posterior_policy"][method][n] < divergences[n][0] / 10, method
    ends = {method: by_count[n] for method, by_count in report["kl_posterior_policy"].items()}
    assert max(ends["brain"], ends["gdc++"]) < min(ends["dpg"], ends["brain-no-baseline"])


@pytest.mark.parametrize("method", METHODS)
def test_more_outputs_bring_the_policy_nearer(report, method):
    ends = report["kl_posterior_policy"][method]
    assert [ends[n] for n in ("2", "8", "32")] == sorted((ends[n] for n in ("2", "8", "32")), reverse=True)


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 0.75])
def test_brain_s_gradient_varies_least_away_from_the_optimum(report, progress):
    variance = by_place(report, "variance")
    for n in COUNTS:
        for other in ("gdc++", "dpg", "brain-no-baseline"):
            assert variance[progress, "brain", n] < variance[progress, other, n], (n, other)
    assert report["gradient_variance"]["brain"]["8"] == variance[0.0, "brain", "8"]


def test_only_self_normalised_estimates_are_biased_and_less_with_more_outputs(report):
    bias, error = by_place(report, "bias"), by_place(report, "bias_error")
    for progress in (0.0, 0.5):
        for n in ("2", *COUNTS):
            for method in ("dpg", "gdc++"):
                place = progress, method, n
                assert bias[place] < 3 * error[place], place
        brain = [bias[progress, "brain", n] for n in ("2", *COUNTS)]
        assert brain == sorted(brain, reverse=True)
        assert brain[0] > 0.5
        assert brain[-1] < 0.1


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
    divergences = train(world, method, 4, budget, seed=1)
    assert divergences[-1] < divergences[0]
    assert train(shifted, method, 4, budget, seed=1) == pytest.approx(divergences, rel=1e-6)


def test_one_seed_gives_one_world():
    first, again, other = make_world(1), make_world(1), make_world(2)
    assert torch.equal(first.rewards, again.rewards)
    assert not torch.equal(first.rewards, other.rewards)
    assert first.kl_to_posterior(first.log_posterior) == pytest.approx(0, abs=1e-12)
    assert set(METHODS) == {"brain", "brain-no-baseline", "dpg", "gdc++"}


def test_bad_places_are_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["lab", "--out", str(tmp_path / "file")]) == 2
    assert "is a file; name a directory" in capsys.readouterr().err
    assert main(["lab", "--out", str(tmp_path / "out"), "--seed", "-1"]) == 2
    assert "--seed -1 is negative" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
