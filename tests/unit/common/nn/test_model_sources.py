"""Where models come from: no code of theirs, revisions, shards beside their index, what an error says."""

import json

import pytest
from transformers import Gemma3Config, Phi3Config

from brain_align.common.config.inputs import AdapterSection, PolicySection
from brain_align.common.errors import UserError, first_line
from brain_align.common.nn.models.adapters import ALL_LINEAR, attach_new_adapter
from brain_align.common.nn.models.causal_lm import load_causal_lm, load_tokenizer
from brain_align.common.nn.models.configuration import load_config
from brain_align.common.nn.models.policy_check import check_policy
from brain_align.common.nn.models.rotary import rotary_switch
from brain_align.common.nn.models.shards import shard_names
from brain_align.common.nn.models.sources import find_source
from tests.unit.tiny_models import llama, save


def test_a_model_s_own_code_is_never_run(tmp_path):
    settings = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    for load in (load_config, load_tokenizer, lambda source: load_causal_lm(source, "float32")):
        with pytest.raises(UserError):
            load(str(tmp_path))
    with pytest.raises(UserError, match=r"needs Python code of its own .* not run here"):
        load_config(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_hub_id_may_name_a_revision(tmp_path):
    source = find_source("org/model@refs/pr/3", "The model")
    assert (source.name, source.revision, source.local) == ("org/model", "refs/pr/3", False)
    (tmp_path / "a@b").mkdir()
    assert find_source(str(tmp_path / "a@b"), "The model").local


def test_an_adapter_in_place_of_a_model_is_named_with_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(UserError, match=r"holds an adapter .*policy.model to .*org/base.* policy.sft_adapter"):
        load_config(str(tmp_path))


@pytest.mark.parametrize("names", [["../../secret"], ["/etc/passwd"], [3], [], ["a", None]])
def test_an_index_names_files_beside_it_only(tmp_path, names):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {str(place): name for place, name in enumerate(names)}}))
    with pytest.raises(UserError, match="index of sharded weights"):
        shard_names(index)


def test_the_telling_line_of_an_error_is_not_its_heading():
    torch_s = "Error(s) in loading state_dict for Model:\n\tsize mismatch for x: [2] and [3]."
    assert first_line(RuntimeError(torch_s)).endswith("size mismatch for x: [2] and [3].")
    assert first_line(RuntimeError("404 Client Error. (Request)\n\nRepository Not Found")).endswith("Not Found")
    assert first_line(RuntimeError("\nfirst\nsecond")) == "first"
    assert first_line(KeyError()) == "KeyError"


def test_all_linear_layers_get_adapters():
    policy = attach_new_adapter(llama(), AdapterSection(r=2, alpha=2, targets=[ALL_LINEAR]), seed=0)
    assert len([name for name, value in policy.named_parameters() if value.requires_grad]) == 2 * 2 * 7


def test_a_model_of_several_parts_is_read_as_its_text_model_and_not_sampled_from(tmp_path):
    Gemma3Config().save_pretrained(tmp_path)
    assert load_config(str(tmp_path)).model_type == "gemma3_text"
    with pytest.raises(UserError, match="holds more than a text model"):
        check_policy(PolicySection(model=str(tmp_path)), sampled=True)


def test_texts_beyond_the_switch_of_rotary_frequencies_need_a_window(tmp_path):
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64, **factors}
    assert (
        rotary_switch(
            Phi3Config(
                hidden_size=32,
                num_attention_heads=4,
                rope_parameters=rope,
                original_max_position_embeddings=64,
                pad_token_id=0,
            )
        )
        == 64
    )
    save(llama(), tmp_path)
    assert rotary_switch(load_config(str(tmp_path))) is None
