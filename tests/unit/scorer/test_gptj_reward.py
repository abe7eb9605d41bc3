import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config

from brain_align.common.errors import UserError
from brain_align.scorer.text_models.checkpoints import find_checkpoint
from brain_align.scorer.text_models.formats import EOS, FORMATS, HH, TLDR
from brain_align.scorer.text_models.gptj_model import GPTJReward, load_gptj_reward
from brain_align.scorer.text_models.text_values import TextValues
from tests.reference.reward_models import ReferenceReward
from tests.unit.tiny_models import CONTEXT, gpt2_like_tokenizer, gptj_config

TOKENIZER = gpt2_like_tokenizer()
PROMPT = "the cat\nTL;DR:"
OUTPUTS = [" the cat sat on the mat", "", " sat", " ß日本", " the text of the start" * 20, f" sat{EOS} on"]


def tiny_weights(seed=0, **settings):
    """Weights with the names of the real files, old buffers included."""
    torch.manual_seed(seed)
    config = gptj_config(vocabulary=len(TOKENIZER), **settings)
    model = GPTJReward(config)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    weights["v_head.weight"] *= 10  # rewards that differ enough to compare
    for layer in range(config.n_layer):
        size = config.n_positions
        weights[f"transformer.h.{layer}.attn.bias"] = torch.tril(torch.ones(1, 1, size, size, dtype=torch.bool))
        weights[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e9)
    return config, weights


def write(directory, format, weights, config=None, **options):
    directory.mkdir(exist_ok=True)
    torch.save(weights, directory / format.checkpoint_file, **options)
    if config is not None:
        config.save_pretrained(directory)
    return find_checkpoint(str(directory), format)


@pytest.fixture(params=list(FORMATS))
def format(request):
    return FORMATS[request.param]


@pytest.fixture
def checkpoint(tmp_path, format):
    config, weights = tiny_weights()
    return write(tmp_path / "model", format, weights, config)


# -- rewards


def rewards(model, format, max_tokens=10_000):
    texts = [format.text(PROMPT, output) for output in OUTPUTS]
    encoded = format.encode(TOKENIZER, texts, model.config.n_positions)
    return TextValues(model.transformer, model.v_head, max_tokens).of([text.read for text in encoded])


def test_rewards_equal_those_of_the_specification_one_text_at_a_time(checkpoint, format):
    reference = ReferenceReward(checkpoint.root, TOKENIZER)
    plain = reference.tldr if format is TLDR else reference.hh
    expected = [plain(PROMPT, output) for output in OUTPUTS]
    actual = rewards(load_gptj_reward(checkpoint, "float32"), format)
    assert len(set(expected)) == len(OUTPUTS)
    assert max(expected) - min(expected) > 1
    assert actual == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("max_tokens", [1, CONTEXT, 2 * CONTEXT + 1])
def test_splitting_a_batch_changes_nothing(checkpoint, format, max_tokens):
    model = load_gptj_reward(checkpoint, "float32")
    assert rewards(model, format, max_tokens) == pytest.approx(rewards(model, format), abs=1e-5)
    assert rewards(model, format, max_tokens) == rewards(model, format, max_tokens)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_rewards_are_near_and_not_rounded_themselves(checkpoint, format, dtype):
    exact = rewards(load_gptj_reward(checkpoint, "float32"), format)
    model = load_gptj_reward(checkpoint, dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    values = rewards(model, format)
    assert values == pytest.approx(exact, abs=0.1 * max(map(abs, exact)))
    rounded = [torch.tensor(value).to(getattr(torch, dtype)).item() for value in values]
    assert values != rounded


# -- loading


def test_the_file_is_mapped_and_not_copied(checkpoint):
    model = load_gptj_reward(checkpoint, "float32")
    mapped = checkpoint.weights[0].resolve()
    with open("/proc/self/maps") as maps:
        ranges = [line.split()[0].split("-") for line in maps if line.rstrip().endswith(str(mapped))]
    assert ranges
    for name, parameter in model.named_parameters():
        address = parameter.data_ptr()
        assert any(int(low, 16) <= address < int(high, 16) for low, high in ranges), name


def test_nothing_is_left_on_the_meta_device_or_trainable(checkpoint):
    model = load_gptj_reward(checkpoint, "float16")
    everything = [*model.named_parameters(), *model.named_buffers()]
    assert not [name for name, value in everything if value.is_meta or value.requires_grad]
    assert not model.training
    fresh = GPTJReward(model.config)
    for name, buffer in fresh.named_buffers():  # rotary positions, in float32
        assert torch.equal(model.get_buffer(name), buffer)


def test_files_of_old_pytorch_versions_are_read(tmp_path, format):
    config, weights = tiny_weights()
    new = write(tmp_path / "new", format, weights, config)
    old = write(tmp_path / "old", format, weights, config, _use_new_zipfile_serialization=False)
    expected = rewards(load_gptj_reward(new, "float32"), format)
    assert rewards(load_gptj_reward(old, "float32"), format) == expected


def test_safetensors_are_preferred(tmp_path, format):
    config, weights = tiny_weights()
    expected = rewards(load_gptj_reward(write(tmp_path, format, weights, config), "float32"), format)
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "model.safetensors")
    (tmp_path / format.checkpoint_file).write_bytes(b"never read")
    checkpoint = find_checkpoint(str(tmp_path), format)
    assert [file.name for file in checkpoint.weights] == ["model.safetensors"]
    assert rewards(load_gptj_reward(checkpoint, "float32"), format) == pytest.approx(expected, abs=1e-5)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"model.safetensors cannot be read"):
        load_gptj_reward(checkpoint, "float32")


def test_hh_files_may_hold_the_language_model_too(tmp_path):
    config, weights = tiny_weights()
    copies = {f"model.{name}": value for name, value in weights.items() if name != "v_head.weight"}
    copies["model.transformer.wte.weight"] = weights["transformer.wte.weight"].clone()  # equal, not shared
    copies["model.lm_head.weight"] = torch.zeros(len(TOKENIZER), config.n_embd)
    copies["model.lm_head.bias"] = torch.zeros(len(TOKENIZER))
    plain = write(tmp_path / "plain", HH, weights, config)
    doubled = write(tmp_path / "doubled", HH, weights | copies, config)
    assert rewards(load_gptj_reward(doubled, "float32"), HH) == rewards(load_gptj_reward(plain, "float32"), HH)

    with pytest.raises(UserError, match=r"unexpected: model\.lm_head\.bias"):
        load_gptj_reward(write(tmp_path / "tldr", TLDR, weights | copies, config), "float32")
    copies["model.transformer.wte.weight"] += 1
    with pytest.raises(UserError, match=r"unexpected: model\.transformer\.wte\.weight\."):
        load_gptj_reward(write(tmp_path / "other", HH, weights | copies, config), "float32")


def test_every_missing_and_unexpected_weight_is_named(tmp_path, format):
    config, weights = tiny_weights()
    del weights["transformer.h.1.mlp.fc_in.bias"], weights["v_head.weight"]
    weights["v_head.bias"] = torch.zeros(1)
    weights["transformer.h.0.attn.rotary"] = torch.zeros(1)
    with pytest.raises(UserError) as caught:
        load_gptj_reward(write(tmp_path, format, weights, config), "float32")
    message = str(caught.value)
    assert "missing: transformer.h.1.mlp.fc_in.bias, v_head.weight;" in message
    assert "unexpected: transformer.h.0.attn.rotary, v_head.bias." in message


def test_only_the_old_buffers_are_filtered(tmp_path, format):
    config, weights = tiny_weights()
    weights["transformer.h.0.attn.q_proj.bias"] = torch.zeros(1)
    weights["transformer.attn.bias"] = torch.zeros(1)
    with pytest.raises(UserError, match=r"unexpected: transformer.attn.bias, transformer.h.0.attn.q_proj.bias\."):
        load_gptj_reward(write(tmp_path, format, weights, config), "float32")


def test_a_configuration_of_another_size_is_named_with_both_shapes(tmp_path, format):
    config, weights = tiny_weights()
    config.n_embd, config.n_layer = 48, 1
    with pytest.raises(UserError) as caught:
        load_gptj_reward(write(tmp_path, format, weights, config), "float32")
    assert "v_head.weight is [1, 32], expected [1, 48]" not in str(caught.value)  # it lists 8 and counts the rest
    assert "transformer.h.0.attn.k_proj.weight is [32, 32], expected [48, 48]" in str(caught.value)
    assert "unexpected: transformer.h.1" in str(caught.value)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_without_a_configuration_it_is_gptj_6b(tmp_path, format):
    checkpoint = write(tmp_path, format, tiny_weights()[1])
    assert checkpoint.config is None
    assert checkpoint.tokenizer == format.tokenizer
    with pytest.raises(UserError) as caught:
        load_gptj_reward(checkpoint, "float32")
    assert "GPT-J-6B" in str(caught.value)
    assert "missing: transformer.h.10.attn.k_proj.weight" in str(caught.value)
    assert "[32, 32], expected [4096, 4096]" in str(caught.value)


def test_other_configurations_and_files_are_refused(tmp_path, format):
    weights = tiny_weights()[1]
    with pytest.raises(UserError, match="a gpt2 model, not a gptj one"):
        load_gptj_reward(write(tmp_path, format, weights, GPT2Config()), "float32")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as a model configuration"):
        load_gptj_reward(find_checkpoint(str(tmp_path), format), "float32")
    (tmp_path / format.checkpoint_file).write_bytes(b"torn")
    gptj_config().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        load_gptj_reward(find_checkpoint(str(tmp_path), format), "float32")
    with pytest.raises(UserError, match="not a dictionary of tensors"):
        load_gptj_reward(write(tmp_path, format, [torch.zeros(1)]), "float32")


class Malicious:
    def __reduce__(self):
        return print, ("executed",)


def test_no_code_of_a_checkpoint_is_executed(tmp_path, format, capfd):
    with pytest.raises(UserError, match="cannot be read"):
        load_gptj_reward(write(tmp_path, format, {"v_head.weight": Malicious()}), "float32")
    assert "executed" not in capfd.readouterr().out


# -- finding


def test_missing_files_and_directories_are_named(tmp_path, format):
    with pytest.raises(UserError, match=f"holds neither {format.checkpoint_file}"):
        find_checkpoint(str(tmp_path), format)
    with pytest.raises(UserError, match=r"the directory .*/absent does not exist"):
        find_checkpoint(str(tmp_path / "absent"), format)


def test_the_digest_depends_on_every_file(tmp_path, format):
    config, weights = tiny_weights()
    digests = {write(tmp_path, format, weights).digest()}
    digests.add(write(tmp_path, format, weights, config).digest())
    TOKENIZER.save_pretrained(tmp_path)
    checkpoint = find_checkpoint(str(tmp_path), format)
    assert checkpoint.tokenizer == str(tmp_path)
    digests.add(checkpoint.digest())
    digests.add(write(tmp_path, format, tiny_weights(seed=1)[1]).digest())
    assert len(digests) == 4
    (tmp_path / "README.md").write_text("unrelated")
    assert find_checkpoint(str(tmp_path), format).digest() in digests


def test_a_copy_elsewhere_has_the_same_digest(tmp_path, format):
    config, weights = tiny_weights()
    for name in "ab":
        write(tmp_path / name, format, weights, config)
        TOKENIZER.save_pretrained(tmp_path / name)
    digests = [find_checkpoint(str(tmp_path / name), format).digest() for name in "ab"]
    assert digests[0] == digests[1]
