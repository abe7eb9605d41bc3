"""Trackers: what is refused or said at the start, and that one that fails or hangs holds nothing up."""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.common.logs import quiet_libraries
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.trackers import open_trackers as module
from brain_align.deploy.run.trackers.background import Background
from brain_align.deploy.run.trackers.open_trackers import check_trackers, open_trackers
from tests.unit.factories import recipe_settings

SECRET = "0123456789abcdef0123456789abcdef01234567"


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not module._is_installed(name), reason=f"the optional library {name} is not installed")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No key, no log-in, and no variable of the machine's own."""
    quiet_libraries()
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    yield


def recipe(**tracking: Any) -> Recipe:
    return Recipe.model_validate(recipe_settings(tracking={"tensorboard": False, **tracking}))


def record(root: Path, subject: Recipe, said: list[str], starts: int = 1) -> None:
    """What a run records, in one or several starts."""
    root.mkdir(exist_ok=True)
    for start in range(starts):
        trackers = open_trackers(subject, RunDirectory(root), said.append)
        for step in (2 * start + 1, 2 * start + 2):
            trackers.log("step", step, {"loss": 1.0 / step})
        trackers.log("validation", start, {"mean_reward": 3.0})
        trackers.close()


class Failing:
    """Fails at first, and then records."""

    def __init__(self, failures: int) -> None:
        self.left = failures
        self.got: list[int] = []

    def log(self, kind: str, number: int, figures: Mapping[str, float]) -> None:
        if self.left:
            self.left -= 1
            raise ConnectionError(f"no route to the server, with {os.environ['SOME_TOKEN']}")
        self.got.append(number)

    def close(self) -> None: ...


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_a_missing_library_is_refused_with_the_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match=rf"tracking\.{name} needs a library .*: pip install {name}"):
        check_trackers(recipe(**{name: {}}))
    assert check_trackers(recipe()) == []


def test_a_folder_of_a_library_s_name_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert find_spec("some_tracker") is not None and not module._is_installed("some_tracker")


def test_what_fails_is_tried_again_and_told_once_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", SECRET)
    tracker = Failing(3)
    said: list[str] = []
    subject = Background("wandb", lambda: tracker, said.append, pause=0.01)
    for number in range(5):
        subject.log("step", number, {"loss": 1.0})
    while len(tracker.got) < 5:
        time.sleep(0.01)
    subject.close()
    assert tracker.got == [0, 1, 2, 3, 4]
    (warning,) = said
    assert warning.startswith("WARNING: tracking.wandb: no route to the server") and SECRET not in warning


def test_a_tracker_that_cannot_be_opened_leaves_the_rest_to_metrics_jsonl() -> None:
    def refuse() -> Failing:
        raise ValueError("not today")

    said: list[str] = []
    subject = Background("mlflow", refuse, said.append, pause=0.01)
    for number in range(3):
        subject.log("step", number, {"loss": 1.0})
    time.sleep(0.05)
    subject.close()
    assert len(said) == 2 and "not today" in said[0] and "3 records were not sent" in said[1]


def test_a_tracker_that_hangs_delays_a_run_by_no_more_than_its_last_seconds() -> None:
    release = threading.Event()

    class Hanging(Failing):
        def log(self, kind: str, number: int, figures: Mapping[str, float]) -> None:
            release.wait(20)

    said: list[str] = []
    began = time.monotonic()
    subject = Background("trackio", lambda: Hanging(0), said.append, last=0.2)
    for number in range(20_000):  # more than the queue holds
        subject.log("step", number, {"loss": 1.0})
    subject.close()
    release.set()
    assert time.monotonic() - began < 5
    assert "did not finish within 0.2 s" in said[0] and "records were not sent" in said[1]


def test_tensorboard_files_can_be_read(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    said: list[str] = []
    record(tmp_path, Recipe.model_validate(recipe_settings()), said, starts=2)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("step/loss")] == [
        (step, pytest.approx(1 / step)) for step in (1, 2, 3, 4)
    ]
    assert said == []


@needs("wandb")
def test_wandb_without_a_key_is_recorded_offline_and_said_at_the_start(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    subject = recipe(wandb={"project": "p"})
    (note,) = check_trackers(subject)
    assert "tracking.wandb has no key" in note and "WANDB_API_KEY" in note
    said: list[str] = []
    record(tmp_path / "run", subject, said, starts=2)
    assert said == []
    parts = list((tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb"))
    assert len(parts) == 2 and len({part.name for part in parts}) == 1  # one id, which `wandb sync` puts together
    assert b"step/loss" in parts[0].read_bytes() and b"mean_reward" in parts[0].read_bytes()
    assert capfd.readouterr().out == ""


@needs("wandb")
def test_a_key_that_works_for_nobody_ends_offline_with_one_warning_and_is_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    monkeypatch.setattr("brain_align.deploy.run.trackers.weights_and_biases._ONLINE_SECONDS", 3)
    subject = recipe(wandb={"project": "p"})
    said: list[str] = []
    assert check_trackers(subject) == []
    record(tmp_path / "run", subject, said)
    assert len(said) == 1 and "The run is recorded offline" in said[0], said
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any("offline-run" in str(path) and path.suffix == ".wandb" for path in files)
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


@needs("trackio")
def test_trackio_gets_every_metric_and_a_resumed_run_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    said: list[str] = []
    record(tmp_path / "run", recipe(trackio={"project": "p"}), said, starts=2)
    assert said == [] and capfd.readouterr().out == ""
    with sqlite3.connect(next((tmp_path / "trackio").glob("*.db"))) as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    figures = [(step, json.loads(metrics)) for _, step, metrics in rows]
    losses = [(step, found["step/loss"]) for step, found in figures if "step/loss" in found]
    assert losses == [(step, pytest.approx(1 / step)) for step in (1, 2, 3, 4)]
    assert len({name for name, _, _ in rows}) == 1


@needs("mlflow")
def test_mlflow_gets_every_metric_and_a_resumed_run_continues(tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy", reason="MLflow's databases need SQLAlchemy")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    said: list[str] = []
    record(tmp_path / "run", recipe(mlflow={"uri": uri, "experiment": "e"}), said, starts=2)
    assert said == []
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("e")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(found.info.run_id, "step/loss")
    assert [(one.step, one.value) for one in history] == [(step, pytest.approx(1 / step)) for step in (1, 2, 3, 4)]
    assert (found.info.status, found.info.run_name) == ("FINISHED", "test")
    assert found.data.params["sampling.n"] == "32"


@needs("mlflow")
def test_an_mlflow_server_that_is_away_is_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said: list[str] = []
    record(tmp_path / "run", recipe(mlflow={"uri": "http://127.0.0.1:9"}), said)
    assert len(said) == 2 and "tracking.mlflow" in said[0] and "3 records were not sent" in said[1]


def test_recipes_hold_no_secrets_and_no_unknown_trackers() -> None:
    from brain_align.deploy.run.recipe_files import load_recipe

    settings = recipe_settings()
    with pytest.raises(UserError, match=r"tracking\.mlflow\.uri is a URI that holds a user name"):
        load_recipe(settings, {"tracking.mlflow.uri": "http://me:secret@host:5000"})
    with pytest.raises(UserError, match=r"unknown setting tracking\.wandb\.api_key"):
        load_recipe(settings, {"tracking.wandb.api_key": SECRET})
