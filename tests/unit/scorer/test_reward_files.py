"""Reward models in shards, in memory, and over several devices."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import save_file

from brain_align.common.errors import UserError
from brain_align.scorer.text_models.checkpoints import Checkpoint, find_checkpoint
from brain_align.scorer.text_models.formats import FORMATS, HH, TLDR
from brain_align.scorer.text_models.gptj_model import layer_devices, load_gptj_reward
from tests.allocations import peak_bytes
from tests.unit.scorer.test_gptj_reward import TOKENIZER, rewards, tiny_weights, write

KINDS = {
    "model.safetensors": lambda weights, file: save_file({n: w.contiguous() for n, w in weights.items()}, file),
    "pytorch_model.bin": torch.save,
}


def write_shards(directory: Path, kind: str, shards: int = 3, **settings: int) -> None:
    """Weights in several files and their index, as transformers writes them."""
    config, weights = tiny_weights(**settings)
    stem, suffix = kind.split(".")
    files = [f"{stem}-{number + 1:05d}-of-{shards:05d}.{suffix}" for number in range(shards)]
    of_weight = {name: files[place % shards] for place, name in enumerate(weights)}
    directory.mkdir(exist_ok=True)
    for file in files:
        KINDS[kind]({name: weights[name] for name, where in of_weight.items() if where == file}, directory / file)
    (directory / f"{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": of_weight}))
    config.save_pretrained(directory)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_shards_are_read_as_one_file_is(tmp_path, kind, form):
    config, weights = tiny_weights()
    whole = write(tmp_path / "whole", form, weights, config)
    write_shards(tmp_path / "shards", kind)
    shards = find_checkpoint(str(tmp_path / "shards"), form)
    assert len(shards.weights) == 3
    expected = rewards(load_gptj_reward(whole, "float32"), form)
    assert rewards(load_gptj_reward(shards, "float32"), form) == pytest.approx(expected, abs=1e-6)


def test_the_digest_depends_on_every_shard(tmp_path):
    digests = set()
    for seed in (0, 1, 0):
        write_shards(tmp_path, "model.safetensors", seed=seed)
        digests.add(find_checkpoint(str(tmp_path), TLDR).digest())
    assert len(digests) == 2


def test_incomplete_shards_are_named(tmp_path):
    write_shards(tmp_path, "pytorch_model.bin")
    second = tmp_path / "pytorch_model-00002-of-00003.bin"
    taken = second.read_bytes()
    second.unlink()
    with pytest.raises(UserError, match=r"names 3 files of weights, of which 1 are missing \(pytorch_model-00002-of"):
        find_checkpoint(str(tmp_path), HH)
    second.write_bytes((tmp_path / "pytorch_model-00001-of-00003.bin").read_bytes())
    with pytest.raises(UserError, match=r"00002-of-00003\.bin holds weights that another shard holds, too: tr"):
        load_gptj_reward(find_checkpoint(str(tmp_path), HH), "float32")
    second.write_bytes(taken)
    for content in ("{", "[]", '{"weight_map": {}}'):
        (tmp_path / "pytorch_model.bin.index.json").write_text(content)
        with pytest.raises(UserError, match=r"pytorch_model\.bin\.index\.json (is not an index|names no files)"):
            find_checkpoint(str(tmp_path), TLDR)


# -- the hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub whose repository is one directory, and its cache, another."""
    repository, cache = tmp_path / "repository", tmp_path / "cache"
    repository.mkdir()
    cache.mkdir()
    asked = []

    def download(name, file, *, revision):
        asked.append((name, file, revision))
        if not (repository / file).is_file():
            raise EntryNotFoundError(file)
        shutil.copy(repository / file, cache / file)
        return str(cache / file)

    monkeypatch.setattr("brain_align.scorer.text_models.checkpoints.hf_hub_download", download)
    for user in ("common.nn.models.sources", "scorer.text_models.checkpoints"):
        monkeypatch.setattr(f"brain_align.{user}.hub_failure", lambda: None)
    return repository, cache, asked


@pytest.mark.parametrize(
    ("form", "file", "tokenizer"),
    [(TLDR, "pytorch_model.bin", "EleutherAI/gpt-j-6B"), (HH, "hf_ckpt.pt", "gpt2")],
    ids=["tldr", "hh"],
)
def test_a_hub_id_may_name_a_revision_and_the_published_file_is_fetched(hub, form, file, tokenizer):
    repository, cache, asked = hub
    (repository / file).write_bytes(b"weights")
    found = find_checkpoint("owner/model@676bfd4d", form)
    assert {(name, revision) for name, _, revision in asked} == {("owner/model", "676bfd4d")}
    assert (found.weights, found.config, found.tokenizer) == ((cache / file,), None, tokenizer)
    find_checkpoint("owner/model", form)
    assert asked[-1][2] is None


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_what_is_taken_from_the_hub_is_what_is_taken_from_a_directory(hub, form):
    repository, cache, _ = hub
    write_shards(repository, "model.safetensors")
    (repository / form.checkpoint_file).write_bytes(b"the same weights again")
    TOKENIZER.save_pretrained(repository)
    found, here = find_checkpoint("owner/model", form), find_checkpoint(str(repository), form)
    assert [file.name for file in found.weights] == [file.name for file in here.weights]
    assert len(found.weights) == 3 and not (cache / form.checkpoint_file).exists()
    assert (found.config, found.tokenizer) == (cache / "config.json", str(cache))
    assert found.digest() == here.digest()


def test_a_repository_without_weights_is_named(hub):
    with pytest.raises(UserError, match=r"loaded from owner/model, .* hub id: it has none of model\.safe"):
        find_checkpoint("owner/model", TLDR)


def test_the_digest_depends_on_the_files_that_are_read_alone(tmp_path):
    config, weights = tiny_weights()
    write(tmp_path, TLDR, weights, config)
    alone = find_checkpoint(str(tmp_path), TLDR).digest()
    (tmp_path / "tokenizer_config.json").write_text("{}")  # no tokenizer: the format's own is used
    (tmp_path / "trainer_state.json").write_text("{}")
    assert find_checkpoint(str(tmp_path), TLDR).digest() == alone
    config.layer_norm_epsilon *= 2
    config.save_pretrained(tmp_path)
    assert find_checkpoint(str(tmp_path), TLDR).digest() != alone


def test_a_reward_model_that_cannot_be_fetched_is_named(monkeypatch):
    def download(*_, **__):
        raise OSError("no such repository\nand more")

    monkeypatch.setattr("brain_align.scorer.text_models.checkpoints.hf_hub_download", download)
    for user in ("common.nn.models.sources", "scorer.text_models.checkpoints"):
        monkeypatch.setattr(f"brain_align.{user}.hub_failure", lambda: None)
    with pytest.raises(UserError, match=r"loaded from owner/model, .* must be a hub id: no such repository$"):
        find_checkpoint("owner/model", TLDR)


# -- memory


LARGE = {"n_embd": 128, "n_layer": 4, "n_positions": 64, "rotary_dim": 8}


def half_precision(directory: Path, kind: str) -> tuple[Checkpoint, int]:
    """A checkpoint of float16 weights, as the real ones are, and how many bytes they have."""
    config, weights = tiny_weights(**LARGE)
    kept = {name: value.half() for name, value in weights.items() if not name.endswith("bias") or "attn" not in name}
    directory.mkdir(exist_ok=True)
    KINDS[kind](kept, directory / kind)
    config.save_pretrained(directory)
    return find_checkpoint(str(directory), TLDR), sum(value.nbytes for value in kept.values())


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_the_file_s_own_type_are_not_copied_and_others_once(tmp_path, kind):
    checkpoint, size = half_precision(tmp_path, kind)
    # The mapped file counts as allocated, though the system reads and drops its pages as it likes.
    assert size <= peak_bytes(lambda: load_gptj_reward(checkpoint, "float16")) < 1.2 * size
    assert peak_bytes(lambda: load_gptj_reward(checkpoint, "bfloat16")) < 2.2 * size


# -- several devices


def test_layers_are_spread_in_runs_of_almost_one_length():
    def runs(layers, count):
        found = layer_devices(layers, [torch.device(f"cuda:{index}") for index in range(count)])
        assert found == sorted(found, key=lambda device: device.index)
        return [found.count(torch.device(f"cuda:{index}")) for index in range(count)]

    assert runs(28, 1) == [28]
    assert runs(28, 2) == [14, 14]
    assert sorted(runs(28, 3)) == [9, 9, 10]
    assert runs(2, 2) == [1, 1]


def test_weights_lie_with_their_layer_and_states_go_from_device_to_device(tmp_path):
    """The second device is `meta`, which has shapes but no values: all that a machine without GPUs can show."""
    config, weights = tiny_weights(n_layer=4)
    model = load_gptj_reward(write(tmp_path, TLDR, weights, config), "float32", ["cpu", "meta"])
    devices = {name: value.device.type for name, value in (*model.named_parameters(), *model.named_buffers())}
    for name, device in devices.items():
        late = name.startswith(("transformer.h.2.", "transformer.h.3.", "transformer.ln_f.", "v_head."))
        assert device == ("meta" if late else "cpu"), name
    seen = []
    for block in model.transformer.h:
        block.register_forward_pre_hook(
            lambda _, args, named: seen.append((args[0].device.type, named["position_ids"].device.type)),
            with_kwargs=True,
        )
    ids = torch.arange(12)[None]
    states = model.transformer(input_ids=ids, position_ids=ids, use_cache=False).last_hidden_state
    assert seen == [("cpu", "cpu")] * 2 + [("meta", "meta")] * 2
    assert (states.shape, states.device.type) == ((1, 12, config.n_embd), "meta")


def test_what_is_spread_gives_the_same_rewards(tmp_path):
    config, weights = tiny_weights(n_layer=4)
    checkpoint = write(tmp_path, TLDR, weights, config)
    expected = rewards(load_gptj_reward(checkpoint, "float32"), TLDR)
    assert rewards(load_gptj_reward(checkpoint, "float32", ["cpu", "cpu"]), TLDR) == expected


def test_a_packed_row_s_layout_stays_where_it_is_read(tmp_path):
    config, weights = tiny_weights(n_layer=2)
    model = load_gptj_reward(write(tmp_path, TLDR, weights, config), "float32", ["cpu", "meta"])
    layout = torch.tensor([[1, 2]])
    seen = []
    second = model.transformer.h[1]
    second.register_forward_pre_hook(lambda _, args, named: seen.append(named["attention_mask"]), with_kwargs=True)
    second.forward = lambda *args, **named: (args[0], None)
    second(torch.zeros(1, 2, config.n_embd), attention_mask=layout, position_ids=torch.arange(2)[None])
    assert seen[0] is layout
    mask = torch.zeros(1, 1, 2, 2)
    second(torch.zeros(1, 2, config.n_embd), attention_mask=mask, position_ids=torch.arange(2)[None])
    assert seen[1].is_meta
