"""Private temperature sampling: arg max of logits plus Gumbel noise that only the dealer knows.

Gumbel-max (Gumbel, 1954; Maddison et al., NeurIPS 2014): arg max(logits + T g), g standard Gumbel, is a sample of
softmax(logits / T). The dealer shares g, so neither party knows the noise and the sample stays private.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpcache.protocols.correlation import DEALER, Corrected, Dealer, Dealt, Fields, Placewise, Random, Tensors


@dataclass(frozen=True)
class GumbelNoise(Placewise):
    """Shares of temperature * g at scale 2^fraction_bits, g standard Gumbel from the dealer's own stream."""

    temperature: float
    fraction_bits: int

    def fields(self) -> Fields:
        return {"words": Random(self.shape, holder=DEALER), "noise": Corrected(self.shape)}

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        uniform = (((randoms.words >> 12) & ((1 << 52) - 1)).double() + 0.5) / 2.0**52
        noise = -torch.log(-torch.log(uniform)) * self.temperature
        return {"noise": (noise * 2.0**self.fraction_bits).round().to(torch.int64)}
