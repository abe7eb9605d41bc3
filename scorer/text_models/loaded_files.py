"""Which files transformers loads of a model: what the digest of a scorer that it loads is made of."""

from pathlib import Path

from huggingface_hub import hf_hub_download
from transformers import PreTrainedConfig

from brain_align.common.identity import digest_files
from brain_align.scorer.text_models.checkpoints import INDEX, SAFETENSORS, SHARDED_BIN, TOKENIZER_FILES, find_weights

_WEIGHTS = (SAFETENSORS, SAFETENSORS + INDEX, SHARDED_BIN, SHARDED_BIN + INDEX)  # in transformers' order
_CONFIG = "config.json"
_TOKENIZERS = (*TOKENIZER_FILES, "vocab.txt", "*.model", "*.jinja")
_ADAPTER = ("adapter_config.json", "adapter_model.*")


def digest_of_loaded(source: str, config: PreTrainedConfig, *, tokenizer: bool = False) -> str:
    """The digest of what is loaded of a model, whatever else lies beside it.

    Args:
        source: a directory, or a hub id whose files have been fetched.
        config: the model's, which was loaded from there.
        tokenizer: whether its tokenizer is used, too.
    """
    if Path(source).is_dir():
        root = Path(source)
    else:  # all files of one commit lie in one directory of the hub's cache
        root = Path(hf_hub_download(source, _CONFIG, revision=config._commit_hash)).parent
    weights = find_weights(root, _WEIGHTS)
    if weights is None:  # named otherwise, by the configuration
        weights = (*root.glob("*.safetensors"), *root.glob("*.bin"))
    patterns = (_CONFIG, *_ADAPTER, *(_TOKENIZERS if tokenizer else ()))
    names = {file.name for file in weights} | {file.name for pattern in patterns for file in root.glob(pattern)}
    return digest_files(root, sorted(names))
