"""Implementations of softmax attention: `attention_backend`. All compute the same function.

A backend is created once per layer from the layer's requirements (`AttentionNeeds`), and called as
`backend(q, k, v, bias, dropout, start, sinks)`, or, if the position encoding computes the scores,
(B, H, T_q, T_k), as `backend.attend(scores, v, bias, dropout, start, sinks)`:

    q     (B, H, T_q, D)      queries: the last T_q of the T_k positions
    k, v  (B, H_kv, T_k, D)   H is a multiple of H_kv; each key head serves H/H_kv query heads
    bias  (H, T_q, T_k), (B, H, T_q, T_k) or None, added to the scores after the softcap
    start ()                  or None: position of the first query, if there are keys after the last
    sinks (H,) or None: the logit of an additional key with value 0 that every query attends to
    out   (B, H, T_q, D)

Position t attends to positions t - window + 1 .. t.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from components.layer_config import LayerConfig
from components.positions import POSITIONS
from components.registry import Registry
from errors import Problem, UserError
from options import Role


@dataclasses.dataclass(frozen=True)
class AttentionNeeds:
    """The features that a layer requires of its backend; every backend supports `scale`."""

    scale: float | None = None
    """Scale of query-key products; None: 1/sqrt(D)."""
    window: int | None = None
    softcap: float | None = None
    bias: bool = False
    dropout: bool = False
    sinks: bool = False
    scores: bool = False
    head_dim: int = 64
    value_dim: int | None = None
    """Dimension of a value; None: head_dim."""

    def asked(self) -> dict[str, str]:
        """A description of each required feature, by the class attribute that indicates support."""
        features = {
            "takes_window": ("a sliding window", self.window is not None),
            "takes_softcap": ("an attention softcap", self.softcap is not None),
            "takes_bias": ("a bias on the scores (ALiBi, FIRE, forget gates)", self.bias),
            "takes_dropout": ("dropout on the attention weights", self.dropout),
            "takes_sinks": ("attention sinks", self.sinks),
            "takes_scores": ("scores computed by the position encoding (CoPE, PaTH)", self.scores),
        }
        return {attribute: words for attribute, (words, asked) in features.items() if asked}


class AttentionBackend:
    """An implementation of attention; class attributes indicate the supported features."""

    takes_window: ClassVar[bool] = True
    takes_softcap: ClassVar[bool] = True
    takes_bias: ClassVar[bool] = True
    takes_dropout: ClassVar[bool] = True
    takes_sinks: ClassVar[bool] = True
    takes_scores: ClassVar[bool] = False

    def __init__(self, needs: AttentionNeeds):
        self.needs = needs

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        dropout: float = 0.0,
        start: Tensor | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        raise NotImplementedError

    def attend(
        self,
        scores: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        dropout: float = 0.0,
        start: Tensor | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Attention with given scores, if `takes_scores`."""
        raise NotImplementedError

    @classmethod
    def lacks(cls, needs: AttentionNeeds) -> list[str]:
        """Descriptions of the required features that the backend does not support."""
        return [words for attribute, words in needs.asked().items() if not getattr(cls, attribute)]

    @classmethod
    def refusal(
        cls, needs: AttentionNeeds, device: str, dtype: torch.dtype, training: bool
    ) -> str | None:
        """Why the backend cannot run on a device type in a compute dtype, with the fix; or None."""
        return None

    def name_on(self, device: str, length: int) -> str:
        """The name of the backend that is actually used on a device type, for sequences of `length`
        tokens."""
        return next(n for n in ATTENTION_BACKENDS.names if ATTENTION_BACKENDS[n] is type(self))

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        needs = attention_needs(config)
        lacking = cls.lacks(needs)
        if lacking:
            yield Problem(
                ("attention_backend",),
                f"attention_backend={config.attention_backend!r} does not support "
                f"{' or '.join(lacking)}, which the other keys require; use "
                f"attention_backend='auto' or one of: {', '.join(_able(needs))}.",
            )


def window_of(config: LayerConfig) -> int | None:
    """The window of a layer in tokens; None if there is none, or it covers all of block_size."""
    window = config.sliding_window
    return None if window is None or window >= config.block_size else window


def attention_needs(config: LayerConfig) -> AttentionNeeds:
    """The features that a layer requires of its attention backend."""
    return AttentionNeeds(
        scale=config.attention_scale,
        window=window_of(config),
        softcap=config.attention_softcap,
        bias=POSITIONS[config.position_encoding].biases_scores or config.get("forget_gate", False),
        dropout=config.dropout > 0,
        sinks=config.attention_sinks,
        scores=POSITIONS[config.position_encoding].computes_scores,
        head_dim=query_key_dim(config),
        value_dim=_value_dim(config),
    )


def query_key_dim(config: Any) -> int:
    """Dimension of a layer's queries and keys."""
    if "qk_rope_head_dim" in config:
        return config.qk_nope_head_dim + config.qk_rope_head_dim
    return config.head_dim


def _value_dim(config: LayerConfig) -> int | None:
    """Dimension of a layer's values; None: that of its queries and keys."""
    if config.get("differential_attention"):
        return 2 * config.head_dim
    return config.get("v_head_dim")


def _able(needs: AttentionNeeds) -> list[str]:
    names = [name for name in ATTENTION_BACKENDS.names if name != "auto"]
    return [name for name in names if not ATTENTION_BACKENDS[name].lacks(needs)]


ATTENTION_BACKENDS = Registry(
    "attention_backend",
    "Attention backend",
    variable="ATTENTION_BACKENDS",
    base=AttentionBackend,
    made_with="needs",
    role=Role.EXECUTION,
)


def visible(
    queries: int,
    keys: int,
    window: int | None,
    device: torch.device,
    start: Tensor | None = None,
) -> Tensor:
    """The mask of keys that each query attends to: bool (T_q, T_k).

    The queries are the last positions, or those starting at `start`.
    """
    first = keys - queries if start is None else start
    q = first + torch.arange(queries, device=device)[:, None]
    k = torch.arange(keys, device=device)[None, :]
    causal = k <= q
    return causal if window is None else causal & (q - k < window)


@ATTENTION_BACKENDS.register(
    "manual", label="manual", paper="Vaswani et al. 2017, arXiv 1706.03762"
)
class ManualAttention(AttentionBackend):
    """A direct implementation of the formula; the reference for the other backends."""

    takes_scores = True

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        dropout: float = 0.0,
        start: Tensor | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        return self.attend(self._scores(q, k), v, bias, dropout, start, sinks)

    def attend(
        self,
        scores: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        dropout: float = 0.0,
        start: Tensor | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        weights = self._normalized(scores, bias, start, sinks).to(v.dtype)
        return F.dropout(weights, dropout) @ _repeat_heads(v, scores.shape[1])

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """The attention weights (B, H, T_q, T_k); each row sums to 1."""
        return self._normalized(self._scores(q, k), None, None, None)

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        return scaled_products(q, k, self.needs.scale or 1 / math.sqrt(q.shape[-1]))

    def _normalized(
        self, scores: Tensor, bias: Tensor | None, start: Tensor | None, sinks: Tensor | None
    ) -> Tensor:
        """The attention weights (B, H, T_q, T_k); each row sums to 1, or to less with sinks."""
        if self.needs.softcap is not None:
            scores = self.needs.softcap * torch.tanh(scores / self.needs.softcap)
        if bias is not None:
            scores = scores + bias
        seen = visible(*scores.shape[-2:], self.needs.window, scores.device, start)
        scores = scores.masked_fill(~seen, float("-inf"))
        if sinks is not None:
            logits = sinks[:, None, None].expand(*scores.shape[:-1], 1).to(scores.dtype)
            scores = torch.cat((scores, logits), dim=-1)
        weights = scores.softmax(dim=-1, dtype=_softmax_dtype(scores))
        return weights if sinks is None else weights[..., :-1]


def _softmax_dtype(scores: Tensor) -> torch.dtype:
    """At least float32, because half precision loses small weights."""
    return torch.promote_types(scores.dtype, torch.float32)


def scaled_products(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Scaled products of queries (B, H, T_q, D) and keys (B, H_kv, T_k, D): (B, H, T_q, T_k)."""
    return q @ _repeat_heads(k, q.shape[1]).transpose(-2, -1) * scale


def _repeat_heads(x: Tensor, n_head: int) -> Tensor:
    """Expand (B, H_kv, T, D) to (B, H, T, D); adjacent query heads share a key head."""
    return x if x.shape[1] == n_head else x.repeat_interleave(n_head // x.shape[1], dim=1)


SINK_DIMS = 8
"""Dimensions that a sink adds to a head; one would suffice, but kernels need multiples of 8."""


@ATTENTION_BACKENDS.register("sdpa", label="sdpa", paper="Dao et al. 2022, arXiv 2205.14135")
class SDPA(AttentionBackend):
    """torch's scaled_dot_product_attention, which chooses a fused kernel."""

    takes_softcap = False

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        dropout: float = 0.0,
        start: Tensor | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        mask = self._mask(q, k, bias, start)
        if sinks is not None:
            return self._with_sinks(q, k, v, mask, dropout, sinks)
        return self._attend(q, k, v, mask, dropout, self.needs.scale)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        dropout: float,
        scale: float | None,
    ) -> Tensor:
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None and bool(q.shape[2] > 1),
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )

    def _with_sinks(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, sinks: Tensor
    ) -> Tensor:
        """Attention with an additional key before all others, whose value is 0.

        An additional dimension gives the sink its logit as the product with every query, without
        changing other products. The causal kernel then needs no mask: an additional first query,
        which is discarded, shifts the diagonal by the additional key.
        """
        queries, dim, width = *q.shape[2:], v.shape[-1]
        scale = self.needs.scale or dim**-0.5
        logits = (sinks / scale).to(q.dtype)[:, None, None].expand(*q.shape[:3], 1)
        q = F.pad(torch.cat((q, logits), dim=-1), (0, SINK_DIMS - 1))
        sink = F.pad(k.new_ones(1), (dim, SINK_DIMS - 1)).expand(*k.shape[:2], 1, -1)
        k = torch.cat((sink, F.pad(k, (0, SINK_DIMS))), dim=2)
        v = F.pad(v, (0, SINK_DIMS, 1, 0))
        if mask is None:
            q = q if queries == 1 else F.pad(q, (0, 0, 1, 0))
        else:
            mask = F.pad(mask, (1, 0), value=mask.dtype == torch.bool)
        y = self._attend(q, k, v, mask, dropout, scale)
        return y[:, :, y.shape[2] - queries :, :width]

    def _mask(
        self, q: Tensor, k: Tensor, bias: Tensor | None, start: Tensor | None
    ) -> Tensor | None:
        """The mask, or None if `is_causal` suffices or a single query attends to all keys."""
        queries, keys = q.shape[2], k.shape[2]
        window = self.needs.window
        windowed = window is not None and window < keys
        if bias is None and start is None and not windowed and queries in (1, keys):
            return None
        seen = visible(queries, keys, window, q.device, start)
        if bias is None:
            return seen
        return bias.to(q.dtype).masked_fill(~seen, float("-inf"))


@ATTENTION_BACKENDS.register("flash", label="flash", paper="Dao 2023, arXiv 2307.08691")
class FlashAttention(AttentionBackend):
    """The flash-attn package: CUDA and half precision only."""

    takes_bias = False
    takes_sinks = False

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        dropout: float = 0.0,
        start: Tensor | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        why_not = self.refusal(self.needs, q.device.type, q.dtype, training=torch.is_grad_enabled())
        if why_not:
            raise UserError(why_not)
        if start is not None:
            raise UserError(
                "attention_backend='flash' does not support decoding with a static state, which "
                "compiled models use; use attention_backend='auto'."
            )
        from flash_attn import flash_attn_func

        out = flash_attn_func(
            *(x.transpose(1, 2) for x in (q, k, v)),  # expects (B, T, H, D)
            dropout_p=dropout,
            causal=True,
            window_size=(-1 if self.needs.window is None else self.needs.window - 1, 0),
            softcap=self.needs.softcap or 0.0,
            softmax_scale=self.needs.scale,
        )
        return out.transpose(1, 2)

    @classmethod
    def lacks(cls, needs: AttentionNeeds) -> list[str]:
        lacking = super().lacks(needs)
        if needs.softcap is not None and needs.dropout:
            lacking.append("an attention softcap together with dropout")
        if needs.head_dim > 256:
            lacking.append("a head_dim above 256")
        if needs.value_dim not in (None, needs.head_dim):
            lacking.append("values of another dimension than keys")
        return lacking

    @classmethod
    def refusal(
        cls, needs: AttentionNeeds, device: str, dtype: torch.dtype, training: bool
    ) -> str | None:
        if device != "cuda" or dtype not in (torch.float16, torch.bfloat16):
            return (
                f"attention_backend='flash' runs on CUDA in bfloat16 or float16, not on {device} "
                f"in {str(dtype).removeprefix('torch.')}; use attention_backend='auto'."
            )
        if importlib.util.find_spec("flash_attn") is None:
            return (
                "attention_backend='flash' needs the flash-attn package, which is not installed: "
                "pip install flash-attn, or use attention_backend='auto'."
            )
        return None


FLEX_LEAST_HEAD_DIM = 16
"""Minimum head dimension of the CUDA kernels."""


@ATTENTION_BACKENDS.register("flex", label="flex", paper="Dong et al. 2024, arXiv 2412.05496")
class FlexAttention(AttentionBackend):
    """torch's FlexAttention, compiled for window, softcap and bias; on a CPU, inference only."""

    takes_dropout = False

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        dropout: float = 0.0,
        start: Tensor | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        training = torch.is_grad_enabled() and q.requires_grad
        why_not = self.refusal(self.needs, q.device.type, q.dtype, training)
        if why_not:
            raise UserError(why_not)
        attend = _flex_attention(q.device.type)
        y, aux = attend(
            q,
            k,
            v,
            score_mod=self._score_mod(bias),
            block_mask=self._mask(q, k, start),
            scale=self.needs.scale,
            enable_gqa=q.shape[1] != k.shape[1],
            return_aux=_aux_request(lse=sinks is not None),
        )
        if sinks is None:
            return y
        return y * (aux.lse - sinks[:, None]).sigmoid().unsqueeze(-1).to(y.dtype)

    def _mask(self, q: Tensor, k: Tensor, start: Tensor | None) -> Any:
        """The block mask: cached per shape, or created inside the graph when compiling."""
        sizes = (q.shape[2], k.shape[2], self.needs.window, str(q.device))
        if start is not None or torch.compiler.is_compiling():
            return _make_flex_mask(*sizes, start)
        return _kept_flex_mask(*sizes)

    def _score_mod(self, bias: Tensor | None) -> Any:
        softcap = self.needs.softcap
        if softcap is None and bias is None:
            return None

        def modify(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            if softcap is not None:
                score = softcap * torch.tanh(score / softcap)
            if bias is None:
                return score
            return score + (bias[h, q, k] if bias.ndim == 3 else bias[b, h, q, k])

        return modify

    @classmethod
    def refusal(
        cls, needs: AttentionNeeds, device: str, dtype: torch.dtype, training: bool
    ) -> str | None:
        if device == "cpu" and training:
            return (
                "attention_backend='flex' has no backward pass on a CPU; use "
                "attention_backend='auto', or device='cuda'."
            )
        if device == "cuda" and needs.head_dim < FLEX_LEAST_HEAD_DIM:
            return (
                f"attention_backend='flex' needs head_dim of at least {FLEX_LEAST_HEAD_DIM} on "
                f"CUDA, not {needs.head_dim}; use attention_backend='auto'."
            )
        if device not in ("cpu", "cuda"):
            return (
                f"attention_backend='flex' runs on CUDA and CPU, not on {device}; use "
                "attention_backend='auto'."
            )
        return None


def _aux_request(lse: bool) -> Any:
    """The additional outputs requested from flex: the log-sum-exp of each query's scores."""
    from torch.nn.attention.flex_attention import AuxRequest

    return AuxRequest(lse=lse)


def _flex_attention(device: str) -> Any:
    """FlexAttention, compiled unless inside a graph or on a CPU, since it is slow otherwise."""
    from torch.nn.attention.flex_attention import flex_attention

    if torch.compiler.is_compiling() or device == "cpu":
        return flex_attention
    return _compiled(flex_attention)


_compiled = functools.cache(torch.compile)


def _make_flex_mask(
    queries: int, keys: int, window: int | None, device: str, start: Tensor | None = None
) -> Any:
    """The causal block mask with a window; see `visible`."""
    from torch.nn.attention.flex_attention import create_block_mask

    offset = keys - queries if start is None else start

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        causal = k <= q + offset
        return causal if window is None else causal & (q + offset - k < window)

    return create_block_mask(seen, None, None, queries, keys, device=device)


_kept_flex_mask = functools.lru_cache(maxsize=64)(_make_flex_mask)


_AUTOMATIC = ("flex", "sdpa", "manual")
"""The backends that `auto` chooses from."""

MOST_MANUAL_ON_CPU = 256
"""Sequence length in tokens up to which manual attention trains faster on a CPU."""


@ATTENTION_BACKENDS.register("auto", label="auto")
class AutoAttention(AttentionBackend):
    """The fastest backend with the required features on the device; shown in the start report."""

    takes_scores = True

    def __init__(self, needs: AttentionNeeds):
        super().__init__(needs)
        able = (n for n in _AUTOMATIC if not ATTENTION_BACKENDS[n].lacks(needs))
        self._made = {name: ATTENTION_BACKENDS[name](needs) for name in able}

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        dropout: float = 0.0,
        start: Tensor | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        whole = q.shape[2] == k.shape[2] and start is None
        name = self._name(q.device.type, q.shape[2], whole)
        return self._made[name](q, k, v, bias, dropout, start, sinks)

    def attend(
        self,
        scores: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        dropout: float = 0.0,
        start: Tensor | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        name = self._name(scores.device.type, scores.shape[2], whole=False)
        return self._made[name].attend(scores, v, bias, dropout, start, sinks)

    def name_on(self, device: str, length: int) -> str:
        return self._name(device, length, whole=True)

    def _name(self, device: str, length: int, whole: bool) -> str:
        """The fastest backend on a device, for a whole sequence or for tokens that follow a cache.

        On CUDA, flex skips the blocks that a window hides, whereas SDPA would need a masked instead
        of a causal kernel; SDPA does not support a softcap. flex is not used with a bias, which
        SDPA's masked kernel adds, nor for tokens after a cache, since it would recompile for every
        length. On a CPU, the backward pass of SDPA splits the work into small matmuls, which is
        slow for short sequences.
        """
        masked = self.needs.window is not None or self.needs.softcap is not None
        flexes = masked and not self.needs.bias and self.needs.head_dim >= FLEX_LEAST_HEAD_DIM
        order = ("sdpa", "manual")
        if device == "cpu" and whole and length <= MOST_MANUAL_ON_CPU:
            return "manual"
        if device == "cuda" and whole and flexes:
            order = ("flex", *order)
        return next(name for name in order if name in self._made)
