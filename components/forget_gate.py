"""Forgetting attention: a data-dependent decay of the attention scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.context import Context, State, appended
from components.layer_config import LayerConfig
from components.part import Part


class ForgetGate(Part):
    """Add the log forget gates between key and query to the score: sum_{l=j+1}^{i} log f_l.

    f_t = sigmoid(W x_t + b) has one value per query head and token (Lin et al. 2025, "Forgetting
    Transformer", arXiv 2503.02130). The weight of key j for query i is thereby multiplied by
    f_{j+1} ... f_i before normalization. The sum is added after a softcap; it does not affect
    attention sinks, and a window only limits which keys are read. W has a bias even if other
    projections have none, and is initialized like them.

    The decoding state holds log f of `capacity` tokens in at least float32.
    """

    def __init__(self, config: LayerConfig):
        super().__init__()
        self.gate = nn.Linear(config.n_embd, config.n_head, bias=True)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """The bias of the scores (B, H, T, T_k) for the layer's input x (B, T, C)."""
        logits = self.gate(x)
        logs = F.logsigmoid(logits.to(_precise(logits.dtype))).transpose(1, 2).unsqueeze(-1)
        if context.state is not None:
            (logs,) = appended(context.state, context.start, log_forget=logs)
        total = logs.squeeze(-1).cumsum(dim=-1)  # (B, H, T_k)
        own = _of_queries(total, x.shape[1], context.start)
        return own.unsqueeze(-1) - total.unsqueeze(-2)

    def new_state(
        self, batch: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> State:
        """The decoding state before the first token; see `Sublayer.new_state`."""
        shape = (batch, self.gate.out_features, capacity, 1)
        return {"log_forget": torch.zeros(shape, device=device, dtype=_precise(dtype))}


def _of_queries(total: Tensor, length: int, start: int | Tensor) -> Tensor:
    """The entries of (B, H, T_k) at the positions of `length` queries from `start`."""
    if isinstance(start, int):
        return total[..., start : start + length]
    return total.index_select(-1, start + torch.arange(length, device=total.device))


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
