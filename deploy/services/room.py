"""Room in a Ray cluster: what one actor asks for, and what the nodes have."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import ray
from ray._private import state  # Ray's public API sums over nodes, and an actor must fit on one

from brain_align.common.errors import UserError

_KINDS = ("CPU", "GPU")


class Request(Protocol):
    """The settings that say what one actor reserves."""

    @property
    def cpus(self) -> float:
        """CPUs."""

    @property
    def gpus(self) -> float:
        """GPUs."""


@dataclass(frozen=True)
class Node:
    """One node of the cluster."""

    name: str
    total: Mapping[str, float]
    free: Mapping[str, float]


def nodes() -> list[Node]:
    """Return the living nodes."""
    free = state.available_resources_per_node()
    return [
        Node(
            f"{one['NodeManagerHostname']} ({one['NodeManagerAddress']})", one["Resources"], free.get(one["NodeID"], {})
        )
        for one in ray.nodes()
        if one["Alive"]
    ]


def check_each_fits(services: Mapping[str, Request]) -> None:
    """Refuse services whose actors no node of this cluster can hold, unless it can add nodes by itself."""
    there = nodes()
    too_large = {name: one for name, one in services.items() if not any(_holds(node.total, one) for node in there)}
    if too_large and not can_grow():
        name, request = next(iter(too_large.items()))
        raise UserError(
            f"No node of the Ray cluster can hold one actor of {', '.join(too_large)}: {name} reserves "
            f"{_amounts(_needs(request))}, and {_largest(there, request)}; lower its cpus or gpus, or add larger nodes."
        )


def can_grow() -> bool:
    """Return whether Ray's autoscaler may add nodes."""
    try:
        return state.state.get_max_resources_from_cluster_config() is not None
    except Exception:  # noqa: BLE001 - other versions of Ray have no such thing
        return False


def shortage(request: Request) -> str:
    """Say what an actor that waits asks for, and what the cluster has."""
    there = nodes()
    needs = _needs(request)
    holders = [node for node in there if _holds(node.total, request)]
    if not holders:
        return f"it reserves {_amounts(needs)} on one node, and {_largest(there, request)}"
    largest = max(holders, key=lambda node: _times(node.total, request))
    freest = max(holders, key=lambda node: _times(node.free, request))
    if _holds(freest.free, request):
        return f"there is some for it on {freest.name}, so its process is probably just starting"
    return (
        f"it reserves {_amounts(needs)} on one node; the largest node has {_amounts(largest.total)}, and most is free "
        f"on {freest.name}: {_amounts({kind: freest.free.get(kind, 0) for kind in needs})}. Others hold the rest"
    )


def _needs(request: Request) -> dict[str, float]:
    return {kind: amount for kind, amount in zip(_KINDS, (request.cpus, request.gpus), strict=True) if amount}


def _holds(total: Mapping[str, float], request: Request) -> bool:
    return _times(total, request) >= 1


def _times(amounts: Mapping[str, float], request: Request) -> float:
    """Return how many times a request fits into amounts; other kinds than it asks for do not count."""
    return min((amounts.get(kind, 0) / need for kind, need in _needs(request).items()), default=1)


def _largest(there: list[Node], request: Request) -> str:
    if not there:
        return "the cluster has no node"
    largest = max(there, key=lambda node: _times(node.total, request))
    return f"the largest, {largest.name}, has {_amounts(largest.total)}"


def _amounts(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{resources[kind]:g} {kind}" for kind in _KINDS if kind in resources) or "nothing"
