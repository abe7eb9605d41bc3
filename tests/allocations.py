"""How much memory torch holds at most while something runs: counted from its allocator's own records."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes, beyond those at the start, that CPU tensors took at any moment of `work()`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    records = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(records, key=lambda record: record.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
