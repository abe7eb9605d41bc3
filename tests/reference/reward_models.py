"""The two GPT-J reward models as their cards describe them: one text at a time, padded, in float32, by stock parts.

It shares no code with scorer/, and is as plain as can be, so that it can be checked by reading it.
"""

import json
from pathlib import Path

import torch
from transformers import GPTJConfig, GPTJModel, PreTrainedTokenizerBase

PADDING = 16
"""Tokens of padding behind each text; how many there are changes nothing."""


class ReferenceReward:
    """A checkpoint in the format of CarperAI's TL;DR reward model, or of Dahoas' HH reward model."""

    def __init__(self, directory: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        config = GPTJConfig(**json.loads((directory / "config.json").read_text()))
        self.positions = config.n_positions
        self.transformer = GPTJModel(config).float().eval()
        [file] = [directory / name for name in ("pytorch_model.bin", "hf_ckpt.pt") if (directory / name).exists()]
        weights = torch.load(file, weights_only=True)
        self.v_head = weights.pop("v_head.weight").float()
        weights = {
            name.removeprefix("transformer."): value
            for name, value in weights.items()
            if not name.endswith((".attn.bias", ".attn.masked_bias"))
        }
        self.transformer.load_state_dict(weights)

    def tldr(self, prompt: str, output: str) -> float:
        """`<|startoftext|>` + prompt + summary + EOS, cut on the right; read one token before the first EOS."""
        text = "<|startoftext|>" + prompt + output.replace("<|endoftext|>", "") + "<|endoftext|>"
        ids, length = self._encode(text, min(550, self.positions), "right")
        values = self._values(ids, mask=torch.arange(ids.shape[1])[None] < length)
        eos = (ids[0] == self.tokenizer.eos_token_id).nonzero()
        return values[int(eos[0]) - 1 if len(eos) else length - 1].item()

    def hh(self, prompt: str, output: str) -> float:
        """Prompt + output + EOS, cut on the left; read at the first EOS, without an attention mask."""
        text = prompt + output.replace("<|endoftext|>", "") + "<|endoftext|>"
        ids, _ = self._encode(text, min(1024, self.positions), "left")
        eos = (ids[0] == self.tokenizer.eos_token_id).nonzero()
        return self._values(ids, mask=None)[int(eos[0])].item()

    def _encode(self, text: str, limit: int, side: str) -> tuple[torch.Tensor, int]:
        """Padded token ids [1, t], and how many are no padding."""
        self.tokenizer.truncation_side = side
        ids = self.tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        padding = [self.tokenizer.eos_token_id] * min(PADDING, self.positions - len(ids))
        return torch.tensor([ids + padding]), len(ids)

    @torch.no_grad()
    def _values(self, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The value head at every token.  # [t]."""
        mask = None if mask is None else mask.long()
        return self.transformer(ids, attention_mask=mask).last_hidden_state[0] @ self.v_head[0]
