"""The sampler against bare vLLM, what the publication of a version costs those who are being sampled, and the control
plane that drives a thousand of them.

    make bench-sampler
    python -m tests.bench.sampler MODEL    # only that model (a directory), e.g. a pretrained one
    make bench-sampler BENCH_MODEL=MODEL   # both

A random Llama of 4 layers × 256 in float32 with a LoRA adapter, prompts of 32 and outputs of 48 tokens, n = 8, one
thread an engine; a given model in bfloat16 with outputs of 64. Writes build/bench/sampler.json and, of a given model,
build/bench/sampler_model.json.
"""

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from tests.bench import control_plane
from tests.bench.harness import table, write
from tests.bench.sampler_cases import publication, throughput
from tests.bench.sampler_cases.policy import BenchedPolicy, given_policy, make_policy

PUBLICATIONS, REPEATS = 8, 5
PUBLICATIONS_OF_A_MODEL, REPEATS_OF_A_MODEL = 3, 2
COUNTS = dict.fromkeys(("adapters", "merged"), throughput.LEASES * throughput.LEASE_PROMPTS)
COUNTS_OF_A_MODEL = {"adapters": 4, "merged": 16}  # prompts: with adapters, a CPU needs half a minute for these


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        if model := sys.argv[1] if sys.argv[1:] else os.environ.get("BENCH_MODEL"):
            measure_model(Path(model), Path(place))
        if not sys.argv[1:]:
            measure_all(Path(place))


def measure_all(place: Path) -> None:
    """Measure the random Llama and the control plane."""
    (place / "a").mkdir()
    published = publication.measure(make_policy(place / "a"), PUBLICATIONS)
    print(table(published), "\n")

    def policy(case: str) -> BenchedPolicy:
        (place / case).mkdir()
        return make_policy(place / case)

    rates = throughputs({"adapters": policy("adapters"), "merged": policy("merged")}, place, REPEATS)
    figures = {
        **ratios(rates),
        "publication_seconds": max(row["first group s"] for row in published),
        "publication_delay_steps": max(row["delay in steps"] for row in published),
    }
    print("\n" + table([figures]))
    print(write("sampler", {**figures, **control_plane.measure(), "throughput": rates, "publications": published}))


def measure_model(model: Path, place: Path) -> None:
    """Measure a model that is there: merged against bare vLLM and against adapters, and publications."""
    policies = {case: given_policy(model, place / f"given-{case}") for case in ("published", "adapters", "merged")}
    published = publication.measure_merged(policies.pop("published"), PUBLICATIONS_OF_A_MODEL)
    print(table(published), "\n")
    rates = throughputs(policies, place, REPEATS_OF_A_MODEL, COUNTS_OF_A_MODEL)
    figures = {**ratios(rates), "publication_seconds": max(row["first tokens s"] for row in published)}
    print("\n" + table([figures]))
    print(write("sampler_model", {**figures, "model": str(model), "throughput": rates, "publications": published}))


def throughputs(
    policies: dict[str, BenchedPolicy], place: Path, repeats: int, counts: Mapping[str, int] = COUNTS
) -> dict[str, list[dict[str, Any]]]:
    """Tokens a second of bare vLLM and of a sampler, with adapters beside the model and with merged ones."""
    ray.init(num_cpus=4, include_dashboard=False, logging_level="warning")
    rates = {}
    for case, policy in policies.items():
        log = place / f"{policy.dtype}-{case}.log"
        rates[case] = throughput.measure(policy, log, repeats, merged=case == "merged", count=counts[case])
        print(f"{case}:\n{table(rates[case])}")
    ray.shutdown()
    return rates


def ratios(rates: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """The sampler against bare vLLM with the same adapter, or without any; and merged weights against adapters."""
    speed = {case: [row["tokens/s"] for row in rows] for case, rows in rates.items()}
    return {
        "throughput_vs_bare_vllm": speed["adapters"][1] / speed["adapters"][0],
        "merged_throughput_vs_bare": speed["merged"][1] / speed["merged"][0],
        "merged_vs_adapters": speed["merged"][1] / speed["adapters"][1],
    }


if __name__ == "__main__":
    main()
