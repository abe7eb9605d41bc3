import json

import pytest

from tests.bench.harness import Timing, comparison, environment, side_by_side, table, write


class FakeClock:
    """Advances only when a case says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def case(self, log, name, durations):
        remaining = iter(durations)

        def run():
            log.append(name)
            self.now += next(remaining)

        return run


def test_cases_take_turns_and_warm_up_is_not_counted():
    clock = FakeClock()
    log: list[str] = []
    cases = {"a": clock.case(log, "a", [100, 1, 2, 3]), "b": clock.case(log, "b", [100, 10, 20, 30])}
    timings = side_by_side(cases, warm_up=1, repeats=3, clock=clock)
    assert timings == {"a": Timing((1, 2, 3)), "b": Timing((10, 20, 30))}
    assert timings["b"].median == 20 and timings["b"].best == 10 and timings["b"].worst == 30
    # A round is each case once, and the case that begins alternates.
    assert [log[i : i + 2] for i in range(0, 8, 2)] == [["b", "a"], ["a", "b"], ["b", "a"], ["a", "b"]]


def test_no_repeats_is_refused():
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        side_by_side({"a": lambda: None}, repeats=0)


def test_speed_up_is_against_the_first_case():
    # Medians 4 and 2: the second takes half the time.
    rows = comparison({"old": Timing((4.0, 3.0, 9.0)), "new": Timing((2.0,))})
    assert [row["speed-up"] for row in rows] == [1.0, 2.0]


def test_table_aligns_and_shows_what_is_absent():
    assert table([{"case": "old", "s": 1.23456}, {"case": "a new one", "s": 12.0, "note": None}]) == (
        "| case      |     s | note |\n"
        "| --------- | ----: | ---- |\n"
        "| old       | 1.235 | –    |\n"
        "| a new one |    12 | –    |"
    )
    assert table([]) == "(no rows)"


def test_environment_names_machine_versions_and_revision():
    found = environment()
    assert found["cores"] >= 1 and found["cpu"] and found["versions"]["numpy"]
    assert found.keys() >= {"date", "revision", "uncommitted_changes", "threads", "gpu"}
    json.dumps(found)


def test_write_replaces_the_result_whole(tmp_path):
    write("speed", {"rows": [1]}, tmp_path)
    path = write("speed", {"rows": [2]}, tmp_path)
    content = json.loads(path.read_text())
    assert content["benchmark"] == "speed" and content["rows"] == [2] and content["environment"]["cores"]
    with pytest.raises(ValueError, match="JSON"):
        write("speed", {"rows": [float("nan")]}, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["speed.json"]
    assert json.loads(path.read_text())["rows"] == [2]
