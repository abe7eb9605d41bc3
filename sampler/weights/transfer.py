"""vLLM's own interface for weights that are sent to it, implemented on what sampler/weights/receiving.py has received.

Like the engines that vLLM brings along it is a subclass of `WeightTransferEngine`, and so needs vLLM when it is
imported. vLLM imports it in its workers, as the module of their extension, before it makes their transfer engine. Other
than those it asks for all bytes first, and touches the model only once they are there and have the version's digest.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from vllm.config import VllmConfig
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from brain_align.sampler.engine.data import WeightSource
from brain_align.sampler.engine.settings import TRANSFER_BACKEND
from brain_align.sampler.engine.worker import WorkerExtension
from brain_align.sampler.weights.receiving import Reception


@dataclass
class _Source(WeightSource, WeightTransferInitInfo):
    """What `init_weight_transfer_engine` is given."""


@dataclass
class _Received(WeightTransferUpdateInfo):
    """What `update_weights` is given: nothing, since everything has arrived."""


class ReceivedWeights(WeightTransferEngine[_Source, _Received]):
    """Replaces the model's weights by those of a version that was received whole, and verified, before.

    With tensor parallelism each worker receives all bytes itself, and takes its part of them.
    """

    init_info_cls = _Source
    update_info_cls = _Received

    def __init__(
        self, config: WeightTransferConfig, vllm_config: VllmConfig, device: torch.device, model: torch.nn.Module
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        self.reception: Reception | None = None
        self._missing: set[str] = set()

    def init_transfer_engine(self, init_info: _Source) -> None:
        """Begin to receive a version; an earlier one is forgotten."""
        self.shutdown()
        self.reception = Reception(init_info, self.device, self.parallel_config.tensor_parallel_size)

    def start_weight_update(self) -> None:
        """Open the model for other weights.

        Raises:
            RuntimeError: they are not there, and the model stays as it is.
        """
        self._files()
        self._missing = {name for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, object]) -> None:
        """Load all that was received; vLLM's own would wait for an accelerator, which CPUs do not have."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: _Received) -> None:
        """Load all that was received.

        Raises:
            ValueError: the version has not all of the model's weights, or others, or of other shapes.
        """
        loaded = self.model.load_weights(_tensors(self._files()))
        if loaded is not None and self.model_config.quantization is None:
            missing = sorted({*(self._missing - loaded), *_half_loaded(self.model)})
            if missing:
                raise ValueError(f"the version lacks weights of the model: {', '.join(missing)}")

    def finish_weight_update(self) -> None:
        """Close the model, and forget what was received."""
        finalize_layerwise_reload(self.model, self.model_config)
        self.shutdown()

    def shutdown(self) -> None:
        """Forget what was received, or is being."""
        if self.reception is not None:
            self.reception.release()
            self.reception = None

    def _files(self) -> dict[str, Path]:
        if self.reception is None:
            raise RuntimeError("no version was received")
        return self.reception.files()


class ReceivingExtension(WorkerExtension):
    """Methods of workers whose weights are sent to them."""

    weight_transfer_engine: ReceivedWeights  # vLLM's worker has it

    def reception(self) -> tuple[bool, str | None]:
        """See `Reception.progress`."""
        reception = self.weight_transfer_engine.reception
        return (True, "nothing was asked for") if reception is None else reception.progress()


def _half_loaded(model: torch.nn.Module) -> Iterator[str]:
    """Layers that several tensors of a version go into (`qkv_proj`, `gate_up_proj`), and not all of them came.

    `load_weights` names the parameters that anything went into; vLLM counts the elements, and closes a layer that has
    all of its own.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, MergedColumnParallelLinear | QKVParallelLinear):
            progress = get_layerwise_info(layer)
            if progress.load_numel_total is not None:
                yield f"{name} ({progress.load_numel} of {progress.load_numel_total} elements)"


def _tensors(files: dict[str, Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in the safetensors files among those received, without copying them."""
    for name in sorted(files):
        if name.endswith(".safetensors"):
            with safe_open(files[name], framework="pt") as file:
                for key in file.offset_keys():  # in the file's order, which has a layer's tensors together
                    yield key, file.get_tensor(key)


WeightTransferEngineFactory.register_engine(TRANSFER_BACKEND, ReceivedWeights)
