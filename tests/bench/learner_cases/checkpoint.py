"""Whole optimiser steps on a real checkpoint, against the machine's matrix products.

    BENCH_MODEL=DIR python -m tests.bench.learner_cases.checkpoint

The learner as a run has it: `Trainer` on DeepSpeed, LoRA r = 16 on all linear layers, BRAIn's objective, packed rows,
the dtype of the checkpoint; 8 groups of n = 8 with prompts of 100 to 150 tokens and outputs of 24 to 64. A step counts
with all that it does: conversion of the batch, log-probabilities, gradient, clipping, AdamW, metrics.
"""

import os
import random
import resource
import socket
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from peft.tuners.lora import LoraLayer

from brain_align.common.config.recipe import Recipe
from brain_align.common.nn.logprobs import SequenceLogprobs
from brain_align.common.nn.models.configuration import head_dimension, load_config
from brain_align.common.nn.prefix.packing import TokenBudget
from brain_align.common.schemas import TRAIN_BATCH, batch_from_rows
from brain_align.learner.trainer import Trainer
from tests.bench.harness import side_by_side, table, write
from tests.unit.factories import recipe_settings

GROUPS, N = 8, 8
PROMPT, OUTPUT = (100, 150), (24, 64)
STEPS = 4
RANK = 16
Lengths = list[tuple[int, list[int]]]
"""Per group: the tokens of its prompt, and of each output."""


def lengths() -> Lengths:
    draw = random.Random(0)
    return [(draw.randint(*PROMPT), [draw.randint(*OUTPUT) for _ in range(N)]) for _ in range(GROUPS)]


def batch(vocabulary: int) -> pa.RecordBatch:
    """Groups of random tokens with plausible log-probabilities."""
    draw = random.Random(1)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(vocabulary) for _ in range(count)]

    def row(index: int, prompt: int, outputs: list[int]) -> dict[str, Any]:
        sampled = [-2.0 * length + draw.gauss(0, 1) for length in outputs]
        return {
            "group_id": f"group-{index}",
            "proposal_version": 0,
            "prompt_token_ids": tokens(prompt),
            "output_token_ids": [tokens(length) for length in outputs],
            "sampler_logprobs": sampled,
            "proposal_logprobs": sampled,
            "prior_logprobs": [value + draw.gauss(0, 1) for value in sampled],
            "rewards": [draw.gauss(0, 1) for _ in outputs],
            "gold_token_ids": None,
            "finished": [True] * len(outputs),
        }

    return batch_from_rows(TRAIN_BATCH, [row(index, *group) for index, group in enumerate(lengths())])


def trainer(model: str, directory: Path) -> Trainer:
    """The learner's only rank, started in this process."""
    from brain_align.learner.engine import DeepSpeedEngine, join_ranks

    if not torch.distributed.is_initialized():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0",
        }  # fmt: skip
        join_ranks("127.0.0.1")
    dtype = "float32" if load_config(model).dtype == torch.float32 else "bfloat16"
    recipe = recipe_settings(
        policy={"model": model, "dtype": dtype, "adapter": {"r": RANK, "alpha": 2 * RANK}},
        learner={"learning_rate": 1e-5},
    )
    made = Trainer(Recipe.model_validate(recipe), directory, DeepSpeedEngine)
    made.start()
    return made


def necessary_flops(policy: SequenceLogprobs, groups: Lengths) -> dict[str, float]:
    """FLOPs that a step cannot do without; nothing is counted twice that is computed twice.

    Per token 2·P forward and 2·P backward through the P frozen weights of the layers, 6·A for the A weights of the
    adapters; per hidden state that predicts 4·h·v for the logits; attention's scores and sums where they are not
    masked, three times (forward, and twice backward).
    """
    config, head = policy.decoder.config, policy.head.weight
    adapted = [module for module in policy.modules() if isinstance(module, LoraLayer)]
    frozen = sum(module.get_base_layer().weight.numel() for module in adapted)
    trained = sum(value.numel() for value in policy.trainable().values())
    budget = TokenBudget(1, packed=True)
    tokens = sum(budget.tokens(*group) for group in groups)
    predicting = sum(sum(outputs) - len(outputs) + 1 for _, outputs in groups)
    seen = sum(p**2 / 2 + sum((n - 1) * p + (n - 1) ** 2 / 2 for n in outputs) for p, outputs in groups)
    width = config.num_attention_heads * (head_dimension(config) or config.hidden_size // config.num_attention_heads)
    return {
        "layers": 4.0 * frozen * tokens,
        "adapters": 6.0 * trained * tokens,
        "logits": 4.0 * head.numel() * predicting,
        "attention": 3 * config.num_hidden_layers * 4 * seen * width,
    }


def matmul_rate(policy: SequenceLogprobs, tokens: int, dtype: torch.dtype) -> float:
    """FLOP/s of a linear layer's forward product on the model's most frequent shapes, at its best."""
    shapes = {module.get_base_layer().weight.shape for module in policy.modules() if isinstance(module, LoraLayer)}
    rates = []
    for shape in shapes:
        rows, weight = torch.randn(tokens, shape[1]).to(dtype), torch.randn(shape).to(dtype)
        work = 2 * tokens * weight.numel()
        timing = side_by_side({"": partial(torch.nn.functional.linear, rows, weight)}, warm_up=2, repeats=7)
        rates.append(work / timing[""].best)
    return max(rates)


def measure(model: str, threads: int, steps: int = STEPS) -> dict[str, Any]:
    """Times steps of a fresh learner with so many threads; the machine's rate is measured before each step.

    The rates are the best over all steps, in bfloat16 and float32; the share is of the better of the two.
    """
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as directory:
        subject = trainer(model, Path(directory))
        policy = subject._policy
        groups = lengths()
        tokens = sum(p + sum(outputs) for p, outputs in groups)
        rows = batch(policy.decoder.config.vocab_size)
        subject.train_step(1, rows)  # packed rows are checked against padded ones, kernels are chosen
        seconds, rates = [], {torch.bfloat16: 0.0, torch.float32: 0.0}
        for step in range(2, 2 + steps):
            rates = {dtype: max(rate, matmul_rate(policy, tokens, dtype)) for dtype, rate in rates.items()}
            begin = time.perf_counter()
            subject.train_step(step, rows)
            seconds.append(time.perf_counter() - begin)
    work = necessary_flops(policy, groups)
    median = sorted(seconds)[len(seconds) // 2]
    best = max(rates.values())
    return {
        "threads": threads,
        "s/step": median,
        "best s/step": min(seconds),
        "tokens/s": tokens / median,
        "necessary TFLOP": sum(work.values()) / 1e12,
        "GFLOP/s": sum(work.values()) / median / 1e9,
        "bfloat16 GFLOP/s": rates[torch.bfloat16] / 1e9,
        "float32 GFLOP/s": rates[torch.float32] / 1e9,
        "share": sum(work.values()) / median / best,
        "peak RSS GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def measure_all(model: str) -> list[dict[str, Any]]:
    """One thread, and as many as there are cores."""
    counts = sorted({1, len(os.sched_getaffinity(0))})
    rows = [measure(model, threads) for threads in counts]
    print(f"## steps on {model}: {GROUPS} groups × {N} outputs of {OUTPUT[0]}-{OUTPUT[1]} tokens, LoRA r = {RANK}")
    print(table(rows), flush=True)
    return rows


if __name__ == "__main__":
    rows_ = measure_all(os.environ["BENCH_MODEL"])
    print(f"written: {write('learner_checkpoint', {'rows': rows_})}")
