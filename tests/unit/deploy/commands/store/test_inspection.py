import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from brain_align.common.config.objective_sections import BrainSection
from brain_align.common.errors import DamagedPartError, UserError
from brain_align.common.statistics import Moments
from brain_align.common.store.flat_rows import readable
from brain_align.common.store.posterior import log_weights, self_normalised
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.cli import main
from brain_align.deploy.commands.store.show import find_group
from brain_align.deploy.run.stored_source import open_source
from brain_align.learner.objectives.brain import posterior_log_weights
from brain_align.learner.steps.batches import group_batch
from tests.unit.learner.train_batches import train_batch, train_row
from tests.unit.stored_runs import REWARDS, expected_alpha, stored_run


def listed(place: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    assert main(["store", "ls", str(place), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_ls_counts_rounds_states_and_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = stored_run(tmp_path)
    found = listed(directory, capsys)
    assert found["counts"] == {"groups": 4, "scores": 6, "steps": 2}
    first, second = found["rounds"]
    assert (first["round"], first["version"], first["groups"], first["outputs"], first["trained"]) == (0, 0, 2, 8, 2)
    assert first["tokens"] == 2 * (3 + 4 * 2)
    assert (second["groups"], second["trained"]) == (2, 0)
    assert second["scored"]["reward"]["groups"] == second["scored"]["prior"]["groups"] == 1
    parts = (directory / "store/groups").iterdir()
    assert found["bytes"]["groups"] == sum(part.stat().st_size for part in parts)
    assert found == {**listed(directory / "store", capsys), "uri": found["uri"]}


def test_ls_has_the_statistics_of_all_values_that_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reward = listed(stored_run(tmp_path), capsys)["scorers"]["reward"]
    values = [value for row in REWARDS.values() for value in row if value is not None]
    assert reward["values"]["mean"] == pytest.approx(np.mean(values))
    assert reward["values"]["std"] == pytest.approx(np.std(values))
    assert (reward["values"]["min"], reward["values"]["max"]) == (-1.0, 3.0)
    assert (reward["groups"], reward["nulls"], reward["errors"]) == (3, 1, 1)
    assert reward["gold"] == {"mean": 1.5, "std": 0.0, "min": 1.5, "max": 1.5}


def test_ls_names_damaged_parts_and_shows_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = stored_run(tmp_path)
    part = sorted((directory / "store/groups").iterdir())[1]
    part.write_bytes(part.read_bytes()[:100])
    assert main(["store", "ls", str(directory)]) == 0
    text = capsys.readouterr().out
    assert "2 groups" in text and part.name in text.replace("\n", "") and "damaged" in text
    assert part.exists()


def test_moments_of_batches_are_those_of_the_whole() -> None:
    values = np.random.default_rng(0).normal(1e6, 1e-2, 1000)  # a naive sum of squares loses all of the spread
    merged = sum((Moments.of(part) for part in np.array_split(values, 7)), Moments())
    assert merged.count == 1000
    assert merged.mean == pytest.approx(values.mean(), rel=1e-15)
    assert merged.std == pytest.approx(values.std(), rel=1e-6)
    assert (merged.least, merged.greatest) == (values.min(), values.max())
    assert Moments() + Moments() == Moments()


def _nulls(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else value for value in values.tolist()]


@pytest.mark.parametrize("truncated", [{}, {"truncated": "mask"}, {"truncated": "penalty", "truncated_penalty": -2}])
@pytest.mark.parametrize("goodness", ["bradley-terry", "logistic"])
def test_the_tools_weights_are_the_learner_s(goodness: str, truncated: dict[str, Any]) -> None:
    draw = np.random.default_rng(1)
    rewards, prior, proposal = draw.normal(0, 3, (3, 16)).astype(np.float32)
    rewards[3] = prior[5] = np.nan
    finished = np.arange(16) % 3 > 0
    settings = BrainSection.model_validate({"goodness": goodness, "temperature": 0.3, **truncated})
    alpha = self_normalised(log_weights(rewards, prior, proposal, settings, finished))
    row = train_row(
        "a",
        outputs=[[1]] * 16,
        rewards=_nulls(rewards),
        prior_logprobs=_nulls(prior),
        proposal_logprobs=proposal.tolist(),
        finished=finished.tolist(),
    )
    values = group_batch(train_batch(row)).treated(settings).stored_values()
    expected = posterior_log_weights(values.without_gaps(), settings).exp()[0].numpy()
    assert np.isnan(alpha[[3, 5]]).all()
    assert np.isnan(alpha[0]) == (settings.truncated == "mask")
    np.testing.assert_allclose(np.nan_to_num(alpha), expected, atol=1e-5)


def test_show_sorts_by_the_run_s_own_alpha(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "show", str(stored_run(tmp_path)), "ba"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines if " says " in line]
    assert [int(row[0]) for row in table] == [3, 2, 0, 1]  # by reward, as log p = log q' here
    alpha = expected_alpha("ba03", 0.5)
    assert [float(row[1]) for row in table] == pytest.approx(sorted(alpha, reverse=True), abs=6e-4)
    assert any("γ = 0.5, as in the run's recipe" in line for line in lines)
    assert any("1/4 = 0.250" in line for line in lines)  # what β would be at the proposal; never more than that
    assert "not trained" in "".join(lines)
    assert max(len(line) for line in lines if " says " in line) <= 100


def test_show_of_a_bare_store_says_whose_temperature_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["store", "show", str(stored_run(tmp_path) / "store"), "ab02"]) == 0
    text = capsys.readouterr().out
    assert "γ = 1, the paper's" in text
    assert "trained in step 1, 2" in text
    assert "reward could not compute everything: output 1 is odd" in text
    missing = next(line for line in text.splitlines() if "says 1" in line)
    assert missing.split()[:3] == ["1", "–", "–"]


def test_show_without_any_score_shows_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "show", str(stored_run(tmp_path)), "bb"]) == 0
    text = capsys.readouterr().out
    assert "bb04 says 3" in text and "this group has no rewards yet" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["ls", "nowhere"], "nowhere does not exist; name a run directory"),
        (["ls", "."], "is neither a run directory (it has no config.yaml) nor a sample store"),
        (["ls", "file"], "file is a file"),
        (["show", "run", "zz"], "No group of"),
        (["show", "run", "a"], "2 groups begin with 'a' (aa01, ab02)"),
        (["show", "run", "ba", "--scorer", "truth"], "has no values of 'truth', it has values of reward"),
    ],
)
def test_bad_places_and_names_are_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored_run(tmp_path)
    (tmp_path / "file").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert main(["store", *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error and len(error.splitlines()) == 1


def test_a_whole_id_that_begins_another_is_found(tmp_path: Path) -> None:
    from tests.unit.factories import groups

    SampleStore(tmp_path / "store", "run").append_groups(groups("ab", "abc"))
    store = open_source(str(tmp_path / "store")).store
    assert find_group(store, "ab") == "ab"
    with pytest.raises(UserError, match="2 groups begin with 'a'"):
        find_group(store, "a")


def test_what_stands_in_good_parts_is_read_in_order_and_nothing_else() -> None:
    damaged = {"c", "d", "h"}
    asked: list[int] = []

    def read(ids: Sequence[str]) -> pa.Table:
        asked.append(len(ids))
        if damaged & set(ids):
            raise DamagedPartError("a part is damaged")
        return pa.table({"group_id": list(ids)})

    tables = readable(read, list("abcdefgh"))
    assert [name for table in tables for name in table["group_id"].to_pylist()] == list("abefg")
    assert list(readable(read, ["h"])) == list(readable(read, [])) == []
    asked.clear()
    assert len(list(readable(read, list("efg")))) == len(asked) == 1


def test_a_run_s_store_is_found_where_its_recipe_places_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = stored_run(tmp_path)
    (directory / "store").rename(tmp_path / "elsewhere")
    config = directory / "config.yaml"
    config.write_text(config.read_text().replace("uri: null", f"uri: {tmp_path / 'elsewhere'}"))
    found = listed(directory, capsys)
    assert found["uri"] == str(tmp_path / "elsewhere")
    assert found["counts"]["groups"] == 4


def test_a_run_of_another_version_s_recipe_is_shown_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = stored_run(tmp_path)
    config = directory / "config.yaml"
    config.write_text(config.read_text() + "once_upon_a_time: 1\n")
    assert main(["store", "ls", str(directory)]) == 0
    shown = capsys.readouterr()
    assert "4 groups, 6 scores, 2 steps" in shown.out
    assert "config.yaml is not a recipe of this version of brain-align" in shown.err and "once_upon" in shown.err
    assert main(["store", "verify", str(directory)]) == 0
    assert main(["store", "replay", str(directory), "--output", str(tmp_path / "new")]) == 2
    assert "is not a recipe of this version" in capsys.readouterr().err
