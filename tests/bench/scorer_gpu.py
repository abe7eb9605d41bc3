"""A GPT-J-6B reward model of random weights on GPUs: groups scored with each common beginning once, and row by row.

    make bench-scorer-gpu

Groups of a 512-token prompt and 32 outputs of 48 tokens, in bfloat16, loaded from a file in the format of the published
checkpoints. Padded rows go through the same model, in batches of several sizes. With several GPUs its layers are spread
over all of them. Without a CUDA device it says so and measures nothing.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import GPTJConfig, GPTJModel

from brain_align.scorer.text_models.checkpoints import find_checkpoint
from brain_align.scorer.text_models.formats import TLDR
from brain_align.scorer.text_models.gptj_model import GPTJReward, load_gptj_reward
from brain_align.scorer.text_models.text_values import TextValues
from tests.bench.harness import comparison, side_by_side, table, write
from tests.bench.scorer import padded

PROMPT, OUTPUTS, LENGTH = 512, 32, 48
BATCHES = (1, 2, 4, 8, 32)
MAX_TOKENS = 16384
SHARED = "each beginning once (brain-align)"


def save_checkpoint(directory: Path) -> None:
    """What CarperAI published, with random weights: 12 GB in half precision."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = GPTJModel(GPTJConfig()).half()
        head = torch.randn(1, model.config.n_embd, dtype=torch.float16)
    weights = {f"transformer.{name}": value.cpu() for name, value in model.state_dict().items()}
    torch.save(weights | {"v_head.weight": head.cpu()}, directory / TLDR.checkpoint_file)
    model.config.save_pretrained(directory)


def loaded(devices: list[str]) -> tuple[GPTJReward, dict[str, Any]]:
    """The model, and what loading took."""
    with tempfile.TemporaryDirectory() as directory:
        save_checkpoint(Path(directory))
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        model = load_gptj_reward(find_checkpoint(directory, TLDR), "bfloat16", devices)
        torch.cuda.synchronize()
    weights = sum(value.nbytes for value in model.parameters())
    return model, {
        "load s": time.perf_counter() - begin,
        "weights GiB": weights / 2**30,
        "load peak GiB": sum(torch.cuda.max_memory_allocated(device) for device in devices) / 2**30,
    }


def group() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(50_257, (PROMPT,), generator=generator).tolist()
    return [prompt + torch.randint(50_257, (LENGTH,), generator=generator).tolist() for _ in range(OUTPUTS)]


def main() -> int:
    if not torch.cuda.is_available():
        print("bench-scorer-gpu: skipped, there is no CUDA device")
        return 0
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    model, loading = loaded(devices)
    print(table([loading]), flush=True)
    values = TextValues(model.transformer, model.v_head, MAX_TOKENS)
    rows = group()
    cases = {
        f"padded, {size} a batch": lambda size=size: padded(model.transformer, model.v_head, rows, size).sum().item()
        for size in BATCHES
    }
    torch.cuda.reset_peak_memory_stats()
    timings = side_by_side({**cases, SHARED: lambda: values.of(rows)}, warm_up=2, repeats=5)
    fastest = min(cases, key=lambda name: timings[name].median)
    expected = padded(model.transformer, model.v_head, rows, 1)
    figures = {
        "devices": len(devices),
        "rows": values.decoder.padded_because or "packed",
        "speedup_vs_fastest_padded": timings[fastest].median / timings[SHARED].median,
        "groups_per_second": 1 / timings[SHARED].median,
        "difference_to_padded": (torch.tensor(values.of(rows)) - expected.float().cpu()).abs().max().item(),
        "peak_gib": sum(torch.cuda.max_memory_allocated(device) for device in devices) / 2**30,
        **loading,
    }
    print(table([{**row, "texts/s": OUTPUTS / row["median s"]} for row in comparison(timings)]))
    print(table([figures]))
    print(f"written: {write('scorer_gpu', figures | {'cases': comparison(timings)})}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
