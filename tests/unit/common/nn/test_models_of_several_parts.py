"""Models that also read images or sound: their text model has the whole model's log-probabilities of texts."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMultimodalLM, PreTrainedConfig
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from brain_align.common.errors import UserError
from brain_align.common.nn.models.causal_lm import load_causal_lm
from brain_align.common.nn.models.configuration import load_config
from tests.unit.common.nn.architectures import random_model, tiny_config

_SIZES = {
    **dict.fromkeys(("hidden_size", "embed_dim", "d_model", "vision_output_dim", "projector_input_dim"), 32),
    **dict.fromkeys(("projector_output_dim", "out_hidden_size"), 32),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "depth", "encoder_layers", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "encoder_attention_heads", "num_key_value_heads"), 4),
    **{"head_dim": 8, "image_size": 28, "patch_size": 14, "num_mel_bins": 16, "num_global_layers": 1},
    **{"deepstack_visual_indexes": [0], "fullatt_block_indexes": [1]},
}
_ROTATED = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
_TEXT = {name: {"rope_parameters": _ROTATED} for name in ("qwen2_vl", "qwen2_5_vl", "glm4v")} | {
    "qwen3_vl": {"rope_parameters": _ROTATED | {"mrope_section": [4, 2, 2]}}
}

LOADED = [
    *("gemma3", "gemma4", "mistral3", "llava", "llava_next", "llava_onevision", "qwen3_5", "qwen3_5_moe", "llama4"),
    *("internvl", "idefics3", "smolvlm", "aria", "deepseek_vl", "lfm2_vl", "qwen2_audio", "voxtral", "video_llava"),
]
_NO_CLASS = "has no class for its text model .* give a text-only model"
REFUSED = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "mllama"), _NO_CLASS),
    "paligemma": "reads tokens that come later",
    "aya_vision": "transforms its logits",
}


def tiny(kind: str) -> PreTrainedConfig:
    whole = CONFIG_MAPPING[kind]()
    parts = {}
    for name, kind_of_part in whole.sub_configs.items():
        part = getattr(whole, name)
        if part is None and kind_of_part.model_type:
            part = kind_of_part()
        if part is whole.get_text_config():
            parts[name] = tiny_config(part.model_type, **_TEXT.get(kind, {})).to_dict()
        elif part is not None:
            known = {key for key, value in part.to_dict().items() if not isinstance(value, dict)}
            sizes = {key: value for key, value in _SIZES.items() if key in known}
            parts[name] = {"model_type": part.model_type, **sizes}
    return type(whole)(**parts)


def save(kind, directory, *, renamed=True):
    """Write what `save_pretrained` writes (it imports deepspeed), or the names of the model in memory."""
    model = random_model(AutoModelForMultimodalLM, tiny(kind))
    model.config.save_pretrained(directory)
    once = {value.data_ptr(): (name, value.clone()) for name, value in reversed(model.state_dict().items())}
    weights = dict(once.values())
    weights = revert_weight_conversion(model, weights) if renamed else weights
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("renamed", [True, False], ids=["names of files", "names in memory"])
@pytest.mark.parametrize("kind", LOADED)
@torch.no_grad()
def test_the_text_model_has_the_whole_model_s_log_probabilities(kind, renamed, tmp_path):
    save(kind, tmp_path, renamed=renamed)
    whole = AutoModelForMultimodalLM.from_pretrained(tmp_path).eval()
    text = torch.randint(3, 96, (2, 50), generator=torch.Generator().manual_seed(1))
    expected = whole(input_ids=text).logits.log_softmax(-1)
    ours = load_causal_lm(str(tmp_path), "float32")
    assert sum(value.numel() for value in ours.parameters()) < sum(value.numel() for value in whole.parameters())
    torch.testing.assert_close(ours(input_ids=text).logits.log_softmax(-1), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", REFUSED)
def test_others_are_refused_in_one_sentence(kind, tmp_path):
    save(kind, tmp_path)
    with pytest.raises(UserError, match=REFUSED[kind]) as refusal:
        load_causal_lm(str(tmp_path), "float32")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", [kind for kind, why in REFUSED.items() if why == _NO_CLASS])
def test_a_text_model_without_a_class_is_refused_before_weights_are_read(kind, tmp_path):
    tiny(kind).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=_NO_CLASS):
        load_config(str(tmp_path))


@pytest.mark.parametrize("kind", ["gemma3", "llava", "qwen3_5", "idefics3"])
def test_no_weight_of_the_text_model_is_made_up_or_left(kind, tmp_path):
    save(kind, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.1.mlp.down_proj.weight") and "vision" not in name)
    value = weights.pop(name)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 of its weights: model\.layers\.1\.mlp\.down_proj\.weight"):
        load_causal_lm(str(tmp_path), "float32")
    bias = name.replace("weight", "bias")
    save_file(weights | {name: value, bias: value[:, 0].clone()}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights that a .* has no use for \(model\.layers\.1\.mlp\.down_proj\.bias"):
        load_causal_lm(str(tmp_path), "float32")
