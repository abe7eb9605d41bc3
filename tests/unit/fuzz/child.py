"""A process that tries examples of one kind: `python -m tests.unit.fuzz.child MODULE RECORD SEED COUNT`.

It writes each example to RECORD before it tries it, so that whoever started it knows which one ended the interpreter.
"""

import importlib
import os
import sys
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from brain_align.common.logs import quiet_libraries
from tests.locations import memory_directory


def main() -> None:
    quiet_libraries()  # as the command does, before it imports them
    kind, record = importlib.import_module(f"tests.unit.fuzz.{sys.argv[1]}"), Path(sys.argv[2])
    failures: list[str] = []
    with memory_directory(record.parent) as room:
        os.chdir(room)
        kind.prepare(room)

        @seed(int(sys.argv[3]))
        @settings(
            max_examples=int(sys.argv[4]),
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(kind.EXAMPLES)
        def survive(example) -> None:
            record.write_text(repr(example))
            try:
                kind.attempt(room, example)
            except Exception as error:  # noqa: BLE001 - one process finds all faults
                failures.append(f"{example!a}\n{type(error).__name__}: {error}")

        survive()
    if failures:
        sys.exit(f"{len(failures)} failures:\n" + "\n\n".join(failures))


if __name__ == "__main__":
    main()
