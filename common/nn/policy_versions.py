"""Published versions of a policy as models that compute log-probabilities."""

from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from brain_align.common.config.inputs import PolicySection
from brain_align.common.nn.logprobs import SequenceLogprobs
from brain_align.common.nn.models.adapters import load_adapter
from brain_align.common.nn.models.causal_lm import load_causal_lm
from brain_align.common.policies import PolicyRegistry


class PolicyVersions:
    """Loads versions of one policy, one at a time; adapters share one base model, which is loaded at once."""

    def __init__(self, policy: PolicySection, device: str, window: int | None = None) -> None:
        """Load the base model, if there is one; for `window` see `load_causal_lm`."""
        self._policy = policy
        self._device = device
        self._window = window
        self._base = None if policy.method == "full" else self._load(policy.model)
        self._loaded: tuple[Path, SequenceLogprobs] | None = None

    def load(self, policies: Path, version: int) -> SequenceLogprobs:
        """Return a version's log-probabilities, with the padding that the prior's scorer uses.

        The version loaded last stays in memory; versions of several runs are told apart by their directory `policies`.

        Raises:
            UserError: the version is missing or damaged.
        """
        directory = PolicyRegistry(policies).path(version)
        if self._loaded is None or self._loaded[0] != directory:
            PolicyRegistry(policies).verify(version)
            self._release()  # before the next is loaded: two may not fit into memory
            model = self._load(str(directory)) if self._base is None else load_adapter(self._base, directory)
            logprobs = SequenceLogprobs(model)
            logprobs.decoder.pad_unless_exact()
            self._loaded = directory, logprobs
        return self._loaded[1]

    def _release(self) -> None:
        if self._loaded is not None and isinstance(self._loaded[1].model, PeftModel):
            self._base = self._loaded[1].model.unload()
        self._loaded = None

    def _load(self, source: str) -> PreTrainedModel:
        settings = self._policy
        return load_causal_lm(source, settings.dtype, self._device, settings.quantization, window=self._window)
