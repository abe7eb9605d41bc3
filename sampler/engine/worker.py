"""The sampler's code inside vLLM's own processes: vLLM adds the class to its workers and calls its methods by name.

Importing this module ties the process to the sampler that started it, so that no engine outlives its sampler, however
that one was killed.
"""

import multiprocessing
import os
import random
import select
import signal
import threading
from contextlib import suppress
from typing import Any

EXTENSION = "brain_align.sampler.engine.worker.WorkerExtension"
"""For vLLM's `worker_extension_cls`."""

SAMPLER_PID = "BRAIN_SAMPLER_PID"
"""The environment variable with the process id of the sampler, for the engine's processes."""


class WorkerExtension:
    """Methods that vLLM's worker lacks, called through `collective_rpc`."""

    model_runner: Any  # vLLM's own

    def seed_sampling(self, seed: int) -> None:
        """Seed the generators that requests without a seed draw from.

        On CPUs they share torch's generator; on CUDA vLLM draws a seed for each from numpy's.
        """
        import numpy as np
        import torch

        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    def repack_output_layer(self) -> None:
        """Pack the output layer's weights again: on CPUs `reload_weights` leaves the old ones where they are tied."""
        for module in self.model_runner.get_model().modules():
            if type(module).__name__ == "ParallelLMHead":
                module.quant_method.process_weights_after_loading(module)


def _end_with(sampler: int) -> None:
    """End this process, and the engine core above it if that is another one, as soon as the sampler ends."""
    parent = multiprocessing.parent_process()
    above = parent.pid if parent is not None and parent.pid != sampler else None

    def watch() -> None:
        with suppress(ProcessLookupError):  # it has ended already
            select.select([os.pidfd_open(sampler)], [], [])
        if above is not None:
            os.kill(above, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="ends-with-sampler", daemon=True).start()


if SAMPLER_PID in os.environ:
    _end_with(int(os.environ[SAMPLER_PID]))
