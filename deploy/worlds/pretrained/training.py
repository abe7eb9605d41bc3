"""What fine-tuning of policy and reward models has in common: TRL's settings, checkpoints, and progress."""

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from typing_extensions import override

from brain_align.common.config.run import PrepareSection, RewardModelSection, SftSection
from brain_align.common.durable import write_file
from brain_align.common.errors import UserError
from brain_align.common.identity import seed_from
from brain_align.common.nn.models.adapters import checked_targets
from brain_align.common.nn.models.causal_lm import Dtype
from brain_align.deploy.worlds.training import Progress

_SECONDS_BETWEEN_REPORTS = 15.0
_CHECKPOINTS = 12  # in the course of a stage: so much of it is lost at most when the process is killed
_STATE = "trainer_state.json"  # the last file of a checkpoint that the Trainer writes
_SECONDS = "seconds.json"  # beside the checkpoints
_WARMUP = 0.06


class Spent:
    """The seconds of a stage, over all processes that worked on it.

    They are noted beside its checkpoints with each of these, and where it ends by an error; so what a process did after
    its last checkpoint does not count if it is killed by SIGKILL.
    """

    def __init__(self, checkpoints: Path) -> None:
        self._path = checkpoints / _SECONDS
        self._began = time.monotonic()
        try:
            self._earlier = float(json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            self._earlier = 0.0

    def seconds(self) -> float:
        """Return the seconds so far."""
        return self._earlier + time.monotonic() - self._began

    def note(self) -> None:
        """Write them down for later processes."""
        with contextlib.suppress(OSError):  # a full disk ends the stage by itself, with a better sentence
            write_file(self._path, json.dumps(round(self.seconds(), 1)))

    def __enter__(self) -> "Spent":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.note()


@dataclass(frozen=True)
class Stage:
    """One fine-tuning: what it is called, where its checkpoints lie, and who hears of its progress."""

    label: str
    checkpoints: Path
    progress: Progress
    seed: int


def device_of(settings: PrepareSection) -> str:
    """Return cpu or cuda.

    Raises:
        UserError: the settings ask for a GPU that torch does not see.
    """
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise UserError("prepare.device=cuda, but torch sees no GPU on this machine; set prepare.device=auto.")
    return "cuda" if available and settings.device != "cpu" else "cpu"


def trained_dtype(settings: PrepareSection) -> Dtype:
    """Return the type that weights are loaded in: what is trained as a whole needs float32 for small updates."""
    return "float32" if settings.adapter is None else settings.dtype


def common_arguments(
    settings: PrepareSection, tuning: SftSection | RewardModelSection, stage: Stage, examples: int, row_tokens: int
) -> dict[str, Any]:
    """Return the arguments of TRL's configurations; `row_tokens` are those of the longest example."""
    micro = _micro_batch(tuning.batch, settings.micro_batch_tokens // max(1, row_tokens))
    steps = max(1, round(tuning.epochs * examples / tuning.batch))
    return {
        "output_dir": str(stage.checkpoints),
        "use_cpu": device_of(settings) == "cpu",
        "bf16": settings.dtype == "bfloat16",
        "gradient_checkpointing": settings.activation_checkpointing,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": tuning.batch // micro,
        "max_steps": steps,
        "learning_rate": tuning.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": round(_WARMUP * steps),
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "logging_steps": 1,
        "save_steps": max(1, steps // _CHECKPOINTS),
        "save_total_limit": 1,
        "train_sampling_strategy": "group_by_length",
        "remove_unused_columns": False,
        "max_length": None,
        "seed": stage.seed,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def on_one_device(arguments: Any) -> Any:
    """Return TRL's configuration for one GPU at most, also where the machine has several."""
    arguments._n_gpu = min(1, arguments.n_gpu)  # asking for it sets the devices up
    return arguments


def adapter_config(settings: PrepareSection, model: PreTrainedModel, **more: Any) -> LoraConfig | None:
    """Return the adapter to train; None where all weights are trained."""
    if settings.adapter is None:
        return None
    layers = model.config.get_text_config().num_hidden_layers
    first = 0 if settings.layers is None else max(0, layers - settings.layers)
    return LoraConfig(
        r=settings.adapter.r,
        lora_alpha=settings.adapter.alpha,
        target_modules=checked_targets(model, settings.adapter.targets, "prepare"),
        lora_dropout=0.0,
        layers_to_transform=list(range(first, layers)) if first else None,
        **more,
    )


def train(trainer: Any, stage: Stage) -> dict[str, Any]:
    """Train with a Trainer of TRL, from its newest checkpoint if there is one; return steps and the last loss."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Reporter(stage))
    order = _Order(trainer.args, trainer.train_dataset, stage.seed)
    trainer._get_train_sampler = lambda *_: order
    checkpoint = _newest_checkpoint(stage.checkpoints)
    if checkpoint is not None:
        stage.progress(f"{stage.label}: resumed from step {checkpoint.name.rpartition('-')[2]}")
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    last = losses[-max(1, len(losses) // 10) :]
    return {"steps": trainer.state.global_step, "train_loss": round(sum(last) / len(last), 4)}


class _Order(LengthGroupedSampler):
    """Examples in batches of similar length, in an order that only seed and epoch decide.

    Transformers' own draws from torch's global random numbers, which a Trainer restores only after it has drawn the
    order of a resumed epoch. The first epoch draws from them here, too: every start has just seeded them.
    """

    def __init__(self, arguments: Any, examples: Any, seed: int) -> None:
        batch = arguments.train_batch_size * arguments.gradient_accumulation_steps
        super().__init__(batch, lengths=list(examples[arguments.length_column_name]))
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration has; the Trainer does."""
        self._epoch = epoch

    @override
    def __iter__(self) -> Iterator[int]:
        seed = seed_from("order of examples", self._seed, self._epoch)
        self.generator = torch.Generator().manual_seed(seed) if self._epoch else None
        return super().__iter__()


def merged(model: PreTrainedModel | PeftModel, dtype: str) -> PreTrainedModel:
    """Return a trained model with its adapter added into its weights, if it has one, in the given type."""
    whole = model.merge_and_unload() if isinstance(model, PeftModel) else model
    return whole.to(device="cpu", dtype=getattr(torch, dtype)).eval()


def _micro_batch(batch: int, most: int) -> int:
    """Return the largest divisor of a batch's size that fits."""
    return max(size for size in range(1, batch + 1) if batch % size == 0 and (size <= most or size == 1))


def _newest_checkpoint(directory: Path) -> Path | None:
    """Return the newest complete checkpoint; delete those that a killed process left half-written."""
    complete: dict[int, Path] = {}
    for path in directory.glob("checkpoint-*"):
        try:
            complete[int(json.loads((path / _STATE).read_text(encoding="utf-8"))["global_step"])] = path
        except (OSError, ValueError, KeyError):
            shutil.rmtree(path, ignore_errors=True)
    return complete[max(complete)] if complete else None


class _Reporter(TrainerCallback):
    """Reports stage, step, loss and the time left, every few seconds."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._spent = Spent(stage.checkpoints)
        self._began: tuple[float, int] | None = None
        self._reported = time.monotonic()

    @override
    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._spent.note()

    @override
    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        now = time.monotonic()
        if not logs or "loss" not in logs:
            return
        if self._began is None:
            self._began = (now, state.global_step)  # the first step of this process also warms up
        if now - self._reported < _SECONDS_BETWEEN_REPORTS and state.global_step < state.max_steps:
            return
        self._reported = now
        accuracy = f", accuracy {logs['accuracy']:.2f}" if "accuracy" in logs else ""
        self._stage.progress(
            f"{self._stage.label}: step {state.global_step}/{state.max_steps}, loss {logs['loss']:.3f}{accuracy}"
            f"{self._left(now, state)}"
        )

    def _left(self, now: float, state: Any) -> str:
        assert self._began is not None
        began, first = self._began
        if state.global_step == first or state.global_step == state.max_steps:
            return ""
        seconds = (now - began) / (state.global_step - first) * (state.max_steps - state.global_step)
        return f", {seconds / 60:.1f} min left"
