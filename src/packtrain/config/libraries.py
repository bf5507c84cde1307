"""Decides which messages of other libraries are kept out of our own output."""

import logging


def quieten_torchao() -> None:
    """Silences torchao on kernels that this build of torch does not use, and torch on how it registers classes."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
