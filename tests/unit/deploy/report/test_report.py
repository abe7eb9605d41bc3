import base64
import hashlib
import json
import math
import re
import time
from pathlib import Path

import numpy as np
import pytest

from brain_align.common.errors import UserError
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy import cli
from brain_align.deploy.commands.store.show import group_view
from brain_align.deploy.report.groups import stored_groups
from brain_align.deploy.report.outcomes import differences, histogram, read_outcomes
from brain_align.deploy.report.report import report_at_the_end, report_page
from brain_align.deploy.report.run_data import read_run
from brain_align.deploy.report.tables import times
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.stored_source import GroupLogprobs, Source, goodness_of, open_source, ranking
from tests.unit.deploy.report.read_page import Read
from tests.unit.deploy.report.reported_runs import ATTACK, SECONDS, begun_run, finished_run, large_run, recipe, result


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return finished_run(tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture(scope="module")
def page(finished: RunDirectory) -> Read:
    return Read(report_page([finished.root]))


def test_before_and_after_are_those_of_the_summary(finished: RunDirectory, page: Read) -> None:
    summary = json.loads(finished.summary.read_text())
    before, after = summary["before"], summary["after"]
    rows = {row[0].strip(): row[1:] for row in page.tables[0]}
    assert rows[""] == ["SFT", "version 1", "difference [95\u00a0%]", "reference"]
    for label, name, digits in (
        ("mean reward", "mean_reward", 3),
        ("ground-truth score", "truth_quality", 3),
        ("KL to the prior, nats", "kl_to_prior", 2),
        ("output length, tokens", "mean_tokens", 1),
        ("finished (EOS), %", "ended", 1),
    ):
        was, now, change, _ = rows[label]
        assert (was, now) == (f"{before[name]:.{digits}f}", f"{after[name]:.{digits}f}")
        assert change.split(" ")[0] == f"{after[name] - before[name]:+.{digits}f}"
    was, now, change, _ = rows["win rate vs. reference (training reward), %"]
    assert was == f"{before['train_rm_win_rate']:.1f} ± {before['train_rm_win_rate_ci95']:.1f}"
    assert change.startswith(f"{after['train_rm_win_rate'] - before['train_rm_win_rate']:+.1f} [+")
    assert rows["mean reward"][3] == "0.500"
    assert rows["prompts"][:2] == ["12", "12"]


def test_a_difference_is_paired_and_its_interval_is_that_of_the_prompts(finished: RunDirectory) -> None:
    store = SampleStore(finished.evaluation, None, read_only=True)
    before, after = (read_outcomes(store, recipe(), "test", version) for version in (0, 1))
    found = differences(before, after, "truth")
    # Every reward is one higher, so that the paired interval has no width although rewards differ among prompts.
    assert (found["mean_reward"].low, found["mean_reward"].difference, found["mean_reward"].high) == (1.0, 1.0, 1.0)
    assert found["kl_to_prior"].difference == pytest.approx(0.25)
    wins = found["train_rm_win_rate"]
    assert wins.difference == pytest.approx(100 / 3)
    assert wins.low < wins.difference < wins.high
    assert read_outcomes(store, recipe(), "validation", 0) == {}


def test_every_figure_of_the_curves_is_that_of_metrics_jsonl(finished: RunDirectory, page: Read) -> None:
    (run,) = page.json("data")["runs"]
    assert run["summary"] == json.loads(finished.summary.read_text())
    lines = [json.loads(line) for line in finished.metrics.read_text().splitlines()]
    for kind, table, number in (("step", "steps", "step"), ("validation", "versions", "version")):
        rows = [line for line in lines if line["kind"] == kind]
        columns = run["tables"][table]
        assert columns[number] == list(range(1, 9) if kind == "step" else range(3))
        for place, row in enumerate(rows):
            assert {name: columns[name][place] for name in row if name != "kind"} == {
                name: value for name, value in row.items() if name != "kind"
            }
    assert run["tables"]["versions"]["x"] == [0, 4, 8]  # version 1 is the policy after step 4
    assert run["tables"]["rounds"]["staleness_max"] == [0, 1]
    assert "grad_norm" in page.json("data")["others"] and "loss" not in page.json("data")["others"]
    points = {point["label"]: (point["x"], point["y"]) for point in run["distances"]}
    assert points["version 2, validation"] == (math.sqrt(result(2)["kl_to_prior"]), result(2)["mean_reward"])
    assert points["version 1, test"][0] == 0.5


def test_a_torn_line_and_a_version_that_was_evaluated_again_do_no_harm(tmp_path: Path) -> None:
    run = begun_run(tmp_path / "run")
    with open(run.metrics, "a", encoding="utf-8") as file:
        file.write(json.dumps({"kind": "validation", "version": 2, "time": 60.0, **result(5)}) + "\n")
        file.write('{"kind": "something new", "step": 1}\n{"kind": "step", "st')
    metrics = read_run(run.root, "run").metrics
    assert metrics.validation["version"] == [0, 1, 2]
    assert metrics.validation["mean_reward"][2] == result(5)["mean_reward"]
    assert len(metrics.steps["step"]) == 8


def test_distributions_count_every_prompt(page: Read) -> None:
    found = page.json("data")["runs"][0]["histograms"]
    for one in found.values():
        assert [sum(counts) for counts in one["counts"].values()] == [12] * len(one["counts"])
        assert all(len(counts) == len(one["edges"]) - 1 for counts in one["counts"].values())
    assert list(found["reward"]["counts"]) == ["SFT", "version 1", "reference"]


def test_lengths_have_bins_of_whole_numbers_and_missing_values_are_left_out() -> None:
    assert histogram({"a": [1, 2, 2, None], "b": [4]}, whole=True) == {
        "edges": [0.5, 1.5, 2.5, 3.5, 4.5],
        "counts": {"a": [1, 2, 0, 0], "b": [0, 0, 0, 1]},
    }
    wide = histogram({"a": [1, 100]}, whole=True, bins=10)
    assert set(np.diff(wide["edges"])) == {10.0} and wide["edges"][-1] > 100
    assert histogram({"a": [None]}) == {}
    assert histogram({"a": [2.0, 2.0]})["counts"]["a"] != []


def test_samples_have_both_outputs_and_groups_their_weights(finished: RunDirectory, page: Read) -> None:
    samples = page.json("samples-data")
    prompts = [one for one in samples if one["kind"] == "prompt"]
    assert len(prompts) == 12
    fifth = prompts[4]
    assert (fifth["prompt"], fifth["reference"]) == ("Prompt 4", "reference 4")
    assert fifth["before"] == {
        "text": "output 4 of version 0", "reward": 0.0, "scores": {"truth": 0.25}, "tokens": 2, "finished": True
    }  # fmt: skip
    assert (fifth["after"]["reward"], fifth["reference_reward"]) == (1.0, 0.5)
    groups = [one for one in samples if one["kind"] == "group"]
    assert [one["round"] for one in groups] == [0, 0, 0, 1, 1, 1]
    source = open_source(str(finished.root))
    view = group_view(source.store, "train-0-0", ranking(source, None), goodness_of(source))
    assert view.alpha is not None
    assert sorted(output["alpha"] for output in groups[0]["outputs"]) == sorted(view.alpha.tolist())
    assert groups[0]["outputs"][0]["alpha"] == max(view.alpha)
    assert groups[0]["ess"] == pytest.approx(1 / np.square(view.alpha).sum())
    assert [output["beta"] for output in groups[0]["outputs"]] == [0.5, 0.5]


def test_beta_is_that_of_the_version_whose_log_probabilities_are_given(finished: RunDirectory) -> None:
    source = open_source(str(finished.root))
    (group,) = stored_groups(source, 1, lambda batch: [[-1.0, -1.25 + math.log(3)]])  # of outputs with log q' −1, −1.25
    assert {output["text"]: output["beta"] for output in group["outputs"]} == {
        "output 0 of version 7": pytest.approx(0.25),
        "output 0 of version 8": pytest.approx(0.75),
    }


def test_groups_are_spread_over_the_rounds(finished: RunDirectory) -> None:
    rounds = [group["round"] for group in stored_groups(open_source(str(finished.root)), 2)]
    assert rounds == [0, 1]


def test_what_outputs_hold_is_text_and_only_the_page_s_own_scripts_may_run(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "<b>run", text=lambda *_: ATTACK, prompt=ATTACK)
    page = report_page([run.root])
    read = Read(page)
    assert len(read.scripts) == 4
    shown = read.json("samples-data")[0]["after"]["text"]
    assert shown == ATTACK.replace("\x1b", "\\x1b")
    for attributes, content in read.scripts[:2]:
        assert attributes["type"] == "application/json" and "<" not in content
    hashes = re.findall(r"'sha256-([^']+)'", page[: page.index("<style>")])
    own = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for _, content in read.scripts[2:]]
    assert hashes == own
    assert "default-src 'none'" in page
    assert "\x1b" not in page and "<b>run" not in page and "&lt;b&gt;run" in page
    assert not re.search(r'(?:src|href)=(?!"#)', re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))


def test_a_recipe_without_examples_keeps_all_texts_out(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", text=lambda *_: "offensive", prompt="rude", evaluation={"examples": 0})
    page = report_page([run.root])
    assert "offensive" not in page and "rude" not in page and "reference 1" not in page
    assert "evaluation.examples: 0" in Read(page).text
    assert Read(page).json("data")["runs"][0]["histograms"]  # figures are no texts


def test_the_parts_of_the_time_add_up(finished: RunDirectory, page: Read) -> None:
    parts = dict(times(read_run(finished.root, "run")))
    assert parts.pop("total") == SECONDS["total"] == pytest.approx(sum(parts.values()))
    assert parts["start of the services, to the first step"] == 12.5
    idle = {row[0]: row[1:] for row in page.tables[-1]}
    assert idle["scoring"] == ["30.0", "3", f"{100 * (1 - 30 / (3 * 60)):.0f}"]  # reward, truth and prior


def test_runs_stand_side_by_side_with_names_and_colours_of_their_own(tmp_path: Path) -> None:
    one = finished_run(tmp_path / "one" / "run")
    two = finished_run(tmp_path / "two" / "run", objective={"temperature": 0.25})
    page = Read(report_page([one.root, two.root]))
    data = page.json("data")
    assert [run["label"] for run in data["runs"]] == ["one/run", "two/run"]
    assert page.tables[0][0][1:] == [" one/run", " two/run"]
    assert len(page.tables[0][1]) == 1 + 2 * 4
    settings = {row[0]: row[1:] for row in page.tables[1]}
    assert settings["objective.temperature"] == ["0.5", "0.25"]
    assert {one["run"] for one in page.json("samples-data")} == {0, 1}
    assert "one/run: The reward model is hardly better" in page.text


def test_what_is_no_run_is_refused_and_a_page_that_fails_does_not_fail_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        report_page([tmp_path])
    told: list[str] = []
    report_at_the_end(RunDirectory(tmp_path), told.append)
    assert len(told) == 1 and "report.html was not written" in told[0] and f"brain report {tmp_path}" in told[0]
    run = finished_run(tmp_path / "run")
    report_at_the_end(run, told.append)
    assert len(told) == 1 and run.report.stat().st_size > 50_000


def test_a_large_run_is_written_within_five_seconds_and_five_megabytes(tmp_path: Path) -> None:
    run = large_run(tmp_path / "run")
    began = time.process_time()  # other tests run beside this one
    report_at_the_end(run, pytest.fail)
    seconds, size = time.process_time() - began, run.report.stat().st_size
    read = Read(run.report.read_text(encoding="utf-8"))
    assert sum(one["kind"] == "prompt" for one in read.json("samples-data")) == 2000
    assert len(read.json("data")["runs"][0]["tables"]["steps"]["step"]) == 1000
    assert size <= 5_000_000
    assert seconds <= 5, f"{seconds:.1f} s"


def test_the_command_writes_the_page_of_one_run_into_it_and_of_several_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = (finished_run(Path(name)) for name in ("one", "two"))
    assert cli.main(["report", "one"]) == 0
    assert str(one.report.absolute()) in capsys.readouterr().out
    assert cli.main(["report", "one"]) == 0  # again: it is the run's own file
    assert cli.main(["report", "one", "two"]) == 0
    assert "runs side by side" in Path("report.html").read_text(encoding="utf-8")
    assert not two.report.exists()
    assert cli.main(["report", "one", "two"]) == 2
    assert "report.html exists already" in capsys.readouterr().err
    assert cli.main(["report", "one", "two", "--force", "--output", "report.html"]) == 0
    assert cli.main(["report", "."]) == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_the_command_computes_beta_under_the_version_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, int]] = []

    def policy_logprobs(source: Source, version: int) -> GroupLogprobs:
        assert source.directory is not None
        asked.append((source.directory.root, version))
        return lambda groups: [[-1.0, -1.25 + math.log(3)]] * groups.num_rows

    monkeypatch.setattr("brain_align.deploy.api.samples.policy_logprobs", policy_logprobs)
    run = finished_run(tmp_path / "run")
    assert cli.main(["report", str(run.root), "--policy", "2"]) == 0
    assert asked == [(run.root, 2)]
    samples = Read(run.report.read_text(encoding="utf-8")).json("samples-data")
    betas = [output["beta"] for one in samples if one["kind"] == "group" for output in one["outputs"]]
    assert sorted(betas) == pytest.approx([0.25] * 6 + [0.75] * 6)
