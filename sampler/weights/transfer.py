"""vLLM's interface for weights that are sent to it, implemented with sampler/weights/receiving.py.

vLLM imports this module in its workers, as the module of their extension, before it makes their transfer engine. Unlike
vLLM's own transfer engines, this one fetches all bytes first, and touches the model only once they have arrived and
have the version's digest.
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

from brain_align.sampler.engine.settings import TRANSFER_BACKEND
from brain_align.sampler.engine.worker import WorkerExtension
from brain_align.sampler.weights.receiving import Reception, WeightSource


@dataclass
class _Source(WeightSource, WeightTransferInitInfo):
    """The argument of `init_weight_transfer_engine`."""


@dataclass
class _Received(WeightTransferUpdateInfo):
    """The argument of `update_weights`: empty, since everything has arrived."""


class ReceivedWeights(WeightTransferEngine[_Source, _Received]):
    """Replaces the model's weights by those of a version that has been received completely and verified.

    With tensor parallelism each worker receives all bytes itself, and uses its part of them.
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
        """Start to receive a version; drop an earlier one."""
        self.shutdown()
        self.reception = Reception(init_info, self.device, self.parallel_config.tensor_parallel_size)

    def start_weight_update(self) -> None:
        """Prepare the model for new weights.

        Raises:
            RuntimeError: they have not arrived; the model stays as it is.
        """
        self._files()
        self._missing = {name for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, object]) -> None:
        """Load everything that was received; vLLM's own method would wait for an accelerator, also on CPUs."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: _Received) -> None:
        """Load everything that was received.

        Raises:
            ValueError: the version lacks weights of the model, or has other ones or other shapes.
        """
        loaded = self.model.load_weights(_tensors(self._files()))
        if loaded is not None and self.model_config.quantization is None:
            missing = sorted({*(self._missing - loaded), *_half_loaded(self.model)})
            if missing:
                raise ValueError(f"the version lacks weights of the model: {', '.join(missing)}")

    def finish_weight_update(self) -> None:
        """Finish the model's new weights, and drop the received files."""
        finalize_layerwise_reload(self.model, self.model_config)
        self.shutdown()

    def shutdown(self) -> None:
        """Drop what was received or is being received."""
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
        """Return whether the reception has ended, and the reason if it has failed."""
        reception = self.weight_transfer_engine.reception
        return (True, "nothing was asked for") if reception is None else reception.progress()


def _half_loaded(model: torch.nn.Module) -> Iterator[str]:
    """Yield layers made of several tensors of a version (`qkv_proj`, `gate_up_proj`) that lack some of them.

    `load_weights` names each parameter that received anything; vLLM counts elements, and finishes a layer that has all
    of its own.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, MergedColumnParallelLinear | QKVParallelLinear):
            progress = get_layerwise_info(layer)
            if progress.load_numel_total is not None:
                yield f"{name} ({progress.load_numel} of {progress.load_numel_total} elements)"


def _tensors(files: dict[str, Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of the received safetensors files, without copying them."""
    for name in sorted(files):
        if name.endswith(".safetensors"):
            with safe_open(files[name], framework="pt") as file:
                for key in file.offset_keys():  # in the file's order, in which a layer's tensors are adjacent
                    yield key, file.get_tensor(key)


WeightTransferEngineFactory.register_engine(TRANSFER_BACKEND, ReceivedWeights)
