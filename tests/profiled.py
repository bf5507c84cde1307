"""What torch's profiler saw being allocated, for the tests of the planner."""

from torch.profiler import profile


def highest_bytes(record: profile) -> int:
    """The most bytes that were allocated at one time in the block, beside what there was before."""
    now, highest = 0, 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            highest = max(highest, now)
    return highest
