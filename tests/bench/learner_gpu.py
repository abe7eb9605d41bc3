"""The learner's forward and backward pass at real sizes on a GPU: Llama-7B and GPT-J-6B, random weights.

    make bench-learner-gpu

Groups of a 512-token prompt and 32 outputs of 48 tokens, LoRA r = 64 in bfloat16, and QLoRA (NF4). Model FLOPs
utilisation counts what the gradient cannot do without (forward, and backward to the activations; frozen weights have no
gradient), and nothing that is computed twice. Without a CUDA device it says so and measures nothing.
"""

import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPTJConfig, LlamaConfig, PreTrainedConfig

from brain_align.common.config.inputs import AdapterSection
from brain_align.common.config.training import LearnerSection
from brain_align.common.nn.logprobs import SequenceLogprobs, request_of
from brain_align.common.nn.models.adapters import attach_new_adapter
from brain_align.common.nn.models.causal_lm import Quantization, load_causal_lm
from brain_align.common.nn.prefix.packing import Request, TokenBudget
from brain_align.learner.steps.memory_plan import footprint, token_budget
from tests.bench.harness import table, write
from tests.unit.tiny_models import save

PROMPT, OUTPUTS, LENGTH = 512, 32, 48
REPEATS = 5
DENSE_BF16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}
"""FLOP/s without sparsity, from the makers' data sheets."""

ARCHITECTURES: dict[str, tuple[Callable[[], PreTrainedConfig], list[str]]] = {
    "Llama-7B": (
        lambda: LlamaConfig(vocab_size=32_000, max_position_embeddings=2048),
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    ),
    "GPT-J-6B": (lambda: GPTJConfig(), ["q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"]),
}


@contextmanager
def saved(config: PreTrainedConfig) -> Iterator[Path]:
    """A directory with a model of random weights."""
    with tempfile.TemporaryDirectory() as directory:
        torch.manual_seed(0)
        with torch.device("cuda"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        save(model.cpu(), Path(directory))
        yield Path(directory)


def policy(directory: Path, targets: list[str], quantization: Quantization | None) -> SequenceLogprobs:
    model = load_causal_lm(str(directory), "bfloat16", "cuda", quantization)
    return SequenceLogprobs(attach_new_adapter(model, AdapterSection(r=64, alpha=16, targets=targets), seed=0))


def groups(vocabulary: int, count: int) -> list[Request]:
    generator = torch.Generator().manual_seed(0)

    def tokens(length: int) -> list[int]:
        return torch.randint(vocabulary, (length,), generator=generator).tolist()

    return [request_of(tokens(PROMPT), [tokens(LENGTH) for _ in range(OUTPUTS)]) for _ in range(count)]


def necessary_flops(config: PreTrainedConfig, weights: int, trained: int) -> float:
    """Of one group: 4 a frozen weight and token, 6 a trained one; attention where it is not masked, 3 times forward."""
    tokens = TokenBudget(1, packed=True).tokens(PROMPT, [LENGTH] * OUTPUTS)
    own = LENGTH - 1
    seen = PROMPT**2 / 2 + OUTPUTS * (own * PROMPT + own**2 / 2)
    attention = 3 * config.num_hidden_layers * 4 * seen * config.hidden_size
    predicted = OUTPUTS * own + 1
    return tokens * (4 * weights + 6 * trained) + predicted * 4 * config.vocab_size * config.hidden_size + attention


def measure(name: str, subject: SequenceLogprobs, layer_weights: int) -> dict[str, Any]:
    """Times forward and backward of as many groups as the device's token budget holds, eight at most."""
    trained = sum(value.numel() for value in subject.trainable().values())
    settings = LearnerSection(gpus=1)
    budget, needs = token_budget(subject, settings, ranks=1), footprint(subject, settings)
    count = max(1, min(8, budget // subject.decoder.budget(1).tokens(PROMPT, [LENGTH] * OUTPUTS)))
    requests = groups(subject.decoder.config.vocab_size, count)
    coefficients = torch.randn(count * OUTPUTS, device="cuda")
    seconds = []
    for turn in range(-2, REPEATS):
        if turn == 0:
            torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        (coefficients * subject(requests)).sum().backward()
        torch.cuda.synchronize()
        if turn >= 0:
            seconds.append(time.perf_counter() - begin)
    a_group = sorted(seconds)[len(seconds) // 2] / count
    flops = necessary_flops(subject.decoder.config, layer_weights, trained)
    card = torch.cuda.get_device_name()
    peak = next((value for known, value in DENSE_BF16.items() if known in card), None)
    tokens = PROMPT + OUTPUTS * LENGTH
    return {
        "case": name,
        "groups a pass": count,
        "rows": subject.decoder.padded_because or "packed",
        "groups/s": 1 / a_group,
        "tokens/s": tokens / a_group,
        "TFLOP/s": flops / a_group / 1e12,
        "MFU": flops / a_group / peak if peak else None,
        "peak GiB": torch.cuda.max_memory_allocated() / 2**30,
        "planned GiB": (needs.fixed + count * tokens * needs.token) / 2**30,
    }


def main() -> int:
    if not torch.cuda.is_available():
        print("bench-learner-gpu: skipped, there is no CUDA device")
        return 0
    rows = []
    for name, (config, targets) in ARCHITECTURES.items():
        with saved(config()) as directory:
            kinds: dict[str, Quantization | None] = {"LoRA bf16": None, "QLoRA nf4": "nf4"}
            for kind, quantization in kinds.items():
                subject = policy(directory, targets, quantization)
                with torch.device("meta"):
                    layers = AutoModelForCausalLM.from_config(config()).base_model
                weights = sum(part.weight.numel() for part in layers.modules() if isinstance(part, torch.nn.Linear))
                rows.append(measure(f"{name}, {kind}", subject, weights))
                print(table(rows[-1:]), flush=True)
                del subject
                gc.collect()
                torch.cuda.empty_cache()
    print(table(rows))
    print(f"written: {write('learner_gpu', {'rows': rows})}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
