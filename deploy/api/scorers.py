"""A recipe's scorers as Python functions, in this process."""

import math
import warnings
from collections.abc import Sequence

from brain_align.common.data.text_groups import text_group
from brain_align.common.errors import UserError
from brain_align.common.schemas import GROUPS, PRIOR, PROPOSAL, batch_from_rows
from brain_align.deploy.api.running import without_event_loop
from brain_align.deploy.console import PlainConsole
from brain_align.deploy.run.recipe_files import AnyRecipe, load_recipe
from brain_align.deploy.run.resolve import resolve, run_directory
from brain_align.deploy.run.start import reporter
from brain_align.scorer.catalogue import build_scorer
from brain_align.scorer.scorer import Scorer


class LoadedScorer:
    """A scorer that is called with texts."""

    def __init__(self, scorer: Scorer) -> None:
        """Take a scorer; `load_scorer` loads one."""
        self._scorer = scorer
        self.name = scorer.name
        """The scorer's name in its recipe."""
        self.digest = scorer.digest
        """The digest of all that its values depend on, as stores record it."""

    def __call__(self, prompts: Sequence[str], outputs: Sequence[str]) -> list[float]:
        """Score outputs, each for the prompt in its place; equal prompts share their computation.

        A value that the scorer cannot compute is NaN, and a warning gives the first reason.

        Raises:
            ValueError: there are not as many prompts as outputs, or one of them is not a text that can be stored.
            PipelineError: the scorer's service is away.
        """
        if isinstance(prompts, str) or isinstance(outputs, str) or len(prompts) != len(outputs):
            raise ValueError("a scorer needs a list of prompts and a list of as many outputs")
        for text in (*prompts, *outputs):
            try:
                text.encode()
            except (AttributeError, UnicodeEncodeError):
                raise ValueError(f"{text!r:.80} is not a text of Unicode characters") from None
        places: dict[str, list[int]] = {}
        for place, prompt in enumerate(prompts):
            places.setdefault(prompt, []).append(place)
        if not places:
            return []
        rows = [text_group(prompt, prompt, [outputs[place] for place in of]) for prompt, of in places.items()]
        batch = batch_from_rows(GROUPS, rows)
        scored = without_event_loop(lambda: self._scorer.score(batch)).to_pylist()
        values = [math.nan] * len(outputs)
        for of, row in zip(places.values(), scored, strict=True):
            for place, value in zip(of, row["values"], strict=True):
                values[place] = math.nan if value is None else value
        if errors := [row["error"] for row in scored if row["error"]]:
            missing = sum(map(math.isnan, values))
            warnings.warn(f"{self.name} has no value for {missing} outputs: {errors[0]}", stacklevel=2)
        return values


def load_scorer(recipe: AnyRecipe, name: str) -> LoadedScorer:
    """Load a scorer of a recipe into this process, with its `gpus` if it asks for any.

    Data that the scorer lies in (`{world}`) is prepared if it is not there.

    Raises:
        UserError: the recipe has no such scorer, or it cannot be loaded.
    """
    read = load_recipe(recipe)
    if name not in read.scorers:
        if name in (PRIOR, PROPOSAL):
            raise UserError(f"{name!r} scores token ids, not texts: use sequence_logprobs on the model itself.")
        made = f", which {name!r} is made of" if name in read.rewards else ""
        raise UserError(f"{name!r} does not name a scorer; the recipe has {', '.join(read.scorers)}{made}.")
    resolved = resolve(read, reporter(PlainConsole(stderr=True)), begun=run_directory(read), scorers=[name]).recipe
    directory = run_directory(read)
    return LoadedScorer(build_scorer(resolved.scorers[name], name, resolved.policy, directory.policies))
