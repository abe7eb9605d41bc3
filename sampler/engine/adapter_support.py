"""Whether vLLM computes with LoRA adapters beside a model, asked of vLLM's own classes.

    python -m brain_align.sampler.engine.adapter_support GPTJForCausalLM

Importing vLLM takes seconds and a GiB of memory, so whoever asks has a process of its own do it.
"""

import subprocess
import sys
from collections.abc import Sequence

from brain_align.common.errors import PipelineError

_TIME_LIMIT = 180.0  # seconds, of which the import takes 5 to 20
_YES, _NO = "adapters: yes", "adapters: no"


def supports_adapters(architectures: Sequence[str]) -> bool:
    """Return whether vLLM has LoRA for a model with these `architectures` in its `config.json`.

    Raises:
        PipelineError: vLLM does not say, for example because it is not installed here.
    """
    command = [sys.executable, "-m", "brain_align.sampler.engine.adapter_support", *architectures]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=_TIME_LIMIT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PipelineError(
            f"vLLM did not say whether it has adapters for {', '.join(architectures)}: {error}."
        ) from None
    said = done.stdout.splitlines()[-1:]
    if said not in ([_YES], [_NO]):
        reason = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise PipelineError(f"vLLM did not say whether it has adapters for {', '.join(architectures)}: {reason}.")
    return said == [_YES]


def _ask(architectures: Sequence[str]) -> bool:
    """Ask vLLM's class of the first architecture that it knows; others run on its class for transformers' models."""
    from vllm.model_executor.models import ModelRegistry, supports_lora

    known = [name for name in architectures if name in ModelRegistry.models]
    name = known[0] if known else "TransformersForCausalLM"
    return supports_lora(ModelRegistry.models[name].load_model_cls())


if __name__ == "__main__":
    print(_YES if _ask(sys.argv[1:]) else _NO, flush=True)
