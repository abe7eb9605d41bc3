"""A reward model over one group: each common beginning once against padded rows; and how exact the scores are.

    make bench-scorer

A group as TL;DR's are: a prompt of 512 tokens and 32 outputs of 16 to 48, on a GPT-J of 4 layers × 512, float32. Padded
rows go through an untouched stock model, a value head at the last token of each, in batches of several sizes (the
reference recipe scores two texts at a time). Then real texts, scored as in a run, are compared with a plain reading of
the specification, one text at a time (tests/reference). Writes build/bench/scorer.json.
"""

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GPT2TokenizerFast, GPTJConfig, GPTJModel

from brain_align.scorer.text_models.text_values import TextValues
from tests.bench.harness import comparison, side_by_side, table, write
from tests.reference import texts
from tests.reference.comparison import Comparison, checkpoint, compare

VOCABULARY = 8192
PROMPT, OUTPUTS, SHORTEST, LONGEST = 512, 32, 16, 48
BATCHES = (1, 2, 4, 8, 32)
SHARED = "each beginning once (brain-align)"
REAL_GROUPS = {"tldr": (texts.tldr, 80), "hh": (texts.hh, 60)}


def model() -> tuple[GPTJModel, torch.nn.Linear]:
    torch.manual_seed(0)
    config = GPTJConfig(
        vocab_size=VOCABULARY, n_embd=512, n_layer=4, n_head=8, rotary_dim=32, n_positions=1024,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return GPTJModel(config).eval(), torch.nn.Linear(512, 1, bias=False).requires_grad_(False)


def group() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(VOCABULARY, (PROMPT,), generator=generator).tolist()
    lengths = torch.randint(SHORTEST, LONGEST + 1, (OUTPUTS,), generator=generator).tolist()
    return [prompt + torch.randint(VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


@torch.inference_mode()
def padded(stock: GPTJModel, head: torch.nn.Linear, rows: list[list[int]], size: int) -> torch.Tensor:
    """Stock transformers, as a careful user would write it: sorted by length, and only as wide as each batch needs."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    values, device = torch.empty(len(rows)), stock.wte.weight.device
    for start in range(0, len(rows), size):
        part = order[start : start + size]
        ids = pad_sequence([torch.tensor(rows[index]) for index in part], batch_first=True)
        lengths = torch.tensor([len(rows[index]) for index in part])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        hidden = stock(ids.to(device), attention_mask=mask.to(device), use_cache=False).last_hidden_state
        values[part] = head(hidden[torch.arange(len(part)), lengths - 1]).squeeze(-1).float().cpu()
    return values


def throughput() -> dict[str, Any]:
    stock, head = model()
    shared = TextValues(copy.deepcopy(stock), head, max_tokens=16384)
    assert shared.decoder.padded_because is None
    rows = group()
    cases = {f"padded, {size} a batch": lambda size=size: padded(stock, head, rows, size) for size in BATCHES}
    timings = side_by_side({**cases, SHARED: lambda: shared.of(rows)}, warm_up=1, repeats=2)
    print(table([{**row, "texts/s": OUTPUTS / row["median s"]} for row in comparison(timings)]))
    fastest = min(cases, key=lambda name: timings[name].median)
    difference = (torch.tensor(shared.of(rows)) - padded(stock, head, rows, 1)).abs().max().item()
    return {
        "fastest_padded": fastest,
        "speedup_vs_fastest_padded": timings[fastest].median / timings[SHARED].median,
        "difference_to_padded": difference,
        "rows": comparison(timings),
    }


def exactness() -> list[Comparison]:
    """Of real texts; none where they are not there."""
    gpt2 = texts.DATA / "tokenizers" / "gpt2"
    if not gpt2.is_dir():
        print(f"no comparison with the specification: the real texts are not in {texts.DATA}")
        return []
    tokenizer = GPT2TokenizerFast.from_pretrained(gpt2)
    found = []
    for kind, (groups, count) in REAL_GROUPS.items():
        with tempfile.TemporaryDirectory() as directory:
            checkpoint(Path(directory), kind, tokenizer, positions=2048)
            found.append(compare(Path(directory), kind, tokenizer, groups(count)))
    return found


def main() -> None:
    print(f"## GPT-J 4 × 512, float32: a prompt of {PROMPT}, {OUTPUTS} outputs of {SHORTEST}-{LONGEST} tokens")
    speed, exact = throughput(), exactness()
    figures = {
        "speedup_vs_fastest_padded": speed["speedup_vs_fastest_padded"],
        "max_score_difference": max((one.largest_difference for one in exact), default=None),
        "texts_compared": sum(one.texts for one in exact),
        "texts_truncated": sum(one.truncated for one in exact),
    }
    print(table([figures]))
    print(f"written: {write('scorer', figures | speed)}")


if __name__ == "__main__":
    main()
