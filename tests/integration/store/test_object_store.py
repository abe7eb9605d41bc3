"""The sample store on S3: a real server of the protocol on this machine, spoken to through pyarrow."""

import logging
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import boto3
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from brain_align.common.errors import DamagedPartError, UserError
from brain_align.common.store.files.object_store import ObjectStore, open_object_store
from brain_align.common.store.maintenance.repair import repair
from brain_align.common.store.maintenance.verification import verify
from brain_align.common.store.opened_store import OpenedStore
from brain_align.common.store.sample_store import SampleStore
from brain_align.common.store.table import part_reader
from brain_align.common.store.table.compaction import LARGE, compact, remove_superseded
from tests.unit.factories import groups, scores, step

BUCKET = "samples"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The address of an S3 server with one bucket."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with mock.patch.dict("os.environ", keys):
        boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").create_bucket(Bucket=BUCKET)
        yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def uri(endpoint: str, request: pytest.FixtureRequest) -> str:
    """A place of its own for each test."""
    query = f"endpoint_override={endpoint}&scheme=http&region=us-east-1"
    return f"s3://{BUCKET}/{request.node.name}/store?{query}"


def filled(uri: str) -> SampleStore:
    store = SampleStore(uri, "run")
    for lease in range(3):
        names = [f"{lease}-a", f"{lease}-b"]
        store.append_groups(groups(*names, round=lease))
        store.append_scores(scores("reward", {names[0]: [1.0, None]}))
        with store.training():
            store.append_step(step(lease, names))
    return store


def objects(uri: str, kind: str) -> list[str]:
    return sorted(entry.name for entry in open_object_store(uri).list(kind))


@pytest.mark.timeout(60)
def test_a_store_on_s3_holds_what_one_on_a_disk_holds(uri: str, tmp_path: Path) -> None:
    filled(uri)
    filled(str(tmp_path / "store"))
    remote, local = (SampleStore(where, None, read_only=True) for where in (uri, tmp_path / "store"))
    assert remote.root == uri.partition("?")[0]  # no keys in messages
    assert remote.counts() == local.counts() == {"groups": 6, "scores": 3, "steps": 3}
    assert remote.index().equals(local.index())
    assert [batch.to_pylist() for batch in remote.batches()] == [batch.to_pylist() for batch in local.batches()]
    assert remote.unscored("reward") == local.unscored("reward")
    assert remote.steps() == local.steps()


@pytest.mark.timeout(60)
def test_writers_share_it_and_compaction_endangers_no_reader(uri: str) -> None:
    first = filled(uri)
    second = SampleStore(uri, "run")
    assert second.append_groups(groups("0-a", "other")) == 1
    reader = SampleStore(uri, None, read_only=True)
    store = OpenedStore(uri, None, read_only=False)
    for catalogue in store.kinds.values():
        compact(store.backend, catalogue, store.author, LARGE)
        remove_superseded(store.backend, catalogue, grace=0.0)
        catalogue.write_index(at_least=1)
    assert len(objects(uri, "groups")) == 1 and len(objects(uri, "index")) == 3
    assert reader.groups(["other", "1-b"])["group_id"].to_pylist() == ["other", "1-b"]
    first.refresh()
    assert list(first.group_ids) == list(SampleStore(uri, None, read_only=True).group_ids)
    assert verify(uri).problems == []


@pytest.mark.timeout(60)
def test_one_conductor_at_a_time_trains_on_it(uri: str) -> None:
    first, second = filled(uri), SampleStore(uri, "run")
    with first.training():
        with pytest.raises(UserError, match="is being trained on by process"), second.training():
            pass
        assert first.append_step(step(7, ["0-a"])) == 1
    with second.training():
        assert second.step_groups(7) == ["0-a"]
    assert objects(uri, "claims") == []


@pytest.mark.timeout(60)
def test_a_damaged_object_is_named_and_set_aside(uri: str) -> None:
    filled(uri)
    backend = open_object_store(uri)
    name = objects(uri, "groups")[1]
    content = backend.read(f"groups/{name}").to_pybytes()
    files, path = fs.FileSystem.from_uri(uri)
    with files.open_output_stream(f"{path}/groups/{name}") as file:
        file.write(content[:-20] + b"?" + content[-19:])
    assert any(name in problem for problem in verify(uri).problems)
    assert any(name in sentence for sentence in repair(uri))
    assert objects(uri, "damaged") == [f"groups-{name}"]
    assert list(SampleStore(uri, "run").group_ids) == ["0-a", "0-b", "2-a", "2-b"]


@pytest.mark.timeout(60)
def test_what_was_dropped_from_memory_is_fetched_and_checked_again(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(uri)
    monkeypatch.setattr(part_reader, "_KEPT_FILES", 1)
    store = SampleStore(uri, None, read_only=True)
    first = [batch.to_pylist() for batch in store.batches()]
    fetched = mock.patch.object(ObjectStore, "read", autospec=True, side_effect=ObjectStore.read)
    with fetched as read:
        assert [batch.to_pylist() for batch in store.batches()] == first
        assert read.call_count == 3  # one a part, as only one is kept
        assert store.groups(["2-b"]).num_rows == 1 and read.call_count == 3
    name = objects(uri, "groups")[0]
    files, path = fs.FileSystem.from_uri(uri)
    with files.open_output_stream(f"{path}/groups/{name}") as file:
        file.write(b"other bytes")
    with pytest.raises(DamagedPartError, match=name):
        store.groups(["0-a"])
    assert store.groups(["1-a"]).num_rows == 1


@pytest.mark.timeout(60)
def test_a_missing_bucket_and_an_unknown_file_system_are_one_clear_sentence(uri: str) -> None:
    with pytest.raises(UserError, match="the bucket does not exist; create it, or correct the URI"):
        SampleStore(uri.replace(f"//{BUCKET}/", "//no-such-bucket/"), "run")
    with pytest.raises(UserError, match="cannot hold a sample store"):
        SampleStore("s3x://bucket/store", "run")
    with pytest.raises(UserError, match="There is no sample store at"):
        SampleStore(uri, None, read_only=True)


class Failing:
    """A file system that fails so many times with a given error, and then does its work."""

    def __init__(self, uri: str, times: int, error: OSError) -> None:
        self._files, self.root = fs.FileSystem.from_uri(uri)
        self._times, self._error = times, error
        self.failed = 0

    def fail(self, times: int) -> None:
        """So many times from now on."""
        self._times, self.failed = times, 0

    def __getattr__(self, name: str) -> object:
        method = getattr(self._files, name)

        def work(*arguments: object, **named: object) -> object:
            if self.failed < self._times:
                self.failed += 1
                raise self._error
            return method(*arguments, **named)

        return work


@pytest.mark.timeout(60)
def test_passing_failures_are_tried_again_and_lasting_ones_are_explained(
    uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    filled(uri)
    pauses: list[float] = []
    troubles: list[str | None] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        troubles.append(backend.trouble)

    with mock.patch("time.sleep", pause):
        for said, told in (
            ("AWS Error SLOW_DOWN", "AWS Error SLOW_DOWN"),
            (
                "When listing: AWS Error UNKNOWN (HTTP status 400) during ListObjectsV2 operation: Unable to parse "
                "ExceptionName: ExpiredToken Message: The provided token has expired.",
                "ExpiredToken (The provided token has expired)",
            ),
        ):
            troubles.clear()
            passing = Failing(uri, 3, OSError(said))
            backend = ObjectStore(uri, passing, passing.root)
            assert len(backend.list("groups")) == 3 and passing.failed == 3
            assert troubles == [f"{backend.uri}: {told}"] * 3 and backend.trouble is None
        passing = Failing(uri, 0, OSError("AWS Error SLOW_DOWN"))
        backend = ObjectStore(uri, passing, passing.root)
        backend.list("groups")
        pauses.clear()
        passing.fail(20)  # it has answered, so minutes of trouble are waited for
        assert len(backend.list("groups")) == 3 and passing.failed == 20
        assert max(pauses) == 15.0 and 120 < sum(pauses) < 300 and "retrying in 15.0 s" in caplog.text
        for has_answered in (False, True):
            lasting = Failing(uri, 0, OSError("AWS Error SLOW_DOWN"))
            backend = ObjectStore(uri, lasting, lasting.root)
            if has_answered:
                backend.list("groups")
            lasting.fail(9999)
            for minutes in (has_answered, False):  # having waited once, it does not wait so long again
                pauses.clear()
                with pytest.raises(OSError, match="SLOW_DOWN"):
                    backend.list("groups")
                assert (300 <= sum(pauses) < 315) if minutes else (3 <= sum(pauses) < 10)
        for sign, advice in (
            ("ACCESS_DENIED", "set AWS_ACCESS_KEY_ID"),
            ("INVALID_ACCESS_KEY_ID", "the key is"),
        ):
            denied = Failing(uri, 99, OSError(f"When reading: AWS Error {sign} during HeadObject"))
            with pytest.raises(UserError, match=advice):
                ObjectStore(uri, denied, denied.root).read("store.json")
            assert denied.failed == 1


@pytest.mark.timeout(60)
def test_an_upload_that_fails_leaves_nothing_and_acknowledges_nothing(uri: str) -> None:
    store = filled(uri)
    with (
        mock.patch.object(ObjectStore, "put", side_effect=OSError("AWS Error SERVICE_UNAVAILABLE")),
        pytest.raises(UserError, match="cannot be written: AWS Error SERVICE_UNAVAILABLE"),
    ):
        store.append_groups(groups("new"))
    assert not SampleStore(uri, None, read_only=True).has_group("new")
    assert store.append_groups(groups("new")) == 1
