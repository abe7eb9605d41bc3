import json
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.common.nn.models.adapters import save_adapter
from brain_align.common.nn.models.policy_model import load_policy_model
from brain_align.common.nn.models.saving import save_causal_lm
from brain_align.common.policies import PolicyRegistry
from brain_align.common.schemas import GROUPS, batch_from_rows
from brain_align.common.store.sample_store import SampleStore
from brain_align.deploy.cli import main
from brain_align.deploy.commands.export import export
from brain_align.deploy.run.directory import RunDirectory, save_config
from tests.unit.common.nn.logprob_calls import group_logprobs
from tests.unit.factories import PROBE, group, output, recipe_settings
from tests.unit.tiny_models import gpt2_like_tokenizer, llama, save

KINDS: dict[str, dict[str, object]] = {
    "lora": {},
    "qlora": {"quantization": "nf4"},
    "sft": {"sft_adapter": True},
    "full": {"method": "full"},
}


def logprobs(model):
    return group_logprobs(model.eval(), [3, 4], [[7, 8, 9], [10]]).detach()


def a_run(root: Path, **policy):
    """A run with versions 0 and 1; returns its directory, and the policy of version 1 as it was trained."""
    tokenizer = gpt2_like_tokenizer()
    save(llama(vocabulary=len(tokenizer)), root / "model")
    tokenizer.save_pretrained(root / "model")
    if policy.get("sft_adapter"):
        (root / "sft").mkdir()
        save_adapter(trained(load_policy_model(recipe_of(root, {}).policy, seed=5)), root / "sft")
        policy["sft_adapter"] = str(root / "sft")
    recipe = recipe_of(root, policy)
    directory = RunDirectory(root / "run")
    save_config(directory, recipe, {"world": None, "prompts": "digest"})
    model = load_policy_model(recipe.policy, seed=1)
    write = save_causal_lm if recipe.policy.method == "full" else save_adapter
    registry = PolicyRegistry(directory.policies)
    registry.publish(0, 0, lambda target: write(model, target), PROBE)
    trained(model)
    registry.publish(1, 5, lambda target: write(model, target), PROBE)
    return directory, model


def recipe_of(root, policy):
    return Recipe.model_validate(recipe_settings(policy={"model": str(root / "model"), "dtype": "float32", **policy}))


def trained(model):
    """Pretend that it was trained."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(torch.randn(value.shape, generator=generator) * 0.05)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_model_gives_the_policys_log_probabilities(tmp_path, kind):
    directory, policy = a_run(tmp_path, **KINDS[kind])
    export(directory.root, "newest", tmp_path / "whole", merge=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(logprobs(model), logprobs(policy), rtol=0, atol=2e-4)
    files = [load_file(path) for path in (tmp_path / "whole").glob("*.safetensors")]
    assert {value.dtype for file in files for value in file.values()} == {torch.float32}
    assert AutoTokenizer.from_pretrained(tmp_path / "whole")("the cat").input_ids
    assert not (tmp_path / "whole/version.json").exists()


@pytest.mark.parametrize("kind", ["lora", "sft"])
def test_an_adapter_is_what_peft_loads(tmp_path, kind):
    directory, policy = a_run(tmp_path, **KINDS[kind])
    export(directory.root, "1", tmp_path / "adapter", merge=False)
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(logprobs(loaded), logprobs(policy), rtol=0, atol=1e-5)
    files = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "tokenizer.json"} <= set(files)
    assert set(files.values()) == {0o644}


def test_the_best_version_is_the_default(tmp_path, capsys):
    directory, policy = a_run(tmp_path)
    with pytest.raises(UserError, match="has not ended, so no version is the best yet; set --version"):
        export(directory.root, "best", tmp_path / "out", merge=False)
    directory.summary.write_text(json.dumps({"best_version": 0}))
    assert main(["export", str(directory.root), "--output", str(tmp_path / "out"), "--merge"]) == 0
    assert "version 0" in capsys.readouterr().out
    with policy.disable_adapter():
        expected = logprobs(policy)
    torch.testing.assert_close(logprobs(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), expected)


def test_what_is_not_there_or_in_the_way_is_named(tmp_path, capsys):
    directory, _ = a_run(tmp_path)
    root, out = str(directory.root), str(tmp_path / "out")
    for arguments, message in (
        (["nowhere", "--output", out], "is not a run directory: it has no config.yaml"),
        ([root, "--output", out, "--version", "7"], "has versions 0 to 1; give one of them, best or newest"),
        ([root, "--output", out, "--version", "first"], "has versions 0 to 1"),
        ([root, "--output", str(tmp_path / "model"), "--version", "1"], "exists already"),
    ):
        assert main(["export", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not Path(out).exists()
    weights = directory.policies / "v000001/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert main(["export", root, "--output", out, "--version", "1"]) == 2
    assert "version 1" in (message := capsys.readouterr().err) and "is damaged" in message
    assert not Path(out).exists()


def test_a_run_without_versions_is_named(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    save_config(directory, recipe_of(tmp_path, {}), {"world": None, "prompts": "digest"})
    with pytest.raises(UserError, match="has not published a version yet"):
        export(directory.root, "newest", tmp_path / "out", merge=False)


def test_show_computes_beta_under_a_published_version(tmp_path, capsys):
    """At the proposal itself all outputs have the same β; later they have the softmax of what the policy gained."""
    directory, policy = a_run(tmp_path)
    with policy.disable_adapter():
        prior = logprobs(policy)
    sampled = [
        output(tokens, [float(value), *[0.0] * (len(tokens) - 1)])
        for tokens, value in zip([[7, 8, 9], [10]], prior, strict=True)
    ]
    rows = [group("ab", prompt_token_ids=[3, 4], outputs=sampled)]
    SampleStore(directory.store, "run").append_groups(batch_from_rows(GROUPS, rows))
    for version, expected in ((0, torch.tensor([0.5, 0.5])), (1, (logprobs(policy) - prior).softmax(0))):
        assert main(["store", "show", str(directory.root), "ab", "--policy", str(version)]) == 0
        table = [line.split() for line in capsys.readouterr().out.splitlines() if line.rstrip().endswith("text")]
        shown = {int(row[0]): float(row[2]) for row in table}
        assert [shown[0], shown[1]] == pytest.approx(expected.tolist(), abs=6e-4)
    assert main(["store", "show", str(directory.root), "ab", "--policy", "7"]) == 2
    assert "has published versions 0 to 1" in capsys.readouterr().err
    assert main(["store", "show", str(directory.store), "ab", "--policy", "1"]) == 2
    assert "name the run's directory" in capsys.readouterr().err
