"""Whether a process that waits in vain for the others of its run ends, with a sentence, in the time that it was given."""

import socket

import pytest
import torch

from packtrain.config.parallel import ParallelConfig
from packtrain.errors import RankLostError
from packtrain.parallel.ranks import join_processes


@pytest.fixture
def place(monkeypatch):
    """Sets this process's rank of two, with a first process's address on this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]

    def set_rank(rank):
        values = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
        for name, value in {**values, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        return port

    return set_rank


@pytest.mark.parametrize("rank", [0, 1])
def test_others_that_never_come_end_the_wait_with_a_sentence(place, rank):
    port = place(rank)
    expected = rf"met at 127\.0\.0\.1:{port} within 0\.5 s .*check that each machine reaches .*parallel\.join_timeout_s"
    with pytest.raises(RankLostError, match=expected):
        with join_processes(torch.device("cpu"), ParallelConfig(join_timeout_s=0.5)):
            pass
    assert not torch.distributed.is_initialized()


def test_an_address_that_accepts_and_never_answers_ends_the_wait_too(place):
    port = place(1)
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(RankLostError, match="not all processes of the run met"):
            with join_processes(torch.device("cpu"), ParallelConfig(join_timeout_s=0.5)):
                pass
