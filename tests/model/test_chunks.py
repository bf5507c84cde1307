"""On a GPU the chunks of the loss divide the tokens of a micro-batch, so that all have one shape."""

import pytest

from packtrain.model.chunks import chunk_rows


@pytest.mark.parametrize(("vocab_size", "rows"), [(32_000, 2048), (50_257, 1024), (128_256, 512), (4096, 16_384)])
def test_chunks_on_a_gpu_are_powers_of_two(vocab_size, rows):
    assert chunk_rows(vocab_size, "cuda") == rows


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_there_is_always_a_row(device):
    assert chunk_rows(2**30, device) == 1
