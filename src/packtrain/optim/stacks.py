"""Decides how many matrices one rank orthogonalises at once; needs no torch, so that a plan can count what ranks exchange."""

# Elements of the matrices that one rank orthogonalises at once. On a GPU, a small product leaves it idle, and a stack of 16
# of 1,024 x 1,024 fills it; its temporaries then take some 250 MB. On a CPU the matrices of a stack are multiplied one after
# another all the same, which one by one was as fast or faster, with fewer temporaries.
_STACK_ELEMENTS = 2**24


def stack_size(num_elements: int, device_type: str) -> int:
    """How many matrices of that many elements one rank orthogonalises at once."""
    return max(1, _STACK_ELEMENTS // num_elements) if device_type != "cpu" else 1
