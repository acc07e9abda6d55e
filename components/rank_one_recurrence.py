"""A linear recurrence whose memory is multiplied by a diagonal plus a rank-one matrix per token.

A matrix S (Dk, Dv) maps keys to values. Each token decays the rows of S by alpha = exp(g), removes
what S returns for the key a from the rows b, adds a key and its value, and reads S with its query:

    S_t = (Diag(alpha_t) - b_t a_t^T) S_{t-1} + k_t v_t^T
    o_t = S_t^T q_t

The delta rule of `linear_recurrence`, which reads S after its decay, is the case b = beta k and
a = alpha k for the value beta v. Shapes: q, k, g, a, b (..., T, Dk), v (..., T, Dv),
S (..., Dk, Dv). g is at most 0, and not far below: exp(-g) must be finite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from components.linear_recurrence import decayed_products, in_chunks


def rank_one_recurrence(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, a: Tensor, b: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """The outputs (..., T, Dv) and the last S, computed in chunks of `chunk` tokens, or token by
    token if there is a single one. `chunk` does not change the result."""
    chunk = min(chunk, q.shape[-2])
    if chunk == 1:
        return by_token(q, k, v, g, a, b, state)
    return by_chunk(q, k, v, g, a, b, state, chunk)


def by_token(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence by definition."""
    outputs = []
    for t in range(q.shape[-2]):
        query, key, value, alpha, removed, rows = (
            x[..., t : t + 1, :] for x in (q, k, v, g.exp(), a, b)
        )
        state = state * alpha.mT - rows.mT @ (removed @ state) + key.mT @ value
        outputs.append(query @ state)
    return torch.cat(outputs, dim=-2), state


def by_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """The same as `by_token`, by matrix products.

    Let G_t be the sum of g up to t within a chunk, S the state before the chunk, and
    z_t = S_{t-1}^T a_t what is removed. With D(x, y)_ti = x_t exp(G_t - G_i) . y_i and
    a'_t = a_t exp(-g_t), which reads S after the decay of its token,

        (I + D(a', b)) Z = (a' exp(G)) S + D(a', k) V    for i < t
        O = (q exp(G)) S + D(q, k) V - D(q, b) Z         for i <= t

    and S is decayed by the last G, plus the exp(G_last - G_i) (k_i v_i^T - b_i z_i^T).
    """
    tokens = q.shape[-2]
    q, k, v, g, a, b = (in_chunks(x, chunk) for x in (q, k, v, g, a, b))
    total, a = g.cumsum(dim=-2), a * (-g).exp()
    last = total[..., -1:, :]
    ask, reply = torch.stack((q, q, a, a)), torch.stack((k, b, k, b))
    of_k, of_b, before_k, before_b = decayed_products(ask, reply, total).unbind()
    known = torch.cat((before_k.tril(-1) @ v, a * total.exp()), dim=-1)
    solved = torch.linalg.solve_triangular(
        before_b.tril(-1), known, upper=False, unitriangular=True
    )
    own, of_state = solved.split((v.shape[-1], k.shape[-1]), dim=-1)
    read, kept = q * total.exp(), (last - total).exp()
    written, erased = (k * kept).mT, (b * kept).mT
    outputs = []
    for i in range(q.shape[-3]):
        z = own[..., i, :, :] + of_state[..., i, :, :] @ state
        value = v[..., i, :, :]
        outputs.append(
            read[..., i, :, :] @ state + of_k[..., i, :, :] @ value - of_b[..., i, :, :] @ z
        )
        state = last[..., i, :, :].exp().mT * state
        state = state + written[..., i, :, :] @ value - erased[..., i, :, :] @ z
    return torch.cat(outputs, dim=-2)[..., :tokens, :], state
