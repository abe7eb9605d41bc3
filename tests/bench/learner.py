"""The learner's forward and backward pass over one group: packed rows against padded ones, TRL and the machine.

    make bench-learner

A group as TL;DR's are: a prompt of 512 tokens and 32 outputs of 16 to 48, on 4 layers × 512, float32, full weights. All
cases compute the same gradient, Σ c_i ∇ log q(y_i|x) with given c, and are compared with each other. Padded rows go
through an untouched stock model, with logits for completion positions alone, at once and in micro-batches of every
power of two. Prints a table an architecture, and writes build/bench/learner.json.

With BENCH_MODEL=DIR whole optimiser steps on that checkpoint are measured, too (`learner_cases/checkpoint.py`).
"""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GPTJConfig, GPTJForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from brain_align.common.nn.logprobs import SequenceLogprobs
from brain_align.common.nn.prefix.packing import Request, TokenBudget
from tests.allocations import peak_bytes
from tests.bench.harness import comparison, side_by_side, table, write
from tests.bench.learner_cases import checkpoint

VOCABULARY = 8192
PROMPT, OUTPUTS, SHORTEST, LONGEST = 512, 32, 16, 48
ALL = f"padded, all {OUTPUTS} rows"
PACKED = "packed (brain-align)"
MICRO_BATCHES = (1, 2, 4, 8, 16, 32)

Gradient = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """A way to add Σ c_i ∇ log q(y_i|x) to a model's gradients."""

    model: PreTrainedModel
    add_gradient: Gradient

    def __call__(self) -> None:
        self.model.zero_grad()
        self.add_gradient()

    def gradient(self) -> torch.Tensor:
        """All parameters' gradients, in one row."""
        self()
        return torch.cat([value.grad.flatten() for value in self.model.parameters() if value.grad is not None])


def llama() -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=1024,
    )
    return LlamaForCausalLM(config).eval()


def gptj() -> PreTrainedModel:
    config = GPTJConfig(
        vocab_size=VOCABULARY, n_embd=512, n_layer=4, n_head=8, rotary_dim=32, n_positions=1024,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return GPTJForCausalLM(config).eval()


def group(seed: int = 0) -> tuple[Request, torch.Tensor]:
    """A prompt with its outputs, and the coefficient of each output."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (OUTPUTS,), generator=generator).tolist()
    prompt = torch.randint(VOCABULARY, (PROMPT,), generator=generator)
    outputs = [torch.randint(VOCABULARY, (length,), generator=generator) for length in lengths]
    return (prompt, outputs), torch.randn(OUTPUTS, generator=generator)


def padded_rows(request: Request) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, attention mask and labels (−100 where nothing is predicted), each [rows, t]."""
    prompt, outputs = request
    rows = torch.nn.utils.rnn.pad_sequence([torch.cat([prompt, output]) for output in outputs], batch_first=True)
    ends = torch.tensor([len(prompt) + len(output) for output in outputs])
    mask = (torch.arange(rows.shape[1]) < ends[:, None]).long()
    labels = rows.masked_fill(mask == 0, -100)
    labels[:, : len(prompt)] = -100
    return rows, mask, labels


def padded(stock: PreTrainedModel, request: Request, coefficients: torch.Tensor, rows: int) -> Case:
    """Stock transformers, as a careful user would write it."""
    prompt, outputs = request

    def add() -> None:
        for start in range(0, OUTPUTS, rows):
            ids, mask, labels = padded_rows((prompt, outputs[start : start + rows]))
            hidden = stock.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            wanted = labels[:, 1:] != -100
            logits = stock.get_output_embeddings()(hidden[:, :-1][wanted])  # [tokens, v], of completions alone
            logprobs = -torch.nn.functional.cross_entropy(logits, labels[:, 1:][wanted], reduction="none")
            weights = coefficients[start : start + rows, None].expand(wanted.shape)[wanted]
            (weights * logprobs).sum().backward()

    return Case(stock, add)


def packed(model: PreTrainedModel, request: Request, coefficients: torch.Tensor) -> Case:
    logprobs = SequenceLogprobs(model)
    assert logprobs.decoder.padded_because is None
    return Case(model, lambda: (coefficients * logprobs([request])).sum().backward())


def trl(model: PreTrainedModel, request: Request, coefficients: torch.Tensor, rows: int) -> Case:
    """What TRL's trainers call for per-token log-probabilities: padded rows, and a tiled LM head of its own."""
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model)
    prompt, outputs = request

    def add() -> None:
        for start in range(0, OUTPUTS, rows):
            ids, mask, labels = padded_rows((prompt, outputs[start : start + rows]))
            logprobs = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).log_probs
            (coefficients[start : start + rows, None] * logprobs).sum().backward()

    return Case(model, add)


def matmul_rate(shapes: list[tuple[int, int, int]], repeats: int = 5) -> float:
    """FLOP/s of this machine on these products [m, k] × [k, n], at its best."""
    operands = [(torch.randn(m, k), torch.randn(k, n)) for m, k, n in shapes]
    work = sum(2 * m * k * n for m, k, n in shapes)

    def multiply() -> None:
        for left, right in operands:
            left @ right

    return work / side_by_side({"products": multiply}, warm_up=2, repeats=repeats)["products"].best


def necessary_work(model: PreTrainedModel, request: Request) -> tuple[float, list[tuple[int, int, int]]]:
    """FLOPs that the gradient cannot do without, and the forward products among them.

    Linear layers on each token once, and on the prompt's once; attention's scores and sums where they are not masked;
    the LM head where a completion's token is predicted. Backward is twice forward. Nothing is counted twice that is
    computed twice (the LM head's tiles are, the attention's scores too).
    """
    prompt, outputs = request
    lengths = [len(output) for output in outputs]
    tokens = TokenBudget(1, packed=True).tokens(len(prompt), lengths)
    head = model.get_output_embeddings()
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    products = [(tokens, module.in_features, module.out_features) for module in linear]
    predicted = sum(lengths) - OUTPUTS + 1  # the first token of all outputs is predicted by one hidden state
    products.append((predicted, head.in_features, head.out_features))
    own = [length - 1 for length in lengths]
    seen = len(prompt) ** 2 / 2 + sum(length * len(prompt) + length**2 / 2 for length in own)
    attention = model.config.num_hidden_layers * 4 * seen * model.config.hidden_size
    return 3 * (sum(2 * m * k * n for m, k, n in products) + attention), products


def measure(make: Callable[[], PreTrainedModel]) -> dict[str, Any]:
    torch.manual_seed(0)
    model = make()
    request, coefficients = group()
    stock = {rows: padded(copy.deepcopy(model), request, coefficients, rows) for rows in MICRO_BATCHES}
    work, products = necessary_work(model, request)
    sweep = {rows: side_by_side({"": case}, warm_up=0, repeats=1)[""].median for rows, case in stock.items()}
    fastest = min(sweep, key=lambda rows: sweep[rows])
    theirs = {rows: trl(copy.deepcopy(model), request, coefficients, rows) for rows in {fastest, OUTPUTS}}
    ours = packed(model, request, coefficients)
    cases = {
        ALL: stock[OUTPUTS],
        f"padded, {fastest} rows at a time (the fastest)": stock[fastest],
        f"TRL, all {OUTPUTS} rows": theirs[OUTPUTS],
        f"TRL, {fastest} rows at a time": theirs[fastest],
        PACKED: ours,
    }
    reference = stock[OUTPUTS].gradient()
    differences = {  # which also warms every case up
        name: float((case.gradient() - reference).norm() / reference.norm()) for name, case in cases.items()
    }
    timings = side_by_side(cases, warm_up=0, repeats=3)
    rate = matmul_rate(products)
    memory = {name: peak_bytes(case) for name, case in cases.items()}
    rows = [
        {**row, "peak MiB": memory[name] / 2**20, "gradient difference": differences[name]}
        for row, name in zip(comparison(timings), cases, strict=True)
    ]
    print(table(rows))
    print(f"padded sweep, s: {', '.join(f'{rows} rows {seconds:.2f}' for rows, seconds in sweep.items())}")
    limit = work / rate
    print(f"necessary work {work / 1e9:.0f} GFLOP, products at {rate / 1e9:.0f} GFLOP/s: limit {limit:.2f} s\n")
    seconds = {name: timing.median for name, timing in timings.items()}
    return {
        "speedup_vs_all_rows": seconds[ALL] / seconds[PACKED],
        "speedup_vs_fastest_padded": min(seconds[name] for name in cases if name.startswith("padded"))
        / seconds[PACKED],
        "speedup_vs_trl": min(seconds[name] for name in cases if name.startswith("TRL")) / seconds[PACKED],
        "fraction_of_matmul_limit": limit / seconds[PACKED],
        "peak_memory_vs_all_rows": memory[PACKED] / memory[ALL],
        "max_gradient_difference": max(differences.values()),
        "fastest_padded_rows": fastest,
        "rows": rows,
    }


def main() -> None:
    results: dict[str, Any] = {}
    for name, make in {"llama": llama, "gptj": gptj}.items():
        print(f"## {name}: prompt {PROMPT}, {OUTPUTS} outputs of {SHORTEST}-{LONGEST} tokens, 4 × 512, float32")
        results[name] = measure(make)
    figures = [
        {"architecture": name, **{key: value for key, value in result.items() if isinstance(value, float)}}
        for name, result in results.items()
    ]
    print(table(figures))
    if model := os.environ.get("BENCH_MODEL"):
        results["checkpoint"] = checkpoint.measure_all(model)
    else:
        print("steps on a checkpoint: skipped, BENCH_MODEL names none")
    print(f"written: {write('learner', results)}")


if __name__ == "__main__":
    main()
