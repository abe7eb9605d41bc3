from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import Gemma3Config, Gemma3TextConfig, LlamaConfig, PreTrainedConfig

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.common.nn.models.adapters import save_adapter
from brain_align.deploy.run.delivery import DeliveryChoice, delivery_of
from tests.unit.factories import recipe_settings
from tests.unit.tiny_models import llama

GPU, FULL = {"gpus": 1}, {"policy": {"model": "m", "method": "full", "dtype": "float32"}}
OVERLAPPED = {"algorithm": {"max_staleness": 1}}


LLAMA = LlamaConfig(architectures=["LlamaForCausalLM"])


def decided(
    monkeypatch: pytest.MonkeyPatch,
    *,
    vllm_has_adapters: bool | None,
    config: PreTrainedConfig = LLAMA,
    **settings: Any,
) -> DeliveryChoice:
    """The delivery of a recipe, where vLLM has adapters for the model or not (None: it must not be asked)."""

    def asked(architectures: list[str]) -> bool:
        assert architectures == (config.architectures or [])
        assert vllm_has_adapters is not None, "asking costs seconds"
        return vllm_has_adapters

    monkeypatch.setattr("brain_align.common.nn.models.configuration.load_any_config", lambda _model: config)
    monkeypatch.setattr("brain_align.sampler.engine.adapter_support.supports_adapters", asked)
    return delivery_of(Recipe.model_validate(recipe_settings(**settings)))


@pytest.mark.parametrize(
    ("settings", "vllm_has_adapters", "merged", "sentence"),
    [
        ({}, None, True, "merged: samplers run on CPUs"),
        ({"sampler": GPU}, True, False, "files: vLLM computes with adapters beside the model"),
        ({"sampler": GPU}, False, True, "merged: vLLM has no adapters for LlamaForCausalLM"),
        (OVERLAPPED, True, False, "files: vLLM computes with adapters beside the model"),
        (OVERLAPPED, False, True, "merged: vLLM has no adapters for LlamaForCausalLM"),
        ({"sampler": {"delivery": "files"}}, None, False, "files: sampler.delivery=files"),
        ({"sampler": {"delivery": "merged", **GPU}}, None, True, "merged: sampler.delivery=merged"),
        (FULL, None, False, "files: whole models"),
        ({**FULL, "sampler": {"delivery": "transfer"}}, None, False, "transfer: sampler.delivery=transfer"),
    ],
)
def test_adapters_are_merged_where_vllm_has_none_and_on_cpus(
    monkeypatch: pytest.MonkeyPatch, settings: Any, vllm_has_adapters: bool | None, merged: bool, sentence: str
) -> None:
    found = decided(monkeypatch, vllm_has_adapters=vllm_has_adapters, **settings)
    assert found.merged == merged
    assert found.sentence().startswith(sentence)
    chosen = settings.get("sampler", {}).get("delivery", "auto") == "auto" and "policy" not in settings
    assert any("sampler.delivery=auto" in note for note in found.notes) == chosen


@pytest.mark.parametrize(
    ("architectures", "named"),
    [(["Gemma3ForConditionalGeneration"], "Gemma3ForConditionalGeneration"), (None, "gemma3")],
)
def test_vllm_is_asked_for_the_whole_model_and_the_reason_names_one(
    monkeypatch: pytest.MonkeyPatch, architectures: list[str] | None, named: str
) -> None:
    whole = Gemma3Config(text_config=Gemma3TextConfig().to_dict(), architectures=architectures)
    assert not whole.get_text_config().architectures, "the text model's configuration need not name a class"
    found = decided(monkeypatch, vllm_has_adapters=False, config=whole, sampler=GPU)
    assert found.sentence().startswith(f"merged: vLLM has no adapters for {named}")


def test_an_adapter_of_embeddings_stays_beside_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"]))
    save_adapter(model, tmp_path)
    policy = {"policy": {"model": "m", "sft_adapter": str(tmp_path)}}
    found = decided(monkeypatch, vllm_has_adapters=None, **policy)
    assert not found.merged
    assert "adapts embeddings (base_model.model.model.embed_tokens." in found.notes[0]
    with pytest.raises(UserError, match=r"sampler\.delivery=merged: .*adapts embeddings"):
        decided(monkeypatch, vllm_has_adapters=None, sampler={"delivery": "merged"}, **policy)
    save_adapter(get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"])), tmp_path)
    assert decided(monkeypatch, vllm_has_adapters=None, **policy).merged


@pytest.mark.parametrize(("replicas", "alone"), [(1, True), (2, False)])
def test_what_one_version_at_a_time_costs_is_said(monkeypatch: pytest.MonkeyPatch, replicas: int, alone: bool) -> None:
    sampler = {"delivery": "merged", "replicas": replicas}
    (note,) = decided(monkeypatch, vllm_has_adapters=None, sampler=sampler, **OVERLAPPED).notes
    assert "max_staleness=1 it finishes all its requests of one version before it loads the next" in note
    assert ("this run's only sampler samples nothing new" in note) == alone
    assert not decided(monkeypatch, vllm_has_adapters=None, sampler=sampler).notes


def test_overlapped_runs_on_cpus_are_told_what_would_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    notes = decided(monkeypatch, vllm_has_adapters=True, **OVERLAPPED).notes
    assert "sampler.delivery=merged is faster" in notes[-1]
    assert len(decided(monkeypatch, vllm_has_adapters=True, sampler=GPU, **OVERLAPPED).notes) == 1
