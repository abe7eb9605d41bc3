import sys
from pathlib import Path

import numpy as np
import pytest

import brain_align
from brain_align.common.schemas import GROUPS, batch_from_rows
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.cli import main
from tests.unit.deploy.commands.test_export import a_run, logprobs
from tests.unit.factories import group, output, scores
from tests.unit.stored_runs import REWARDS, N, expected_alpha, store_rows, stored_run

γ = 0.5


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return stored_run(tmp_path, γ)


def of_group(rows, name):
    return rows[rows.group_id == name]


def test_one_row_per_output_with_its_reward_and_weights(run):
    rows = brain_align.open_store(run).to_pandas()
    assert list(zip(rows.group_id, rows.output, strict=True)) == [
        (name, number) for name in (*REWARDS, "bb04") for number in range(N)
    ]
    for name in ("aa01", "ba03"):
        known = of_group(rows, name)
        assert known.reward.tolist() == REWARDS[name]
        assert known.alpha.tolist() == pytest.approx(expected_alpha(name, γ))
        assert known.prior_logprob.tolist() == known.proposal_logprob.tolist() == [-0.5, -1.5, -2.5, -3.5]
    assert of_group(rows, "ba03")[["text", "round"]].values.tolist() == [[f"ba03 says {n}", 1] for n in range(N)]
    assert rows.trained_steps.map(list).tolist() == [[1]] * N + [[1, 2]] * N + [[]] * 2 * N


def test_what_is_not_known_is_null_and_takes_no_part(run):
    rows = brain_align.open_store(run).to_pandas()
    partly = of_group(rows, "ab02")
    assert partly.alpha.isna().tolist() == partly.reward.isna().tolist() == [False, True, False, False]
    assert partly.alpha.sum() == pytest.approx(1)
    assert partly.error_reward.tolist() == ["output 1 is odd"] * N
    unscored = of_group(rows, "bb04")
    assert unscored[["reward", "prior_logprob", "alpha"]].isna().all(axis=None)
    assert rows[["policy_logprob", "beta"]].isna().all(axis=None), "no store holds what they need"


def test_alpha_follows_from_the_columns_beside_it(run):
    store = SampleStore(run / "store", None)
    store.append_scores(scores("prior", {"bb04": [-3.0, -0.25, -7.0, -1.0]}, gold_value=None))
    store.append_scores(scores("reward", {"bb04": [0.1, 0.9, 0.4, 0.2]}))
    rows = of_group(brain_align.open_store(run).to_pandas(), "bb04")
    weights = np.exp(rows.reward / γ + rows.prior_logprob - rows.proposal_logprob)
    assert rows.alpha.tolist() == pytest.approx((weights / weights.sum()).tolist(), rel=1e-6)


def test_a_bare_store_has_the_papers_temperature(run):
    rows = brain_align.open_store(run / "store").to_pandas()
    assert of_group(rows, "aa01").alpha.tolist() == pytest.approx(expected_alpha("aa01", 1.0))


def test_recomputed_proposals_take_the_place_of_the_samplers(run):
    again: dict[str, list[float | None]] = {"aa01": [-1.0, -2.0, -3.0, None], "ab02": [None] * N}
    SampleStore(run / "store", None).append_scores(scores("proposal", again, gold_value=None))
    rows = brain_align.open_store(run).to_pandas()
    assert of_group(rows, "aa01").proposal_logprob.tolist()[:3] == [-1.0, -2.0, -3.0]
    assert of_group(rows, "aa01").alpha.isna().tolist() == [False, False, False, True]
    assert of_group(rows, "ab02").proposal_logprob.isna().all(), "it could not be computed, and is not made up"
    assert of_group(rows, "ba03").proposal_logprob.tolist() == [-0.5, -1.5, -2.5, -3.5]


def test_no_group_is_there_twice_also_after_compaction(run):
    before = brain_align.open_store(run).to_arrow()
    twice = [SampleStore(run / "store", None) for _ in range(2)]
    for number, store in enumerate(twice):  # each writer has opened the store before the other appends
        store.append_groups(batch_from_rows(GROUPS, [{**store_rows("bb04"), "group_id": "cc05", "seed": number}]))
    live = brain_align.open_store(run)
    rows = live.to_arrow()
    assert rows.num_rows == before.num_rows + N
    assert rows.slice(0, before.num_rows) == before
    assert len(set(rows["seed"].to_pylist()[-N:])) == 1, "both wrote it, and one of the two counts"
    assert main(["store", "compact", str(run), "--grace", "0s"]) == 0
    assert brain_align.open_store(run).to_arrow() == rows == live.to_arrow()


def test_damaged_parts_are_named_and_the_rest_is_there(run):
    part = sorted((run / "store/groups").iterdir())[1]
    part.write_bytes(part.read_bytes()[:100])
    samples = brain_align.open_store(run)
    with pytest.warns(UserWarning, match=f"left out, as it is damaged: .*{part.name}"):
        rows = samples.to_arrow()
    assert sorted(set(rows["group_id"].to_pylist())) == ["aa01", "ab02"]
    assert len(samples.damaged) == 1 and part.name in samples.damaged[0]


def test_arrow_pandas_and_polars_hold_the_same(run):
    samples = brain_align.open_store(run)
    table = samples.to_arrow()
    assert table.schema == samples.schema
    polars = samples.to_polars()
    assert polars.columns == table.column_names == samples.to_pandas().columns.tolist()
    assert polars["alpha"].to_list() == table["alpha"].to_pylist()


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_library_that_is_not_installed_is_named(run, library, monkeypatch):
    samples = brain_align.open_store(run)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(brain_align.UserError, match=f"to_{library} needs the package {library}, .*: pip install"):
        getattr(samples, f"to_{library}")()
    assert samples.to_arrow().num_rows


def test_a_store_with_nothing_in_it_is_an_empty_table(tmp_path):
    SampleStore(tmp_path / "store", "run")
    samples = brain_align.open_store(tmp_path / "store")
    assert samples.to_pandas().empty and samples.to_arrow().schema == samples.schema


def test_the_scorer_that_ranks_is_named_where_there_are_several(run):
    truth: dict[str, list[float | None]] = {
        name: [-value if value else value for value in values] for name, values in REWARDS.items()
    }
    SampleStore(run / "store", None).append_scores(scores("truth", truth))
    with pytest.raises(brain_align.UserError, match=r"has values of reward, truth; name one .*scorer=NAME"):
        brain_align.open_store(run / "store")
    assert brain_align.open_store(run).to_pandas().reward.tolist()[:N] == REWARDS["aa01"], "the run's objective's"
    rows = brain_align.open_store(run / "store", scorer="truth").to_pandas()
    assert rows.reward.tolist()[:N] == truth["aa01"]
    assert rows.score_reward.tolist()[:N] == REWARDS["aa01"]
    for place, scorer, sentence in ((run, "absent", "has no values of 'absent'"), (run / "no", None, "does not exist")):
        with pytest.raises(brain_align.UserError, match=sentence):
            brain_align.open_store(place, scorer=scorer)


def test_beta_is_that_of_a_published_version(tmp_path):
    directory, policy = a_run(tmp_path)
    with policy.disable_adapter():
        prior = logprobs(policy).tolist()
    sampled = [output([7, 8, 9], [prior[0], 0.0, 0.0]), output([10], [prior[1]])]
    rows = [group(name, prompt_token_ids=[3, 4], outputs=sampled) for name in ("a", "b")]
    SampleStore(directory.store, "run").append_groups(batch_from_rows(GROUPS, rows))
    samples = brain_align.open_store(directory.root)
    assert samples.to_pandas(policy=0).beta.tolist() == pytest.approx([0.5] * 4, abs=1e-5)
    trained = samples.to_pandas(policy=1)
    expected = logprobs(policy)
    assert trained.policy_logprob.tolist() == pytest.approx(expected.tolist() * 2, abs=1e-5)
    weights = np.exp(np.array(expected.tolist()) - prior)
    assert trained.beta.tolist() == pytest.approx((weights / weights.sum()).tolist() * 2, abs=1e-5)
    for place, version, sentence in (
        (directory.root, 7, "published versions 0 to 1"),
        (directory.store, 1, "name the"),
    ):
        with pytest.raises(brain_align.UserError, match=sentence):
            brain_align.open_store(place).to_arrow(policy=version)
