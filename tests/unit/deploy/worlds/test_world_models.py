"""Training on packed groups is training on plain sequences, and what is saved is what the pipeline loads."""

from functools import partial
from random import Random

import pytest
import torch
from torch.nn.functional import cross_entropy

from brain_align.common.nn.models.causal_lm import load_causal_lm, load_tokenizer
from brain_align.deploy.worlds.files import save_policy, save_reward_model
from brain_align.deploy.worlds.language_model import (
    Example,
    ModelSize,
    mean_token_loss,
    new_gptj,
    new_llama,
    token_loss,
    train_tokenizer,
)
from brain_align.deploy.worlds.packing import Group, batches_by_length, group_of, pack
from brain_align.deploy.worlds.reward_model import Preferences, RewardModel, encode, pair_accuracy, pair_loss
from brain_align.deploy.worlds.training import OptimiserPlan, optimise
from brain_align.scorer.text_models.checkpoints import find_checkpoint
from brain_align.scorer.text_models.formats import HH, TLDR
from brain_align.scorer.text_models.gptj_model import load_gptj_reward
from brain_align.scorer.text_models.text_values import TextValues

SIZE = ModelSize(layers=2, width=64, heads=2, context=64)
PROMPTS = ["POST: a b c\nTL;DR:", "POST: the cat\nTL;DR:"]
OUTPUTS = (" a b", " a b c d", " x", "")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([*PROMPTS, *OUTPUTS, "<|startoftext|>"], 300)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def examples(tokenizer, loss_from):
    items = []
    for prompt in PROMPTS:
        start = tokenizer(prompt)["input_ids"]
        rows = tuple((*start, *tokenizer(output)["input_ids"], tokenizer.eos_token_id) for output in OUTPUTS)
        items.append(Example(Group(rows, len(start)), loss_from or len(start)))
    return items


@pytest.mark.parametrize("new", [new_llama, new_gptj])
def test_packed_hidden_states_are_those_of_plain_sequences(new, tokenizer):
    model = new(SIZE, tokenizer).eval()
    groups = [example.group for example in examples(tokenizer, 1)]
    packed = pack(groups, tokenizer.eos_token_id)
    hidden = model.base_model(
        packed.input_ids, position_ids=packed.position_ids, attention_mask=packed.attention_mask
    ).last_hidden_state
    for b, group in enumerate(groups):
        for number, row in enumerate(group.rows):
            alone = model.base_model(torch.tensor([row])).last_hidden_state[0]
            places = [group.place(number, index) for index in range(len(row))]
            torch.testing.assert_close(hidden[b, places], alone, atol=1e-5, rtol=1e-5)


def test_output_loss_is_that_of_plain_sequences(tokenizer):
    model = new_llama(SIZE, tokenizer).eval()
    items = examples(tokenizer, None)
    total, count = token_loss(model, items)
    expected, tokens = 0.0, 0
    for item in items:
        for row in item.group.rows:
            logits = model(torch.tensor([row])).logits[0, item.loss_from - 1 : -1]
            expected += cross_entropy(logits, torch.tensor(row[item.loss_from :]), reduction="sum").item()
            tokens += len(row) - item.loss_from
    assert count == tokens
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_a_prompt_is_counted_once_however_many_outputs_it_has(tokenizer):
    _, all_tokens = token_loss(new_llama(SIZE, tokenizer), examples(tokenizer, 1))
    _, output_tokens = token_loss(new_llama(SIZE, tokenizer), examples(tokenizer, None))
    assert all_tokens - output_tokens == sum(len(tokenizer(prompt)["input_ids"]) - 1 for prompt in PROMPTS)


def test_group_keeps_the_end_of_each_row_its_own():
    group = group_of([[1, 2, 3, 4], [1, 2, 3], [1, 2, 3, 9]], keep=1)
    assert group.shared == 2
    assert [group.place(1, index) for index in range(3)] == [0, 1, 4]
    assert len(group) == 2 + 2 + 1 + 2


def test_an_epoch_has_every_item_once_and_no_batch_too_large():
    lengths = [Random(0).randint(1, 40) for _ in range(500)] + [999]
    batches = list(batches_by_length(lengths, 128, Random(1)))
    assert sorted(index for batch in batches for index in batch) == list(range(501))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 128 for batch in batches if 500 not in batch)
    assert [500] in batches


def test_learning_lowers_the_loss_and_a_seed_repeats_it(tokenizer):
    def losses():
        torch.manual_seed(0)
        model = new_llama(SIZE, tokenizer)
        items = examples(tokenizer, None)
        before = token_loss(model, items)[0].item()
        loss_of = partial(mean_token_loss, model)
        optimise(model, items, loss_of, OptimiserPlan(20, 1e-2), 256, Random(0), "test", lambda _: None)
        return before, token_loss(model, items)[0].item()

    before, after = losses()
    assert after < before / 2
    assert losses() == (before, after)


@pytest.mark.parametrize("form", [TLDR, HH], ids=["tldr", "hh"])
def test_saved_reward_model_gives_the_scorer_the_same_rewards(form, tokenizer, tmp_path):
    model = RewardModel(new_gptj(SIZE, tokenizer).transformer).eval()
    items = encode([Preferences(prompt, OUTPUTS, ((0, 1),)) for prompt in PROMPTS], form, tokenizer, SIZE.context)
    with torch.inference_mode():
        expected = torch.cat(model(items))
    save_reward_model(tmp_path, model, form, tokenizer)
    loaded = load_gptj_reward(find_checkpoint(str(tmp_path / "reward"), form), "float32")
    texts = [form.text(prompt, output) for prompt in PROMPTS for output in OUTPUTS]
    encoded = form.encode(load_tokenizer(str(tmp_path / "reward")), texts)
    rewards = TextValues(loaded.transformer, loaded.v_head, 4096).of([text.read for text in encoded])
    torch.testing.assert_close(torch.tensor(rewards), expected, atol=1e-5, rtol=1e-5)


def test_saved_reward_model_has_the_names_of_the_published_file(tokenizer, tmp_path):
    save_reward_model(tmp_path, RewardModel(new_gptj(SIZE, tokenizer).transformer), TLDR, tokenizer)
    names = torch.load(tmp_path / "reward/pytorch_model.bin", weights_only=True)
    assert names["v_head.weight"].shape == (1, SIZE.width)
    assert {"transformer.h.1.attn.bias", "transformer.h.1.attn.masked_bias"} <= set(names)
    assert not [name for name in names if not name.startswith("transformer.") and name != "v_head.weight"]


def test_reward_model_learns_what_is_preferred(tokenizer):
    data = encode([Preferences(prompt, (" a b", " x"), ((0, 1),)) for prompt in PROMPTS], TLDR, tokenizer, SIZE.context)
    model = RewardModel(new_gptj(SIZE, tokenizer).transformer)
    optimise(model, data, partial(pair_loss, model), OptimiserPlan(10, 3e-3), 256, Random(0), "test", lambda _: None)
    assert pair_accuracy(model, data, 256) == 1.0


def test_saved_policy_loads_with_the_same_logits(tokenizer, tmp_path):
    model = new_llama(SIZE, tokenizer).eval()
    save_policy(tmp_path, model, tokenizer)
    loaded = load_causal_lm(str(tmp_path / "policy"), "float32")
    saved_tokenizer = load_tokenizer(str(tmp_path / "policy"))
    tokens = torch.tensor([saved_tokenizer(PROMPTS[0])["input_ids"]])
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert saved_tokenizer.eos_token == saved_tokenizer.pad_token == "<|endoftext|>"
    assert loaded.config.eos_token_id == loaded.generation_config.eos_token_id == saved_tokenizer.eos_token_id
