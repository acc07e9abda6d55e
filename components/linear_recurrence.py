"""The recurrence of linear attention, state-space models and delta rules, token by token and in
chunks.

A matrix S (Dk, Dv) maps keys to values. Each token decays the rows of S by alpha = exp(g), adds the
outer product of its key and a vector u, and reads S by its query:

    S_t = alpha_t S_{t-1} + k_t u_t^T
    o_t = S_t^T q_t

u is the value v. With the delta rule (Widrow and Hoff 1960; Schlag et al. 2021, arXiv 2102.11174)
it moves what S returns for the key toward the value, by the fraction beta:

    u_t = beta_t (v_t - (alpha_t S_{t-1})^T k_t)

Shapes: q, k (..., T, Dk), v (..., T, Dv), g (..., T, Dk) or (..., T, 1) for one decay of all rows,
beta (..., T, 1) or None for u = v, S (..., Dk, Dv). Leading dimensions are batch and heads, and
broadcast. g is at most 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def linear_recurrence(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor | None, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """The outputs (..., T, Dv) and the last S, computed in chunks of `chunk` tokens, or token by
    token if there is a single one. `chunk` does not change the result."""
    chunk = min(chunk, q.shape[-2])
    if chunk == 1:
        return by_token(q, k, v, g, beta, state)
    return by_chunk(q, k, v, g, beta, state, chunk)


def by_token(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence by definition."""
    outputs = []
    for t in range(q.shape[-2]):
        query, key, u, decay = (x[..., t : t + 1, :] for x in (q, k, v, g.exp()))
        state = state * decay.mT
        if beta is not None:
            u = beta[..., t : t + 1, :] * (u - key @ state)
        state = state + key.mT @ u
        outputs.append(query @ state)
    return torch.cat(outputs, dim=-2), state


def by_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor | None,
    state: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """The same as `by_token`, by matrix products (Yang et al. 2024, arXiv 2312.06635, 2406.06484).

    Let G_t be the sum of g up to t within a chunk, and S the state before the chunk. Then

        o_t = (q_t exp(G_t))^T S + sum_{i <= t} (q_t exp(G_t - G_i) . k_i) u_i

    and S is decayed by the last G, plus the k_i exp(G_last - G_i) u_i^T. No exponent is above 0.
    """
    tokens = q.shape[-2]
    q, k, v, g = (in_chunks(x, chunk) for x in (q, k, v, g))
    total = g.cumsum(dim=-2)
    last = total[..., -1:, :]
    read, written = q * total.exp(), (k * (last - total).exp()).mT
    if beta is None:
        within = decayed_products(q, k, total)
    else:
        within, v, of_state = _corrected(q, k, v, total, in_chunks(beta, chunk))
    outputs = []
    for i in range(q.shape[-3]):
        u = v[..., i, :, :]
        if beta is not None:
            u = u - of_state[..., i, :, :] @ state
        outputs.append(read[..., i, :, :] @ state + within[..., i, :, :] @ u)
        state = last[..., i, :, :].exp().mT * state + written[..., i, :, :] @ u
    return torch.cat(outputs, dim=-2)[..., :tokens, :], state


def _corrected(
    q: Tensor, k: Tensor, v: Tensor, total: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The decayed products of q and k, and X (..., Dv) and Y (..., Dk) such that the u of a chunk
    is X - Y S, for all chunks at once.

    By its definition, u solves (I + A) U = beta V - beta exp(G) K S, where A_ti is
    beta_t (k_t exp(G_t - G_i) . k_i) for i < t.
    """
    weighted = beta * k
    both = torch.stack(torch.broadcast_tensors(q, weighted))
    within, A = decayed_products(both, k, total)
    known = torch.cat((beta * v, weighted * total.exp()), dim=-1)
    solved = torch.linalg.solve_triangular(A.tril(-1), known, upper=False, unitriangular=True)
    return within, *solved.split((v.shape[-1], k.shape[-1]), dim=-1)


def decayed_products(x: Tensor, y: Tensor, total: Tensor) -> Tensor:
    """The products x_t exp(G_t - G_i) . y_i for i <= t, and zeros: (..., n, n).

    With a decay for each dimension, exp(G_t) and exp(-G_i) cannot be separated, since the latter
    overflows. Therefore a block is halved: for t in the second half and i in the first one, both
    exponents relative to the end of the first half are at most 0.
    """
    n = x.shape[-2]
    if total.shape[-1] == 1:
        return x @ y.mT * _decays(total)
    if n % 2:
        return _by_last_row(x, y, total)
    x, y, total = (each.unflatten(-2, (2, n // 2)) for each in (x, y, total))
    middle = total[..., 0, -1:, :]
    later = x[..., 1, :, :] * (total[..., 1, :, :] - middle).exp()
    earlier = y[..., 0, :, :] * (middle - total[..., 0, :, :]).exp()
    corner = later @ earlier.mT
    inner = decayed_products(x, y, total)
    first = F.pad(inner[..., 0, :, :], (0, n // 2))
    return torch.cat((first, torch.cat((corner, inner[..., 1, :, :]), dim=-1)), dim=-2)


def _by_last_row(x: Tensor, y: Tensor, total: Tensor) -> Tensor:
    """The decayed products of an odd number of tokens: the last row, and the others."""
    row = (x[..., -1:, :] * (total[..., -1:, :] - total).exp() * y).sum(-1).unsqueeze(-2)
    if x.shape[-2] == 1:
        return row
    before = decayed_products(*(each[..., :-1, :] for each in (x, y, total)))
    return torch.cat((F.pad(before, (0, 1)), row), dim=-2)


def _decays(total: Tensor) -> Tensor:
    """exp(G_t - G_i) for i <= t, else 0, for one decay of all rows."""
    n = total.shape[-2]
    allowed = torch.ones(n, n, dtype=torch.bool, device=total.device).tril()
    return (total - total.mT).masked_fill(~allowed, float("-inf")).exp()


def in_chunks(x: Tensor, chunk: int) -> Tensor:
    """Reshape (..., T, D) to (..., chunks, chunk, D), padded with zero tokens, which do not change
    the state."""
    return F.pad(x, (0, 0, 0, -x.shape[-2] % chunk)).unflatten(-2, (-1, chunk))
