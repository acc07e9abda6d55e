"""The gated delta rule (Yang et al. 2024, arXiv 2412.06464), token by token and in chunks.

Each head has a matrix S (Dk, Dv) that maps keys to values. A token first decays S by alpha =
exp(g), then moves the output of S for its key k toward its value v by the fraction beta:

    u_t = beta_t (v_t - alpha_t S_{t-1}^T k_t)
    S_t = alpha_t S_{t-1} + k_t u_t^T
    o_t = S_t^T q_t

Shapes: q, k (B, H, T, Dk), v (B, H, T, Dv), g and beta (B, H, T), S (B, H, Dk, Dv).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def recurrent_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the outputs (B, H, T, Dv) and the last S by definition; the reference."""
    outputs = []
    for t in range(q.shape[2]):
        state = state * g[:, :, t, None, None].exp()
        found = _read(state, k[:, :, t])
        change = beta[:, :, t, None] * (v[:, :, t] - found)
        state = state + k[:, :, t, :, None] * change[:, :, None, :]
        outputs.append(_read(state, q[:, :, t]))
    return torch.stack(outputs, dim=2), state


def _read(state: Tensor, key: Tensor) -> Tensor:
    """S^T key, (B, H, Dv)."""
    return (key.unsqueeze(-2) @ state).squeeze(-2)


def chunked_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Compute the same as `recurrent_delta_rule` in chunks of tokens, by matrix products.

    Let G_t be the sum of g up to t within a chunk, and S the state before the chunk. Then the u of
    a chunk solve

        (I + A) U = beta V - beta exp(G) K S,   A_ti = beta_t exp(G_t - G_i) k_t . k_i for i < t

    Except for S, the right-hand sides are known for all chunks at once.
    """
    tokens = q.shape[2]
    q, k, v, g, beta = (_in_chunks(x, chunk) for x in (q, k, v, g, beta))
    total = g.cumsum(dim=-1)
    at_most = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).tril()
    differences = total.unsqueeze(-1) - total.unsqueeze(-2)
    decay = differences.masked_fill(~at_most, float("-inf")).exp()  # exp(G_t - G_i) for i <= t
    weighted = beta.unsqueeze(-1) * k
    A = (weighted @ k.transpose(-2, -1) * decay).tril(-1)
    known = torch.cat((beta.unsqueeze(-1) * v, weighted * total.exp().unsqueeze(-1)), dim=-1)
    solved = torch.linalg.solve_triangular(A, known, upper=False, unitriangular=True)
    fresh, of_state = solved.split((v.shape[-1], k.shape[-1]), dim=-1)
    within = q @ k.transpose(-2, -1) * decay
    read = q * total.exp().unsqueeze(-1)
    written = (k * (total[..., -1:] - total).exp().unsqueeze(-1)).transpose(-2, -1)
    kept = total[..., -1].exp()[..., None, None]
    outputs = []
    for i in range(q.shape[2]):
        u = fresh[:, :, i] - of_state[:, :, i] @ state
        outputs.append(read[:, :, i] @ state + within[:, :, i] @ u)
        state = kept[:, :, i] * state + written[:, :, i] @ u
    return torch.cat(outputs, dim=2)[:, :, :tokens], state


def _in_chunks(x: Tensor, chunk: int) -> Tensor:
    """Reshape (B, H, T, ...) to (B, H, chunks, chunk, ...), padded with zero tokens, which do not
    change the state."""
    missing = -x.shape[2] % chunk
    if missing:
        x = F.pad(x, (0, 0) * (x.ndim - 3) + (0, missing))
    return x.unflatten(2, (-1, chunk))
