"""Run by torchrun in the tests of `test_fp8`: training with fp8 emulated, as `python -m tests.train.emulated_fp8 RUN SETTINGS`."""

import sys
from pathlib import Path

from packtrain.config.load import load_run_config
from packtrain.train.run import train

if __name__ == "__main__":
    train(load_run_config("demo", sys.argv[2:]).config, Path(sys.argv[1]), resume=False, emulate_fp8=True)
