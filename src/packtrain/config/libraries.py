"""Decides what other libraries may not say in the middle of our own output."""

import logging


def quieten_torchao() -> None:
    """Keeps torchao from telling of every kernel that this build of torch has no use for, and torch of how it registers."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
