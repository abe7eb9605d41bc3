"""Reward models on CUDA devices against float32 on the CPU; over two of them where there are two."""

import pytest
import torch

from brain_align.scorer.text_models.formats import TLDR
from brain_align.scorer.text_models.gptj_model import load_gptj_reward
from tests.unit.scorer.test_gptj_reward import rewards, tiny_weights, write

SHAPE = {"n_embd": 256, "n_layer": 4, "n_head": 4, "rotary_dim": 32}


@pytest.fixture
def checkpoint(tmp_path):
    config, weights = tiny_weights(**SHAPE)
    return write(tmp_path, TLDR, weights, config)


def agree(checkpoint, devices):
    expected = rewards(load_gptj_reward(checkpoint, "float32"), TLDR)
    spread = max(expected) - min(expected)
    found = rewards(load_gptj_reward(checkpoint, "bfloat16", devices), TLDR)
    return found == pytest.approx(expected, abs=0.1 * spread)


def test_one_gpu_gives_the_rewards_of_the_cpu(checkpoint):
    assert agree(checkpoint, ["cuda:0"])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_two_gpus_give_the_rewards_of_the_cpu(checkpoint):
    assert agree(checkpoint, ["cuda:0", "cuda:1"])
    model = load_gptj_reward(checkpoint, "bfloat16", ["cuda:0", "cuda:1"])
    blocks = [str(next(block.parameters()).device) for block in model.transformer.h]
    assert blocks == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
