"""LoRA layers in two products a direction, against PEFT's own forward pass and autograd."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear

from brain_align.common.nn.adapted_linear import fuse_adapters
from tests.unit import tiny_models


def peft_model(dtype=torch.float32, **settings):
    """PEFT's own layers; B is not zero, so that the adapter changes something."""
    torch.manual_seed(0)
    model = tiny_models.llama().to(dtype)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "down_proj"], **settings))
    for name, weight in adapted.named_parameters():
        if ".lora_" in name:
            weight.data.normal_(std=0.1)
    return adapted.eval()


def layer_of(model):
    return model.get_base_model().model.layers[0].mlp.down_proj


def outcome(layer, x):
    """The layer's result, and the gradients of a fixed loss with respect to its input, A and B."""
    x = x.clone().requires_grad_()
    result = layer(x)
    loss = (result.float() * torch.linspace(-1, 2, result.numel()).view_as(result)).sum()
    parameters = [value for value in layer.parameters() if value.requires_grad]
    return result.detach(), torch.autograd.grad(loss, [x, *parameters])


def inputs(layer, dtype=torch.float32):
    return torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_values_and_gradients_are_pefts():
    model = peft_model()
    x = inputs(layer_of(model))
    expected = outcome(layer_of(model), x)
    torch.testing.assert_close(outcome(layer_of(fuse_adapters(model)), x), expected)


def test_a_bias_is_added():
    model = peft_model()
    base = layer_of(model).get_base_layer()
    base.bias = torch.nn.Parameter(torch.randn(base.out_features), requires_grad=False)
    x = inputs(layer_of(model))
    expected = outcome(layer_of(model), x)
    torch.testing.assert_close(outcome(layer_of(fuse_adapters(model)), x), expected)


def test_sixteen_bit_models_err_no_more_than_pefts_own_computation():
    exact_model, rounded = peft_model(), peft_model(torch.bfloat16)
    for mine, theirs in zip(exact_model.parameters(), rounded.parameters(), strict=True):
        mine.data.copy_(theirs.data.float())  # the same weights, so that only the computation is rounded
    x = inputs(layer_of(rounded), torch.bfloat16)
    exact, exact_gradients = outcome(layer_of(exact_model), x.float())
    peft, peft_gradients = outcome(layer_of(rounded), x)
    ours, our_gradients = outcome(layer_of(fuse_adapters(rounded)), x)
    assert ours.dtype == torch.bfloat16
    assert [one.dtype for one in our_gradients] == [torch.bfloat16, torch.float32, torch.float32]

    def error(value, reference):
        return float((value.float() - reference).norm() / reference.norm())

    assert error(ours, exact) < 1.2 * error(peft, exact)
    for mine, theirs, reference in zip(our_gradients, peft_gradients, exact_gradients, strict=True):
        # PEFT rounds once, here the factors too: 16 bits have a relative precision of 2^-8.
        assert error(mine, reference) < max(1.2 * error(theirs, reference), 2**-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_that_changes_nothing_leaves_the_model_as_it_is(dtype):
    model = fuse_adapters(peft_model(dtype))
    layer = layer_of(model)
    layer.lora_B["default"].weight.data.zero_()
    x = inputs(layer, dtype)
    assert torch.equal(layer(x), layer.get_base_layer()(x))


def test_pefts_own_ways_are_kept():
    model = fuse_adapters(peft_model())
    layer, x = layer_of(model), inputs(layer_of(model))
    with_adapter = layer(x)
    with model.disable_adapter():
        assert torch.equal(layer(x), layer.get_base_layer()(x))
    merged = copy.deepcopy(model)
    merged.merge_adapter()
    torch.testing.assert_close(layer_of(merged)(x), with_adapter)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_dropout": 0.5}])
def test_what_is_not_plain_lora_is_computed_by_peft(settings):
    model = peft_model(**settings)
    x = inputs(layer_of(model))
    expected = outcome(layer_of(model), x)
    actual = outcome(layer_of(fuse_adapters(model)), x)
    for mine, theirs in zip(actual[1], expected[1], strict=True):
        assert torch.equal(mine, theirs)


def test_a_layer_whose_own_weights_are_trained_is_computed_by_peft():
    model = peft_model()
    layer_of(model).get_base_layer().weight.requires_grad_()
    x = inputs(layer_of(model))
    expected = outcome(layer_of(model), x)
    actual = outcome(layer_of(fuse_adapters(model)), x)
    assert len(actual[1]) == len(expected[1]) == 4
    torch.testing.assert_close(actual, expected)


def test_layers_remain_pefts_by_type_and_name():
    model = peft_model()
    names = list(model.state_dict())
    assert list(fuse_adapters(model).state_dict()) == names
    assert isinstance(layer_of(model), Linear)
