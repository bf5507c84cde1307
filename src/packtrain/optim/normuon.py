"""Decides how NorMuon steps: as Muon, with each row of a matrix's update brought to a like size by its running mean square."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from packtrain.config.optim import OptimConfig
from packtrain.optim.base import Groups, Sharding
from packtrain.optim.muon import Muon, choose_dtype

_EPS = 1e-10


class NorMuon(Muon):
    """NorMuon (arXiv 2510.05491, algorithm 1; github.com/zichongli5/NorMuon), at Muon's update scale.

    After Muon's orthogonalisation gives O, each row r has v_r ← β₂v_r + (1 − β₂)·mean(O_r²), and the update is
    O_r / sqrt(v_r), rescaled as a whole to the norm of O. β₂ is the second of `betas`.
    """

    state_entries: ClassVar = ({"momentum", "row_square"}, *Muon.state_entries[1:])

    def elements_per_number(self, entry: str, _parameter: Tensor) -> int | None:
        return _parameter.shape[1] if entry == "row_square" else super().elements_per_number(entry, _parameter)

    def _make_state(self, p: Parameter) -> dict[str, Tensor]:
        rows = self._sharding.take_local(p).shape[0]
        return super()._make_state(p) | {"row_square": torch.zeros(rows, device=p.device)}

    def _rescale(self, directions: list[Tensor], batch: list[Parameter], group: dict[str, Any]) -> list[Tensor]:
        updates_NRC = torch.stack(directions).float()
        means_NR = updates_NRC.square().mean(-1)
        squares = [self.state[p]["row_square"] for p in batch]
        torch._foreach_lerp_(squares, list(means_NR.unbind()), 1 - group["betas"][1])
        scales_NR = 1 / (torch.stack(squares).sqrt() + _EPS)
        # The norm is that of the whole matrix, but the columns of a row are all on one rank.
        before_NR, after_NR = (
            self._sharding.gather_rows(batch[0], numbers) for numbers in (means_NR, means_NR * scales_NR.square())
        )
        whole_N = before_NR.sum(-1).sqrt() / (after_NR.sum(-1).sqrt() + _EPS)
        return list((updates_NRC * (scales_NR * whole_N[:, None])[:, :, None]).unbind())


def build(config: OptimConfig, groups: Groups, dtype: torch.dtype, sharding: Sharding) -> NorMuon:
    return NorMuon(groups, config, choose_dtype(dtype), sharding)
