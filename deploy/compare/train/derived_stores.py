"""The stores that some training runs of a seed share: human preference pairs, and groups with fewer outputs.

Both are written once per seed, from another store. What a store already holds is not written again.
"""

import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.config.training import AlgorithmSection
from brain_align.common.data.prompts import PromptOrder
from brain_align.common.errors import UserError
from brain_align.common.identity import digest
from brain_align.common.schemas import GROUPS, HUMAN, PRIOR, SCORES
from brain_align.common.store.overlay import Store
from brain_align.common.store.sample_store import SampleStore


def check_pairs(source: Store, algorithm: AlgorithmSection) -> None:
    """Raise UserError if a store holds no human preference pairs, which `dpo` trains on, or too few for a round."""
    chosen = _chosen(source)
    if not chosen:
        raise UserError(
            f"--pairs {source.root} holds no human preference pairs; create a store from a file with the columns "
            f"prompt, chosen and rejected (brain store import-pairs)."
        )
    if len(chosen) < algorithm.prompts_per_round:
        raise UserError(
            f"--pairs {source.root} holds {len(chosen)} pairs, fewer than a round takes (algorithm.prompts_per_round="
            f"{algorithm.prompts_per_round}); provide more pairs, or leave out dpo."
        )


def pairs_digest(source: Store) -> str:
    """Return the digest of all pairs with their preferences, in order of commitment: it identifies a run's data."""
    chosen = _chosen(source)
    outputs = source.groups(chosen)["outputs"].to_pylist()
    tokens = [[output["token_ids"] for output in pair] for pair in outputs]
    return digest("human pairs", chosen, tokens, source.scores(chosen, HUMAN)["values"].to_pylist())


def deal_pairs(source: Store, target: SampleStore, algorithm: AlgorithmSection, seed: int) -> None:
    """Copy pairs with their preferences to another store, into the rounds of a run.

    Each round gets `prompts_per_round` pairs, in an order that depends on the seed; pairs repeat when all were used.
    """
    chosen = _chosen(source)
    order = PromptOrder(len(chosen), algorithm.prompts_per_round, seed)
    for round_ in range(algorithm.rounds):
        dealt = [chosen[index] for index in order.indices(round_)]
        ids = pa.array([digest("pair", target.run_id, round_, name) for name in dealt])
        rounds = pa.array([round_] * len(dealt), pa.int32())
        target.append_groups(_replace(_one_batch(source.groups(dealt)), {"group_id": ids, "round": rounds}))
        for scorer in (HUMAN, PRIOR):
            if all(source.has_score(name, scorer) for name in dealt):
                target.append_scores(_replace(_one_batch(source.scores(dealt, scorer)), {"group_id": ids}))


def write_first_outputs(source: SampleStore, target: SampleStore, n: int) -> None:
    """Copy groups and scores to another store, each with its first n outputs only.

    A group with fewer outputs is copied as it is.
    """
    for batch in source.batches():
        target.append_groups(_replace(batch, {"outputs": _first(batch["outputs"], n, GROUPS.field("outputs").type)}))
        for scorer in source.scorers():
            scored = [name for name in batch["group_id"].to_pylist() if source.has_score(name, scorer.name)]
            if scored:
                rows = _one_batch(source.scores(scored, scorer.name))
                values = _first(rows["values"], n, SCORES.field("values").type)
                target.append_scores(_replace(rows, {"values": values}))


def _chosen(source: Store) -> list[str]:
    """Return the ids of the groups that have human preferences, in order of commitment."""
    names = source.index()["group_id"]
    lacking = pa.array(source.unscored(HUMAN), pa.string())
    return names.filter(pc.invert(pc.is_in(names, value_set=lacking))).to_pylist()


def _first(lists: pa.Array, n: int, kind: pa.DataType) -> pa.Array:
    return pc.list_slice(lists, 0, n, return_fixed_size_list=False).cast(kind)


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    return table.combine_chunks().to_batches()[0]


def _replace(batch: pa.RecordBatch, columns: dict[str, pa.Array]) -> pa.RecordBatch:
    for name, column in columns.items():
        index = batch.schema.get_field_index(name)
        batch = batch.set_column(index, batch.schema.field(index), column)
    return batch
