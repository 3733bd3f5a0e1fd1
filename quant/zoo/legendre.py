"""The memory of the Legendre memory unit: a linear system whose state is the recent input as Legendre polynomials."""

from __future__ import annotations

import torch
from torch import Tensor


def delay_system(order: int, theta: float) -> tuple[Tensor, Tensor]:
    """A, (order, order), and B, (order,), float64: m_t = A m_{t-1} + B u_t holds the last `theta` steps of u.

    (Voelker et al., Legendre Memory Units, 2019, eq. 1 and 2), by zero-order hold with steps of 1:
    the upper rows of exp([[A, B], [0, 0]]).
    """
    n = torch.arange(order, dtype=torch.float64)
    scale = ((2 * n + 1) / theta).unsqueeze(-1)
    i, j = n.unsqueeze(-1), n
    system = torch.zeros(order + 1, order + 1, dtype=torch.float64)
    system[:order, :order] = scale * torch.where(i < j, -1.0, (-1.0) ** (i - j + 1))
    system[:order, order:] = scale * (-1.0) ** i
    discrete = torch.linalg.matrix_exp(system)[:order]
    return discrete[:, :order].clone(), discrete[:, order].clone()
