"""The sampler against bare vLLM, what the publication of a version costs those who are being sampled, and the control
plane that drives a thousand of them.

    make bench-sampler

A random Llama of 4 layers × 256 in float32 with a LoRA adapter, prompts of 32 and outputs of 48 tokens, n = 8, one
thread an engine. Writes build/bench/sampler.json.
"""

import tempfile
from pathlib import Path

import ray

from tests.bench import control_plane
from tests.bench.harness import table, write
from tests.bench.sampler_cases import publication, throughput
from tests.bench.sampler_cases.policy import make_policy

PUBLICATIONS, REPEATS = 8, 5


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "a").mkdir()
        published = publication.measure(make_policy(Path(place) / "a"), PUBLICATIONS)
        print(table(published), "\n")
        ray.init(num_cpus=4, include_dashboard=False, logging_level="warning")
        rates = {}
        for case, merged in (("adapters", False), ("merged", True)):
            root = Path(place) / case
            root.mkdir()
            rates[case] = throughput.measure(make_policy(root), root / "sampler.log", REPEATS, merged=merged)
            print(f"{case}:\n{table(rates[case])}")
        ray.shutdown()
    speed = {case: [row["tokens/s"] for row in rows] for case, rows in rates.items()}
    figures = {
        "throughput_vs_bare_vllm": speed["adapters"][1] / speed["adapters"][0],
        "merged_throughput_vs_bare": speed["merged"][1] / speed["merged"][0],
        "merged_vs_adapters": speed["merged"][1] / speed["adapters"][1],
        "publication_seconds": max(row["first group s"] for row in published),
        "publication_delay_steps": max(row["delay in steps"] for row in published),
    }
    print("\n" + table([figures]))
    print(write("sampler", {**figures, **control_plane.measure(), "throughput": rates, "publications": published}))


if __name__ == "__main__":
    main()
