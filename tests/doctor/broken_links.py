"""Run in place of `packtrain.parallel.links` in the tests of `test_links`: an all-reduce that fails unless direct copies are off.

`python -m tests.doctor.broken_links HOW ARGUMENTS`, with HOW one of zeros and hang.
"""

import os
import sys
import time

import torch.distributed as dist

from packtrain.parallel import links

real = dist.all_reduce


def zeros(value, **settings):
    work = real(value, **settings)
    work.wait()
    value.zero_()
    return work


def hang(*_, **__):
    time.sleep(1000)


if __name__ == "__main__":
    how = sys.argv.pop(1)
    if os.environ.get("NCCL_P2P_DISABLE") != "1":
        dist.all_reduce = {"zeros": zeros, "hang": hang}[how]
    links._main()
