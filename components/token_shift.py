"""Token shift: mix the input of a sublayer with that of the previous token: `token_shift`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.causal_conv import preceded
from components.context import Context, State
from components.layer_config import LayerConfig
from components.sublayer import Sublayer
from options import Role, Section

_shift = Section("Token shift", Role.ARCHITECTURE)


class TokenShiftOptions:
    """Options of the blocks, whose sublayers may have shifted inputs."""

    token_shift: str = _shift.option(
        "none",
        "mix the input of the mixer, of the FFN or of both with that of the previous token, by "
        "learned weights per channel",
        choices=("none", "mixer", "ffn", "both"),
        per_layer=True,
        tag={"none": "NoShift", "mixer": "MixerShift", "ffn": "FFNShift", "both": "Shift"},
    )


class TokenShift(Sublayer):
    """Interpolate between a token and the previous one: mu x_t + (1 - mu) x_{t-1}.

    mu is learned for each channel, and x is zero before the first token (RWKV, Peng et al. 2023,
    arXiv 2305.13048). RWKV has a separate mu for each projection; here all projections of a mixer
    or FFN read the same mixture. The decoding state is the last input.
    """

    def __init__(self, config: LayerConfig):
        super().__init__()
        self.current = nn.Parameter(torch.empty(config.n_embd))

    def init_parameters(self, config: LayerConfig) -> None:
        """Initialize as RWKV-4 does: mu = (i/C)^(1 - l/L) for channel i and layer l, from 0."""
        channels = torch.arange(config.n_embd, device=self.current.device) / config.n_embd
        with torch.no_grad():
            self.current.copy_(channels ** (1 - config.index / config.n_layer))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        kept = None if context.state is None else context.state["previous"]
        previous = preceded(x, 1, kept)[:, :-1]
        return previous + self.current.to(x.dtype) * (x - previous)

    def new_state(
        self, batch: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> State:
        return {"previous": torch.zeros(batch, 1, len(self.current), device=device, dtype=dtype)}


def shift_before(sublayer: str, config: LayerConfig) -> TokenShift | None:
    """The token shift before the sublayer `mixer` or `ffn` of a layer, or None."""
    return TokenShift(config) if config.token_shift in (sublayer, "both") else None
