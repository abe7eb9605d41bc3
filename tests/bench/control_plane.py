"""The control plane without engines: `make bench-control-plane`, and a part of `make bench-sampler`.

Services are stand-ins that sleep; conductor, pools, schedule, store and commits are the real ones. What Ray itself
costs a call is measured only in the last part, where samplers are processes that are killed.
"""

import tempfile
from pathlib import Path
from typing import Any

from tests.bench.control_cases import kills, overlap, throughput
from tests.bench.harness import table, write


def measure() -> dict[str, Any]:
    """All figures of the control plane, shown as they come."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rates = throughput.measure(root / "throughput")
        print(table([{"figure": name, "value": value} for name, value in rates.items()]))
        overlaps = overlap.measure(root / "overlap")
        print(table(overlaps))
        survived = kills.measure(root / "kills")
        print(table([{"figure": name, "value": value} for name, value in survived.items()]))
    return {
        **rates,
        "overlap": overlaps,
        "overlap_wall_vs_slowest_stage": max(row["against the slowest"] for row in overlaps),
        "strict_wall_vs_sum_of_stages": max(row["against the sum"] for row in overlaps),
        **survived,
    }


if __name__ == "__main__":
    print(write("control_plane", measure()))
