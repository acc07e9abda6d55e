"""PaTH: positions as products of Householder-like matrices that depend on the tokens in between."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.attention import attended_pairs
from components.attention_backends import window_of
from components.causal_conv import CausalConv
from components.context import Context, State
from components.layer_config import LayerConfig
from components.linear_mixer import LowRank
from components.pair_scores import PairScores
from components.part import GradientFlow
from components.positions import POSITIONS, PositionEncoding
from components.recurrent_mixer import precise
from components.tensor_split import TensorSplit
from errors import Problem
from options import Role, option


@POSITIONS.register("path", label="PaTH", paper="Yang et al. 2025, arXiv 2505.16381")
class PaTH(PositionEncoding):
    """Transform keys by the tokens between key and query: the score is q_i . H_i ... H_{j+1} k_j.

    H_t = I - beta_t w_t w_t^T, with a vector and a number per key head and token:
    w_t = u_t / |u_t|, u = SiLU(conv(W x)), beta_t = 2 sigmoid(b . x_t + c). W is the product of two
    matrices with `path_rank` dimensions in between. Together with `forget_gate`, this is PaTH-FoX.

    Scores are computed in at least float32, in chunks of queries: within a chunk by the UT
    transform, and for earlier keys after the products of all earlier chunks (section 3). Decoding
    multiplies all stored keys by H_t when token t arrives, so that the state has no more entries
    than that of attention; its keys are in at least float32.
    """

    computes_scores = learns_scores = changes_keys = True
    scales_with_width = takes_sphere = False

    class Options:
        path_rank: int = option(
            32,
            "PaTH: rank of the projection to the vectors w; 0: a single projection of full rank",
            at_least=0,
            per_layer=True,
            tag="PaTHRank{}",
        )
        path_kernel: int = option(
            3,
            "PaTH: kernel size of the convolution of the vectors w; 0: none",
            at_least=0,
            per_layer=True,
            tag="PaTHConv{}",
        )
        path_chunk: int = option(
            64,
            "PaTH: chunk size in tokens; does not change the result",
            at_least=1,
            role=Role.EXECUTION,
            tag=None,
        )

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        yield from super().problems(config)
        if config.get("kv_sharing", False):
            yield Problem(
                ("kv_sharing", "position_encoding"),
                "kv_sharing=True cannot be combined with position_encoding='path', where each "
                "layer transforms its keys; use kv_sharing=False, or another position encoding.",
            )

    @classmethod
    def scoring(cls, config: LayerConfig) -> PathScores:
        return PathScores(config)


class PathScores(PairScores):
    """The scores of a layer with PaTH."""

    def __init__(self, config: LayerConfig):
        super().__init__(config)
        C, rank, kernel = config.n_embd, config.path_rank, config.path_kernel
        self.heads, self.head_dim = config.n_kv_head, config.head_dim
        self.chunk, self.window = config.path_chunk, window_of(config)
        width = self.heads * self.head_dim
        self.w = LowRank(C, rank, width, bias=False) if rank else nn.Linear(C, width, bias=False)
        self.conv = CausalConv(width, kernel, bias=False) if kernel else None
        self.beta = nn.Linear(C, self.heads, bias=True)

    def forward(
        self, q: Tensor, k: Tensor, x: Tensor, context: Context
    ) -> tuple[Tensor, Tensor | None]:
        w, beta = self._factors(x, context)
        with torch.autocast(x.device.type, enabled=False):
            q, k = q.to(w.dtype), k.to(w.dtype)
            q = q.unflatten(1, (k.shape[1], -1))  # (B, H_kv, H/H_kv, T, D)
            scores = self._scores(q * self.scale, k, w, beta, context)
        return scores.flatten(1, 2), None

    def _factors(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The vectors w (B, H_kv, T, D) and the numbers beta (B, H_kv, T, 1)."""
        u, dtype = self.w(x), precise(x.dtype)
        if self.conv is not None:
            u = self.conv(u, None if context.state is None else context.state["w_inputs"])
        u = F.silu(u.to(dtype)).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        w = u * torch.rsqrt(u.square().sum(-1, keepdim=True) + 1e-6)
        return w, 2 * self.beta(x).to(dtype).sigmoid().transpose(1, 2).unsqueeze(-1)

    def _scores(self, q: Tensor, k: Tensor, w: Tensor, beta: Tensor, context: Context) -> Tensor:
        """The scores (B, H_kv, H/H_kv, T, T_k). The keys in the state are transformed."""
        start = context.start
        static = isinstance(start, Tensor)
        if context.state is None:
            kept = k[:, :, :0]
        else:
            kept = context.state["k"] if static else context.state["k"][:, :, :start]
        at = start + torch.arange(k.shape[2], device=k.device)  # the positions
        keys = kept.shape[2] if static else start + k.shape[2]
        rows = []
        for i in range(0, k.shape[2], self.chunk):
            own_q, *own = (each[..., i : i + self.chunk, :] for each in (q, k, w, beta))
            within, moved_q, moved_k, factor = path_in_chunk(own_q, *own)
            row = _by_group(moved_q, kept.mT)
            kept = kept - (kept @ own[1].mT) @ factor
            if static:
                positions = at[i : i + self.chunk]
                row = row.index_copy(-1, positions, within)
                kept = kept.index_copy(-2, positions, moved_k)
            else:
                row = torch.cat((row, within), dim=-1)
                kept = torch.cat((kept, moved_k), dim=-2)
            rows.append(F.pad(row, (0, keys - row.shape[-1])))
        if context.state is not None:
            context.state["k"][:, :, :keys] = kept
        return torch.cat(rows, dim=-2)

    def new_state(
        self, batch: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> State:
        heads, dim = self.beta.out_features, self.head_dim
        keys = torch.zeros(batch, heads, capacity, dim, device=device, dtype=precise(dtype))
        if self.conv is None:
            return {"k": keys}
        return {"k": keys, "w_inputs": self.conv.new_state(batch, device=device, dtype=dtype)}

    def split(self, over: TensorSplit) -> bool:
        width = self.heads * self.head_dim
        over.columns(self.w.second if isinstance(self.w, LowRank) else self.w, (width,))
        over.columns(self.beta, (self.heads,))
        if self.conv is not None:
            over.rows_of(self.conv, "weight", (width,))
        return True

    def forward_flops(self, seq_len: int, causal: bool = False) -> int:
        """FLOPs of the projections, and 4 D for each key head and pair of a query and an earlier
        key, which is multiplied by the query's matrix, as when decoding."""
        pairs = attended_pairs(seq_len, self.window, causal) - (seq_len if causal else 0)
        return super().forward_flops(seq_len, causal) + 4 * self.heads * self.head_dim * pairs

    def own_backward_flops(self, own: int, flow: GradientFlow) -> int:
        """The products have a gradient if the queries and keys, or the matrices, have one."""
        made = (child for child in self.modules() if isinstance(child, nn.Linear))
        return 2 * own * (flow.into(self) or any(map(flow.out_of, made)))


def path_in_chunk(
    q: Tensor, k: Tensor, w: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The products of H_t = I - beta_t w_t w_t^T in a chunk of n tokens, by the UT transform.

    H_b ... H_a = I - sum_{a <= t <= s <= b} M_st w_s w_t^T for all a <= b, where
    M = (I + L)^{-1} diag(beta) and L_st = beta_s w_s . w_t for t < s. Tokens are numbered from 1.

    Args:
        q: Queries (..., R, n, D).
        k: Keys (..., n, D), shared by R heads.
        w: (..., n, D).
        beta: (..., n, 1).

    Returns:
        The scores q_i . H_i ... H_{j+1} k_j for j <= i, (..., R, n, n); the queries for keys before
        the chunk, H_1 ... H_i q_i; the keys for queries after it, H_n ... H_{j+1} k_j; and F
        (..., n, D) such that H_n ... H_1 x = x - F^T W x.
    """
    below = (beta * w) @ w.mT
    diagonal = torch.diag_embed(beta.squeeze(-1))
    M = torch.linalg.solve_triangular(below.tril(-1), diagonal, upper=False, unitriangular=True)
    of_queries = _by_group(_by_group(q, w.mT).tril(), M)
    of_keys = (w @ k.mT).tril(-1)
    factor = M.mT @ w
    within = _by_group(q, k.mT) - _by_group(of_queries, of_keys)
    return within, q - _by_group(of_queries, w), k - of_keys.mT @ factor, factor


def _by_group(x: Tensor, y: Tensor) -> Tensor:
    """x @ y for x (..., R, n, m) and y (..., m, p) that R heads share: (..., R, n, p)."""
    return (x.flatten(-3, -2) @ y).unflatten(-2, x.shape[-3:-1])
