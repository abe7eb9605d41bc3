"""Pairs that people chose between, dealt out over the rounds of a comparison.

`dpo` trains on these instead of sampled groups: as many a round, in an order that the seed decides.
"""

import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.config.training import AlgorithmSection
from brain_align.common.data.prompts import PromptOrder
from brain_align.common.errors import UserError
from brain_align.common.identity import digest
from brain_align.common.schemas import HUMAN, PRIOR
from brain_align.common.store.overlay import Store
from brain_align.common.store.sample_store import SampleStore


def check_pairs(source: Store, algorithm: AlgorithmSection) -> None:
    """Refuse a store that lacks what `dpo` trains on.

    Raises:
        UserError: it has no choices, or fewer than a round takes.
    """
    chosen = _chosen(source)
    if not chosen:
        raise UserError(
            f"--pairs {source.root} holds no pairs that people chose between; make a store of a file with the columns "
            f"prompt, chosen and rejected (brain store import-pairs)."
        )
    if len(chosen) < algorithm.prompts_per_round:
        raise UserError(
            f"--pairs {source.root} holds {len(chosen)} pairs, fewer than a round takes (algorithm.prompts_per_round="
            f"{algorithm.prompts_per_round}); bring more pairs, or leave dpo out."
        )


def pairs_digest(source: Store) -> str:
    """Of all pairs with their choices, in their order: what cells that were trained on them cannot do without."""
    chosen = _chosen(source)
    outputs = source.groups(chosen)["outputs"].to_pylist()
    tokens = [[output["token_ids"] for output in pair] for pair in outputs]
    return digest("human pairs", chosen, tokens, source.scores(chosen, HUMAN)["values"].to_pylist())


def deal_pairs(source: Store, target: SampleStore, algorithm: AlgorithmSection, seed: int) -> None:
    """Copy pairs with their choices to another store, each into the rounds that draw it.

    What was copied before is not copied again.
    """
    chosen = _chosen(source)
    order = PromptOrder(len(chosen), algorithm.prompts_per_round, seed)
    for round_ in range(algorithm.rounds):
        drawn = [chosen[index] for index in order.indices(round_)]
        names = pa.array([digest("pair", target.run_id, round_, name) for name in drawn])
        rows = source.groups(drawn).combine_chunks().to_batches()[0]
        rounds = pa.array([round_] * len(drawn), pa.int32())
        target.append_groups(_replaced(rows, {"group_id": names, "round": rounds}))
        for scorer in (HUMAN, PRIOR):
            if all(source.has_score(name, scorer) for name in drawn):
                scores = source.scores(drawn, scorer).combine_chunks().to_batches()[0]
                target.append_scores(_replaced(scores, {"group_id": names}))


def _chosen(source: Store) -> list[str]:
    """The groups that have people's choices, in the order of commitment."""
    names = source.index()["group_id"]
    lacking = pa.array(source.unscored(HUMAN), pa.string())
    return names.filter(pc.invert(pc.is_in(names, value_set=lacking))).to_pylist()


def _replaced(batch: pa.RecordBatch, columns: dict[str, pa.Array]) -> pa.RecordBatch:
    for name, column in columns.items():
        place = batch.schema.get_field_index(name)
        batch = batch.set_column(place, batch.schema.field(place), column)
    return batch
