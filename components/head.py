"""The LM head, and its loss without materializing all logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.layer_config import LayerConfig
from components.sphere import Gain

IGNORED = -1
"""Target value that the loss ignores."""

CHUNK_BYTES = 256 * 2**20
"""Maximum bytes of float32 logits held at a time, unless that needs more than MOST_CHUNKS."""

CPU_CHUNK_BYTES = 32 * 2**20
"""The same on a CPU, for which small chunks are as fast."""

MOST_CHUNKS = 16
"""Maximum number of chunks, since torch.compile unrolls the loop over them."""


class LMHead(nn.Linear):
    """The logits s h W^T + b, (..., C) to (..., V), with s = `logit_scale`; with a softcap c,
    c tanh(logits / c)."""

    def __init__(self, config: LayerConfig):
        super().__init__(config.n_embd, config.vocab_size, bias=config.head_bias)
        self.softcap = config.output_softcap
        self.scale = config.logit_scale
        stored = config.n_embd**-0.5
        self.gain = Gain(config.vocab_size, 1.0, stored) if config.logit_gain else None

    def forward(self, x: Tensor) -> Tensor:
        logits = F.linear(self._scaled(x), self._weight(), self.bias)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def loss(self, x: Tensor, targets: Tensor, z_coef: float = 0.0) -> HeadLoss:
        """Mean cross-entropy in nats per token plus `z_coef` times the mean squared log-partition.

        The second term is the z-loss (PaLM, Chowdhery et al. 2022, arXiv 2204.02311), which keeps
        the logits from drifting. If the logits exceed CHUNK_BYTES, they and their gradients are
        computed in chunks of tokens, so that they are never materialized completely.

        Args:
            x: The input, (B, T, C).
            targets: Tokens (B, T); IGNORED ones do not count.
            z_coef: The weight of the z-loss.
        """
        x, targets = x.flatten(0, -2), targets.flatten()
        chunk = tokens_at_a_time(len(targets), self.out_features, x.device.type)
        if chunk >= len(targets):
            return _whole_loss(self(x), targets, z_coef)
        given = (self._scaled(x), self._weight(), self.bias, targets, self.softcap, z_coef, chunk)
        return HeadLoss(*_ChunkedLoss.apply(*given, torch.is_grad_enabled()))

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.scale == 1 else x * self.scale

    def _weight(self) -> Tensor:
        """The weight W; with `logit_gain`, each row times a learned number, nGPT's s_z."""
        return self.weight if self.gain is None else self.weight * self.gain().unsqueeze(1)

    @torch.no_grad()
    def window_losses(self, x: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of each window in nats per token, (B,), without gradients.

        If the logits exceed CHUNK_BYTES, they are computed in chunks of windows.

        Args:
            x: The input, (B, T, C).
            targets: Tokens (B, T), none of them IGNORED.
        """
        windows, length = targets.shape
        most = tokens_at_a_time(targets.numel(), self.out_features, x.device.type)
        chunk = max(most // length, 1)
        parts = zip(x.split(chunk), targets.split(chunk), strict=True)
        losses = [
            F.cross_entropy(_wide(self(own)).flatten(0, 1), wanted.flatten(), reduction="none")
            for own, wanted in parts
        ]
        return torch.cat(losses).view(windows, length).mean(dim=1)


class HeadLoss(NamedTuple):
    """The loss of the LM head.

    Attributes:
        total: Cross-entropy plus z-loss; has a gradient.
        z: The z-loss without its coefficient, detached.
    """

    total: Tensor
    z: Tensor


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits (..., V) in nats per token, computed in at least float32."""
    return F.cross_entropy(_wide(logits).flatten(0, -2), targets.flatten(), ignore_index=IGNORED)


def tokens_at_a_time(tokens: int, vocab_size: int, device: str) -> int:
    """Number of tokens per chunk on a device type; at least `tokens` if all logits fit."""
    size = CPU_CHUNK_BYTES if device == "cpu" else CHUNK_BYTES
    return max(size // (4 * vocab_size), -(-tokens // MOST_CHUNKS), 1)


def _wide(logits: Tensor) -> Tensor:
    """Convert logits to at least float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _whole_loss(logits: Tensor, targets: Tensor, z_coef: float) -> HeadLoss:
    """The loss of all logits (N, V) at once."""
    loss = cross_entropy(logits, targets)
    if not z_coef:
        return HeadLoss(loss, torch.zeros_like(loss).detach())
    counted = targets != IGNORED
    squares = _wide(logits).logsumexp(dim=-1).square()
    z = torch.where(counted, squares, 0.0).sum() / counted.sum()
    return HeadLoss(loss + z_coef * z, z.detach())


class _ChunkedLoss(torch.autograd.Function):
    """`_whole_loss` of the logits of x (N, C), computed in chunks together with the gradients.

    The gradients are those of sums over tokens, which half precision can represent; the backward
    pass divides them by the number of tokens.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softcap: float | None,
        z_coef: float,
        chunk: int,
        trains: bool,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(weight.dtype, torch.float32)
        losses, squares = (torch.zeros((), device=x.device, dtype=wide) for _ in range(2))
        of_x = torch.empty_like(x)
        of_weight = torch.zeros_like(weight, dtype=wide) if weight.requires_grad else None
        of_bias = None if bias is None else torch.zeros_like(bias, dtype=wide)
        for start in range(0, len(targets), chunk):
            rows = slice(start, start + chunk)
            logits, slope = _capped(F.linear(x[rows], weight, bias), softcap)
            loss, square, of_logits = _sums_of(logits, targets[rows], z_coef)
            losses += loss
            squares += square
            if not trains:
                continue
            of_logits = of_logits if slope is None else of_logits * slope
            if of_bias is not None:
                of_bias += of_logits.sum(dim=0)
            of_logits = of_logits.to(logits.dtype)
            of_x[rows] = of_logits @ weight
            if of_weight is not None:
                of_weight += of_logits.T @ x[rows]
        count = (targets != IGNORED).sum()
        ctx.save_for_backward(of_x, of_weight, of_bias, count)
        z = squares / count
        ctx.mark_non_differentiable(z)
        return losses / count + z_coef * z, z

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_loss: Tensor, of_z: Tensor) -> tuple[Tensor | None, ...]:
        of_x, of_weight, of_bias, count = ctx.saved_tensors
        scale = of_loss / count
        of_weight, of_bias = (None if own is None else own * scale for own in (of_weight, of_bias))
        gradients = ((of_x * scale).to(of_x.dtype), of_weight, of_bias)
        return *gradients, *(None for _ in range(5))


def _capped(logits: Tensor, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    """Logits with softcap, and the derivative of the softcap."""
    if softcap is None:
        return logits, None
    share = torch.tanh(logits / softcap)
    return softcap * share, 1 - share.square()


def _sums_of(logits: Tensor, targets: Tensor, z_coef: float) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of cross-entropy and squared log-partition over the tokens of a chunk; and the
    gradient of the first plus `z_coef` times the second with respect to the logits (N, V)."""
    counted = (targets != IGNORED).unsqueeze(-1)
    targets = targets.clamp(min=0).unsqueeze(-1)
    log_p = _wide(logits).log_softmax(dim=-1)
    of_targets = log_p.gather(-1, targets)
    partition = logits.gather(-1, targets) - of_targets
    gradient = log_p.exp_()
    share = counted.to(gradient.dtype)
    gradient *= (1 + 2 * z_coef * partition) * share if z_coef else share
    gradient.scatter_add_(-1, targets, -share)
    sums = ((each * share).sum() for each in (-of_targets, partition.square()))
    return *sums, gradient
