"""Our protocols on two parties' shares: the product. See protocols/*.py for what each message reveals, and why not."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from protocols.activation import activation
from protocols.backends.interface import KeyValues
from protocols.correlation import weight_mask
from protocols.errors import PlanError
from protocols.linear import MaskedWeight, linear
from protocols.normalisation import layer_norm, rms_norm
from protocols.product import Masked, extend, mask, multiply, multiply_masked
from protocols.rank import argmax
from protocols.ring import FRACTION_BITS, PRODUCT_BITS, RING_BITS, encode
from protocols.sampling import GumbelNoise
from protocols.session import Session, together
from protocols.shares import Secret, cat
from protocols.softmax import divide, exponentials, inverse_of_sum
from protocols.truncation import drop_low_bits, truncate

WEIGHTED_BITS = 56
"""Ring of exponentials times values: sums of up to 2^14 of them, not yet divided."""

LOGIT_FRACTION_BITS = 12
LOGIT_WIDTH = 25
"""Logits are compared with 12 fractional bits: differences up to 2^12 in size, exact to 2^-11."""


class MpcBackend:
    """One party's end. Values are `Secret` at scale 2^16.

    weight_key: the owner's key of this model and client (party 0 only). masked_weights: party 1's opened weights
    W - B by name, as the owner sent them.
    """

    name = "mpc"

    def __init__(
        self,
        session: Session,
        weight_key: bytes | None = None,
        masked_weights: dict[str, torch.Tensor] | None = None,
    ) -> None:
        self.session = session
        self._weight_key = weight_key
        self._masked_weights = masked_weights or {}

    # ------------------------------------------------------------ weights

    def weight(self, name: str, shape: tuple[int, ...], tensor: torch.Tensor | None) -> MaskedWeight:
        if self.session.device.type == "meta":
            return MaskedWeight(name, torch.empty(shape, dtype=torch.int64, device="meta"))
        if self.session.party == 0:
            if tensor is None:
                raise PlanError(f"the model owner has no value for {name}")
            return MaskedWeight(name, encode(tensor))
        return MaskedWeight(name, self._masked_weights[name])

    # ------------------------------------------------------------ layers

    def embed(self, tokens: Sequence[int] | None, count: int, table: MaskedWeight) -> Secret:
        one_hot = torch.zeros((count, table.shape[0]), dtype=torch.int64, device=self.session.device)
        if tokens is not None:
            one_hot[torch.arange(count), torch.as_tensor(tokens)] = 1
        return self._run(linear(self.session, one_hot, table, RING_BITS, transposed=True))

    def add_known(self, x: Secret, known: torch.Tensor | None) -> Secret:
        return x if known is None else self._secret(x.share + encode(known))

    def linear(self, x: Secret, weight: MaskedWeight, bias: torch.Tensor | None = None) -> Secret:
        return self._run(self._linear(x.share, weight, bias))

    async def _linear(self, x: torch.Tensor, weight: MaskedWeight, bias: torch.Tensor | None) -> torch.Tensor:
        z = await linear(self.session, x, weight)
        if bias is not None and self.session.party == 0:
            z = z + encode(bias, 2 * FRACTION_BITS).to(z.device)
        return await truncate(self.session, z)

    def rms_norm(self, x: Secret, epsilon: float) -> Secret:
        return self._run(rms_norm(self.session, x.share, epsilon))

    def layer_norm(self, x: Secret, epsilon: float) -> Secret:
        return self._run(layer_norm(self.session, x.share, epsilon))

    def rotate(self, x: Secret, cos: torch.Tensor, sin: torch.Tensor) -> Secret:
        device = self.session.device
        first, second = x.share.chunk(2, -1)
        turned = torch.cat([-second, first], -1)
        z = x.share * encode(cos).to(device) + turned * encode(sin).to(device)
        return self._run(truncate(self.session, z))

    def activation(self, x: Secret, kind: str) -> Secret:
        return self._run(activation(self.session, x.share, kind))

    def multiply(self, x: Secret, y: Secret) -> Secret:
        async def product() -> torch.Tensor:
            return await truncate(self.session, await multiply(self.session, x.share, y.share))

        return self._run(product())

    def concatenate(self, parts: Sequence[Secret], dim: int) -> Secret:
        return cat(list(parts), dim)

    # ------------------------------------------------------------ attention

    def append(self, cached: KeyValues | None, keys: Secret, values: Secret) -> KeyValues:
        """Every row is masked once, here, for as long as it is cached. Rounds: 1."""
        old_keys, old_values = (cached.keys, cached.values) if cached else (None, None)
        new_keys, new_values = self.session.run(
            together(
                extend(self.session, old_keys, keys.share, -2, PRODUCT_BITS),
                extend(self.session, old_values, values.share, -2, RING_BITS),
            )
        )
        return KeyValues(new_keys, new_values, new_keys.shape[-2])

    def attend(self, queries: Secret, cached: KeyValues, visible: torch.Tensor | None) -> Secret:
        return self._run(self._attend(queries.share, cached, visible))

    async def _attend(self, q: torch.Tensor, cached: KeyValues, visible: torch.Tensor | None) -> torch.Tensor:
        session = self.session
        masked_q = await mask(session, q)
        scores = multiply_masked(session, masked_q, cached.keys, "matmul_transposed", forget=(masked_q,))
        scores = await truncate(session, scores)
        if visible is not None:
            visible = visible.to(session.device)
        e, total = await exponentials(session, scores, visible)
        weighed, inverse = await together(self._weigh(e, cached.values), inverse_of_sum(session, total, cached.tokens))
        return await divide(session, weighed, inverse)

    async def _weigh(self, e: torch.Tensor, values: Masked) -> torch.Tensor:
        masked_e = await mask(self.session, e, WEIGHTED_BITS)
        z = multiply_masked(self.session, masked_e, values, "matmul", forget=(masked_e,))
        return await truncate(self.session, z, FRACTION_BITS, WEIGHTED_BITS)

    # ------------------------------------------------------------ the next token

    def choose(
        self,
        x: Secret,
        head: MaskedWeight,
        bias: torch.Tensor | None,
        vocabulary: int,
        temperature: float,
    ) -> int | None:
        """Only party 1 learns the token: party 0 sends its share of the arg max, and nothing else is opened."""
        session = self.session
        token = session.run(self._choose(x.share, head, bias, temperature))
        return None if token is None or session.device.type == "meta" else int(token)

    async def _choose(
        self, x: torch.Tensor, head: MaskedWeight, bias: torch.Tensor | None, temperature: float
    ) -> torch.Tensor | None:
        session = self.session
        z = await linear(session, x, head)
        if bias is not None and session.party == 0:
            z = z + encode(bias, 2 * FRACTION_BITS).to(z.device)
        logits = drop_low_bits(z, 2 * FRACTION_BITS - LOGIT_FRACTION_BITS, PRODUCT_BITS)
        if temperature > 0:
            (noise,) = session.take(GumbelNoise(tuple(logits.shape), temperature, LOGIT_FRACTION_BITS))
            logits = logits + noise
        position = await argmax(session, logits, LOGIT_WIDTH)
        theirs = await session.transfer(position, position.shape, 32, receiver=1)
        return None if session.party == 0 else (theirs + position) & 0xFFFFFFFF

    def announce(self, goes_on: bool | None) -> bool:
        """Party 1 says whether it wants another token: the answer's length is public, see docs/threat-model.md."""
        session = self.session
        share = torch.full((1,), int(bool(goes_on)), dtype=torch.int64, device=session.device)
        heard = session.run(session.transfer(share, (1,), 8, receiver=0))
        if session.planning:
            return True
        return bool(heard.item()) if session.party == 0 else bool(goes_on)

    # ------------------------------------------------------------ helpers

    def _secret(self, share: torch.Tensor) -> Secret:
        return Secret(share, self.session.party)

    def _run(self, protocol: object) -> Secret:
        return self._secret(self.session.run(protocol))  # type: ignore[arg-type]


def masked_weight(weight_key: bytes, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """What the owner sends party 1 once per model and client: W - B, uniform to whoever lacks the weight key."""
    encoded = encode(tensor)
    return encoded - weight_mask(weight_key, name, tuple(encoded.shape))
