"""Tiny configurations of every kind of causal language model that transformers can build: same names, small numbers.

Windows and other lengths at which a model changes its behaviour are 40 tokens: more than the texts on which packed rows
are tried when a model is loaded, and fewer than those of the comparison.
"""

from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 96
CONTEXT = 128
SWITCH = 40

_SHARED: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "n_words"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "emb_dim", "lru_width"), 32),
    **dict.fromkeys(("word_embed_proj_dim", "input_embedding_size", "output_embedding_size"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 24),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "expert_ffn_hidden_size"), 24),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "n_group"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_seq_length"), CONTEXT),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "window_size", "local_attention"), SWITCH),
    **dict.fromkeys(("attention_window_size", "sliding_window_size", "index_topk", "floor_scale"), SWITCH),
    **dict.fromkeys(("initializer_range", "initializer_std", "init_std"), 0.3),
    **{"num_key_value_heads": 2, "head_dim": 16, "topk_group": 1, "first_k_dense_replace": 1},
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "qk_head_dim": 24},
    **{"v_head_dim": 16, "index_head_dim": 16, "index_n_heads": 16, "rotary_dim": 8, "hidden_size_per_layer_input": 8},
    **{"mamba_d_state": 8, "state_size": 8, "mamba_chunk_size": 16, "chunk_size": 16},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
_MLA = {"head_dim": 8, "num_key_value_heads": 4}
_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
_CONVOLUTIONS = {"layer_types": ["conv", "full_attention"]}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1}
_PLAIN_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_OF_KIND: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"), _MLA),
    **dict.fromkeys(("glm_moe_dsa", "longcat_flash", "minicpm3", "youtu"), _MLA),
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"), _HYBRID),
    **dict.fromkeys(("lfm2", "lfm2_moe"), _CONVOLUTIONS),
    "bamba": _MAMBA | {"attn_layer_indices": [1]},
    "bloom": {"seq_length": CONTEXT},
    "dbrx": {
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots1": {"n_shared_experts": 1},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "num_kv_shared_layers": 0,
        "laurel_rank": 8,
        "altup_num_inputs": 2,
        "activation_sparsity_pattern": None,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": _MAMBA | {"layer_types": ["mamba", "attention"]},
    "helium": {"head_dim": 8, "num_key_value_heads": 4},
    "hrm_text": {"initializer_range": 0.1},  # its recurrence magnifies rounding
    "jamba": {
        **{"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
        **{"mamba_dt_rank": 4},
    },
    "kimi_linear": _MLA | _HYBRID,
    "mamba": {"max_position_embeddings": CONTEXT},  # as its users must add it
    "mamba2": {"head_dim": 16, "n_groups": 1, "max_position_embeddings": CONTEXT},
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {
        **{"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "mamba"], "hybrid_layer_ids": [1]},
        **{"mamba_headdim": 16, "n_mamba_heads": 4, "mamba_ngroups": 1, "num_mem_blocks": 1},
    },
    "zaya": {"num_experts_per_tok": 1},
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0 + 3 * place for place in range(4)],
    "original_max_position_embeddings": SWITCH,
}
_PHI_LONG = {"rope_parameters": _LONGROPE, "original_max_position_embeddings": SWITCH, "sliding_window": None}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama with linear scaling": ("llama", {"rope_parameters": {**_PLAIN_ROPE, "rope_type": "linear", "factor": 4.0}}),
    "llama with NTK scaling": ("llama", {"rope_parameters": {**_PLAIN_ROPE, "rope_type": "dynamic", "factor": 4.0}}),
    "llama with YaRN": (
        "llama",
        {"rope_parameters": _PLAIN_ROPE | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    ),
    "llama with an output layer of its own": ("llama", {"tie_word_embeddings": False}),
    "mistral without a window": ("mistral", {"sliding_window": None}),
    "falcon with ALiBi": ("falcon", {"alibi": True}),
    "granite with scaled logits": ("granite", {"logits_scaling": 8.0}),
    "phi3 with LongRoPE": ("phi3", _PHI_LONG),
    "phimoe with LongRoPE": (
        "phimoe",
        {**_PHI_LONG, "rope_parameters": _LONGROPE | {"short_mscale": 1.1, "long_mscale": 1.3}},
    ),
    "bert as a decoder": ("bert-generation", {"is_decoder": True}),
}
"""Settings of real models that change how they compute, by name."""


def tiny_config(kind: str, **settings: Any) -> PreTrainedConfig:
    """A small configuration of a kind of model."""
    config = CONFIG_MAPPING[kind]
    default = config().to_dict()
    known = {name: value for name, value in _SHARED.items() if name in default and not isinstance(default[name], dict)}
    aliases = getattr(config, "attribute_map", {})
    known = {name: value for name, value in known.items() if aliases.get(name) not in known}
    return config(**known | _OF_KIND.get(kind, {}) | settings)


def architecture(name: str) -> PreTrainedConfig:
    """The configuration of a kind, or of a variant."""
    kind, settings = VARIANTS.get(name, (name, {}))
    return tiny_config(kind, **settings)


@torch.no_grad()
def random_model(auto_class: Any, config: PreTrainedConfig) -> PreTrainedModel:
    """A model whose weights are random, also those that begin as zeros and would hide what is computed with them."""
    torch.manual_seed(0)
    model = auto_class.from_config(config).eval()
    for weight in model.parameters():
        if not weight.any():
            weight.normal_(std=0.1)
    model.config.architectures = [type(model).__name__]
    return model
