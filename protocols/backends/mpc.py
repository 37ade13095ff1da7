"""Our protocols on two parties' shares: the product. See protocols/*.py for what each message reveals, and why not."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

import torch

from mpcache.protocols.activation import activation
from mpcache.protocols.backends.interface import KeyValues, Stage
from mpcache.protocols.backends.planned import planned_once
from mpcache.protocols.beaver import (
    Masked,
    extend,
    forget,
    mask,
    masked_runs,
    multiply,
    multiply_masked,
    rows,
    rows_of_runs,
    unmask,
)
from mpcache.protocols.causal import Causal
from mpcache.protocols.comparison import negative_part
from mpcache.protocols.correlation import weight_mask
from mpcache.protocols.errors import PlanError
from mpcache.protocols.gate import gate
from mpcache.protocols.gate import pays as gate_pays
from mpcache.protocols.linear import MaskedWeight, linear
from mpcache.protocols.maximum import argmax, maximum, position_bits
from mpcache.protocols.normalisation import rms_norm
from mpcache.protocols.pending import Normed, Product, alone
from mpcache.protocols.picking import Chosen, Layout, mask_choice, pick, place, place_masked
from mpcache.protocols.public import Factor
from mpcache.protocols.rank import one_hot, striped_top_k, top_k
from mpcache.protocols.reciprocal import RECIPROCAL_BITS
from mpcache.protocols.ring import FRACTION_BITS, PRODUCT_BITS, RING_BITS, encode, stored
from mpcache.protocols.sampling import GumbelNoise
from mpcache.protocols.scaled import Rows, open_rows, scale_rows
from mpcache.protocols.session import Session, together
from mpcache.protocols.shares import Secret, cat
from mpcache.protocols.shuffle import compact
from mpcache.protocols.softmax import exponentials, inverse_of_sum
from mpcache.protocols.stream import LAYER_SHIFT, WIDE_BITS, normed_linear, pays
from mpcache.protocols.stripes import Stripes, to_runs, to_tokens
from mpcache.protocols.threshold import keep_largest, score_bits
from mpcache.protocols.truncation import drop_low_bits, truncate

EMBED_BITS = 32
"""Ring of an embedding: values below 2^14. At scale 2^32 it is as wide as a product; a one-hot of the vocabulary is
what costs."""

WEIGHTED_BITS = 56
"""Ring of exponentials times values: sums of up to 2^14 of them, not yet divided."""

LOOKED_UP = ("embedding", "position_embedding")
"""Weights of which party 1 looks up columns, by one-hots of its own."""

AFTER_NORMS = (".queries_keys_values", ".feed_forward_in")
"""Weights whose inputs are norms: masked for products with what is not yet divided (`stream.normed_linear`)."""

SCORE_BITS = PRODUCT_BITS - FRACTION_BITS
"""Scores are products whose low bits are dropped locally: scale 2^16, valid modulo 2^32, one unit off at most."""

SELECT_FRACTION_BITS = 8
SELECT_WIDTH = 22
"""Clusters are compared with 8 fractional bits: differences up to 2^13 in size. Those that are nearer to each other
than 1/128 may change places, which selection does not mind."""

RECEIVED_INVERSE_BITS = RECIPROCAL_BITS - (RING_BITS - WEIGHTED_BITS)
"""Fractional bits of a softmax's inverse where probabilities are summed: what is left when its low bits are dropped
locally, down to the ring of the sums."""

RECEIVED_QUERIES = 1 << 9
"""Queries whose probabilities are summed before a truncation: their sum is
below 2^54, which a truncation of 56 bits bears."""

EXTREME_BITS = 30
"""Ring of the maximum and minimum of keys: exact for differences up to 2^13 in size."""

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

    @property
    def round_bytes(self) -> int:
        return self.session.round_bytes

    # ------------------------------------------------------------ weights

    def weight(self, name: str, shape: tuple[int, ...], tensor: torch.Tensor | None) -> MaskedWeight:
        bits = weight_bits(name)
        if self.session.device.type == "meta":
            return MaskedWeight(name, torch.empty(shape, dtype=torch.int64, device="meta"), bits)
        if self.session.party == 0:
            if tensor is None:
                raise PlanError(f"the model owner has no value for {name}")
            return MaskedWeight(name, encoded_weight(name, tensor), bits)
        return MaskedWeight(name, self._masked_weights[name], bits)

    # ------------------------------------------------------------ layers

    @planned_once
    def embed(self, tokens: Sequence[int] | None, count: int, table: MaskedWeight) -> Secret:
        one_hot = torch.zeros((count, table.shape[1]), dtype=torch.int64, device=self.session.device)
        if tokens is not None:
            one_hot[torch.arange(count), torch.as_tensor(tokens)] = 1
        rows = self.session.run(linear(self.session, one_hot, table))
        return Product(rows << FRACTION_BITS, self.session)  # valid modulo 2^48, as a product is: no lifting

    def add_known(self, x: Secret, known: torch.Tensor | None) -> Secret:
        if known is None:
            return x
        if isinstance(x, Product):
            return x.like(x.untruncated + encode(known, FRACTION_BITS + x.shift))
        return self._secret(x.share + encode(known))

    @planned_once
    def linear(self, x: Secret, weight: MaskedWeight, bias: torch.Tensor | None = None, narrow: bool = False) -> Secret:
        """Untruncated, for whoever uses it: the stream adds it up, an activation reads it masked."""
        out_bits = PRODUCT_BITS if narrow else RING_BITS
        if isinstance(x, Normed) and not x.made and weight.bits >= WIDE_BITS:
            rows = x.shape.numel() // x.shape[-1]
            if pays(rows, x.shape[-1], weight.shape[0], self.session.round_bytes):
                z = self.session.run(normed_linear(self.session, x.untruncated, x.epsilon, weight), "linear")
                return Product(self._biased(z, bias, LAYER_SHIFT), self.session, RING_BITS, LAYER_SHIFT, out_bits)
        z = self.session.run(linear(self.session, x.share, weight), "linear")
        return Product(self._biased(z, bias, FRACTION_BITS), self.session, out_bits=out_bits)

    def _biased(self, z: torch.Tensor, bias: torch.Tensor | None, shift: int) -> torch.Tensor:
        if bias is None or self.session.party != 0:
            return z
        return z + encode(bias, FRACTION_BITS + shift).to(z.device)

    @planned_once
    def rms_norm(self, x: Secret, epsilon: float) -> Secret:
        if isinstance(x, Product) and not x.made:
            return Normed(x.untruncated, self.session, epsilon)
        return self._run(rms_norm(self.session, x.share, epsilon))

    @planned_once
    def rotate(self, x: Secret, cos: torch.Tensor, sin: torch.Tensor) -> Secret:
        async def rotated() -> torch.Tensor:
            first, second = x.share.chunk(2, -1)
            turned = torch.cat([-second, first], -1)
            z = x.share * self.session.public(cos) + turned * self.session.public(sin)
            return await truncate(self.session, z)

        return self._run(rotated())

    def known_to_client(self, x: torch.Tensor | None, shape: Sequence[int]) -> Secret:
        """Its share is the value; the owner's is zero. Nothing is sent."""
        if self.session.party == 0 or x is None:
            return self.zeros(shape)
        return self._secret(encode(x))

    def secret_tables(self, tables: torch.Tensor | None, shape: Sequence[int]) -> tuple[Masked, Masked]:
        """Opened: both under one mask of their size. Rounds: 1."""
        _, m, d = shape
        both = self.known_to_client(tables, shape).share.reshape(1, 2 * m, d)
        masked = self.session.run(mask(self.session, both))
        cos, sin = (rows(self.session, [(masked, start, start + m)]) for start in (0, m))
        forget(self.session, masked)
        return cos, sin

    @planned_once
    def rotate_masked(self, x: Secret, cos: Masked, sin: Masked) -> Secret:
        """Opened: x under a fresh mask, once for both products; what a truncation opens. Rounds: 2."""

        async def rotated() -> torch.Tensor:
            masked = await mask(self.session, x.share)
            first, second = multiply_masked(self.session, masked, sin).chunk(2, -1)  # a table's halves are the same
            z = multiply_masked(self.session, masked, cos, forget=(masked,)) + torch.cat([-second, first], -1)
            return await truncate(self.session, z)

        return self._run(rotated())

    @planned_once
    def activation(self, x: Secret, kind: str) -> Secret:
        if isinstance(x, Product) and not x.made:
            z, ring = x.untruncated, (x.bits, x.shift)
            if gate_pays(tuple(x.shape), kind, *ring, self.session.round_bytes):
                return self._run(gate(self.session, z, kind, *ring))
            return self._run(activation(self.session, z, kind, PRODUCT_BITS, *ring))
        return self._run(activation(self.session, x.share, kind))

    @planned_once
    def multiply(self, x: Secret, y: Secret) -> Secret:
        first, second = x.share, alone(y)

        async def product() -> torch.Tensor:
            return await truncate(self.session, await multiply(self.session, first, second))

        return self._run(product())

    @planned_once
    def scale(self, x: Secret, factor: Factor) -> Secret:
        return self._run(truncate(self.session, x.share * self.session.public(factor)), "selection")

    def zeros(self, shape: Sequence[int]) -> Secret:
        return self._secret(torch.zeros(tuple(shape), dtype=torch.int64, device=self.session.device))

    def concatenate(self, parts: Sequence[Secret], dim: int) -> Secret:
        return cat(list(parts), dim)

    # ------------------------------------------------------------ attention

    @planned_once
    def append(self, cached: KeyValues[Masked] | None, keys: Secret, values: Secret) -> KeyValues[Masked]:
        """Every row is masked once, here, for as long as it is cached. Rounds: 1."""
        old_keys, old_values = (cached.keys, cached.values) if cached else (None, None)
        new_keys, new_values = self.session.run(
            together(
                extend(self.session, old_keys, keys.share, -2, PRODUCT_BITS),
                extend(self.session, old_values, values.share, -2, RING_BITS),
            ),
            "attention",
        )
        return KeyValues(new_keys, new_values, new_keys.shape[-2])

    @planned_once
    def enter(
        self, cached: KeyValues[Masked] | None, queries: Secret, keys: Secret, values: Secret
    ) -> tuple[KeyValues[Masked], Masked]:
        """Queries, keys and values are masked in one round."""
        old_keys, old_values = (cached.keys, cached.values) if cached else (None, None)
        new_keys, new_values, masked_queries = self.session.run(
            together(
                extend(self.session, old_keys, keys.share, -2, PRODUCT_BITS),
                extend(self.session, old_values, values.share, -2, RING_BITS),
                mask(self.session, queries.share),
            ),
            "attention",
        )
        return KeyValues(new_keys, new_values, new_keys.shape[-2]), masked_queries

    def visible(self, seen: Causal) -> Causal:
        return seen

    @planned_once
    def attend(
        self,
        queries: Masked,
        cached: KeyValues[Masked],
        visible: torch.Tensor | Causal | None = None,
        hidden: Secret | None = None,
    ) -> Secret:
        return self._run(self._attend(queries, cached, visible, hidden), "attention")

    @planned_once
    def attend_observed(
        self,
        queries: Masked,
        cached: KeyValues[Masked],
        visible: torch.Tensor | Causal | None,
        observed: torch.Tensor,
    ) -> tuple[Secret, Secret]:
        out, received = self.session.run(self._attend_observed(queries, cached, visible, observed), "attention")
        return self._secret(out), self._secret(received)

    @planned_once
    def attend_selected(
        self,
        queries: Sequence[Masked],
        cached: KeyValues[Masked],
        start: int,
        end: int,
        stages: Sequence[Sequence[Stage[Masked]]],
        hidden: Secret | None = None,
    ) -> Secret:
        """Tokens share their rounds."""

        async def attended() -> torch.Tensor:
            later = reversed(range(len(queries)))
            each = zip(queries, stages, later, strict=True)
            return torch.stack(
                await together(*[self._attend_selected(q, cached, start, end, s, n, hidden) for q, s, n in each]), 2
            ).flatten(1, 2)

        return self._run(attended(), "attention")

    def _scores(self, queries: Masked, keys: Masked) -> torch.Tensor:
        scores = multiply_masked(self.session, queries, keys, "matmul_transposed", forget=(queries,))
        return drop_low_bits(scores, FRACTION_BITS, PRODUCT_BITS)

    async def _attend(
        self, q: Masked, cached: KeyValues[Masked], visible: torch.Tensor | Causal | None, hidden: Secret | None
    ) -> torch.Tensor:
        masked_e, weighed, inverse = await self._weighed(q, cached, visible, hidden)
        forget(self.session, *masked_e)
        return await self._divide(weighed, inverse)

    async def _attend_observed(
        self, q: Masked, cached: KeyValues[Masked], visible: torch.Tensor | Causal | None, observed: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        masked_e, weighed, inverse = await self._weighed(q, cached, visible)
        unseen = torch.ones(inverse.shape[1], dtype=torch.bool)
        unseen[observed] = False
        seen = torch.where(unseen.to(inverse.device)[:, None], 0, inverse)
        out = await together(self._divide(weighed, inverse), self._received(masked_e, seen))
        forget(self.session, *masked_e)
        return out[0], out[1]

    async def _weighed(
        self,
        q: Masked,
        cached: KeyValues[Masked],
        visible: torch.Tensor | Causal | None,
        hidden: Secret | None = None,
    ) -> tuple[list[Masked], Rows, torch.Tensor]:
        """(exponentials, masked, RECEIVED_QUERIES at a time; their sums of values, inverses of their sums)."""
        session, scores = self.session, self._scores(q, cached.keys)
        scores = scores if hidden is None else scores + hidden.share
        e, total = await exponentials(session, scores, visible, WEIGHTED_BITS)

        async def weighed() -> tuple[list[Masked], Rows]:
            masked_e = await together(*[mask(session, part, WEIGHTED_BITS) for part in e.split(RECEIVED_QUERIES, 1)])
            z = torch.cat([multiply_masked(session, part, cached.values, "matmul") for part in masked_e], 1)
            return list(masked_e), await open_rows(session, z, WEIGHTED_BITS, FRACTION_BITS)

        (masked_e, sums), inverse = await together(weighed(), inverse_of_sum(session, total, cached.tokens))
        return masked_e, sums, inverse

    async def _received(self, masked_e: list[Masked], inverse: torch.Tensor) -> torch.Tensor:
        """Sums over the queries of e times their inverse, which is 0 for those that are not observed: probabilities
        received, (heads, tokens). The exponentials' masks are those of the attention. Rounds: 2."""
        inverse = drop_low_bits(inverse, RECIPROCAL_BITS - RECEIVED_INVERSE_BITS)
        parts = zip(inverse.split(RECEIVED_QUERIES, 1), masked_e, strict=True)
        return torch.stack(await together(*[self._received_from(*part) for part in parts])).sum(0)

    async def _received_from(self, inverse: torch.Tensor, e: Masked) -> torch.Tensor:
        """The same from RECEIVED_QUERIES queries at most."""
        session = self.session
        masked = await mask(session, inverse, WEIGHTED_BITS)
        z = multiply_masked(session, masked, e, "transposed_matmul", (masked,))
        return (await truncate(session, z, RECEIVED_INVERSE_BITS, WEIGHTED_BITS))[:, 0]

    async def _attend_selected(
        self,
        q: Masked,
        cached: KeyValues[Masked],
        start: int,
        end: int,
        stages: Sequence[Stage[Masked]],
        later: int,
        hidden: Secret | None,
    ) -> torch.Tensor:
        """The picked runs' scores, softmax, and the exponentials put back in place: keys and values never move.

        later: how many tokens at the end of the cache the queries do not see: their exponentials are 0.
        Opened: the choice, if this is its first use, scores of runs, and exponentials picked and in place, all under
        fresh masks (see picking.py).
        """
        session, seen = self.session, cached.tokens - later
        scores = self._scores(q, cached.keys)
        scores = scores if hidden is None else scores + hidden.share
        before, picked, after = scores[..., :start], scores[..., start:end], scores[..., end:seen]
        for stage in stages:
            runs = await self._picked(stage, to_runs(picked, stage.size, _heads(stage, picked)))
            picked = to_tokens(runs, stage.size, picked.shape[:2])
        count = picked.shape[-1]
        scores = torch.cat([before, picked, after], -1)
        e, total = await exponentials(session, scores, out_bits=WEIGHTED_BITS)
        unseen = torch.zeros((*e.shape[:-1], later), dtype=torch.int64, device=session.device)
        weighed, inverse = await together(
            self._weigh_picked(torch.cat([e, unseen], -1), cached.values, start, count, stages),
            inverse_of_sum(session, total, e.shape[-1]),
        )
        return await self._divide(weighed, inverse)

    async def _picked(self, stage: Stage[Masked], rows: torch.Tensor) -> torch.Tensor:
        return await pick(self.session, stage.stripes, self._chosen(stage), rows, SCORE_BITS)

    async def _chosen(self, stage: Stage[Masked]) -> Chosen:
        """The choice, masked at its first use, together with what is picked from then."""
        if not stage.masked:
            rows = [None if part is None else part.share for part in stage.choice]
            masked = await mask_choice(self.session, rows, WEIGHTED_BITS)
            stage.masked += [part for part in masked if part is not None]
        chosen = iter(stage.masked)
        return [None if group.whole else next(chosen) for group in stage.stripes.groups]

    async def _weigh_picked(
        self, e: torch.Tensor, values: Masked, start: int, count: int, stages: Sequence[Stage[Masked]]
    ) -> Rows:
        session, shape = self.session, (e.shape[0], e.shape[1])
        outside, placed = torch.cat([e[..., :start], e[..., start + count :]], -1), e[..., start : start + count]
        first, *finer = stages
        for stage in reversed(finer):
            runs = to_runs(placed, stage.size, _heads(stage, placed))
            runs = await place(session, stage.stripes, await self._chosen(stage), runs, WEIGHTED_BITS)
            placed = to_tokens(runs, stage.size, shape)
        layout = Layout(shape, start, first.size, first.stripes)
        runs = to_runs(placed, first.size, _heads(first, placed))
        masked_e, used = await place_masked(session, layout, await self._chosen(first), outside, runs, WEIGHTED_BITS)
        z = multiply_masked(session, masked_e, values, "matmul", forget=(masked_e, *used))
        return await open_rows(session, z, WEIGHTED_BITS, FRACTION_BITS)

    async def _divide(self, weighed: Rows, inverse: torch.Tensor) -> torch.Tensor:
        z = await scale_rows(self.session, weighed, inverse)
        return await truncate(self.session, z, RECIPROCAL_BITS, RING_BITS)

    # ------------------------------------------------------------ what a sparse prefill is built from

    @planned_once
    def choose_runs(self, queries: Masked, masked: Masked, stripes: int, k: int) -> Secret:
        """Scores are a local product; then a maximum over all queries for each row, and ranks within each stripe. All
        of it is opened under fresh masks only, by `maximum` and `top_k`."""

        async def choice() -> torch.Tensor:
            scores = multiply_masked(self.session, queries, masked, "matmul_transposed")  # scale 2^32, modulo 2^48
            compared = drop_low_bits(scores, 2 * FRACTION_BITS - SELECT_FRACTION_BITS, PRODUCT_BITS)
            rows = compared.flatten(0, 1).t()  # (n, heads * queries)
            largest = (await maximum(self.session, rows, SELECT_WIDTH))[:, 0]
            return await top_k(self.session, largest.reshape(-1, stripes).t(), k, SELECT_WIDTH)

        return self._run(choice(), "selection")

    @planned_once
    def gather_runs(self, cached: KeyValues[Masked], start: int, end: int, choice: Secret) -> KeyValues[Masked]:
        """Keys and values of the chosen runs, products with what is masked already, under fresh masks. Rounds: 2.

        Opened: the choice, and the chosen rows, each under a mask of its own, used for this block's products alone.
        """
        session = self.session
        stripes, _, n = choice.shape
        size = (end - start) // (stripes * n)

        async def gathered() -> tuple[Masked, Masked]:
            chosen = await mask(session, choice.share, WEIGHTED_BITS)
            rows_of = [masked_runs(session, x, start, end, stripes, size) for x in (cached.keys, cached.values)]
            found = [multiply_masked(session, chosen, x, "matmul", forget=(x,)) for x in rows_of]
            forget(session, chosen)
            keys, values = (rows_of_runs(x, cached.keys.shape[0], size) for x in found)
            return await together(mask(session, keys), mask(session, values, WEIGHTED_BITS))

        picked = session.run(gathered(), "selection")
        joined = []
        for one, old in zip(picked, (cached.keys, cached.values), strict=True):
            joined.append(rows(session, [(old, 0, start), (one, 0, one.shape[1]), (old, end, cached.tokens)]))
        forget(session, *picked)
        return KeyValues(joined[0], joined[1], joined[0].shape[1])

    # ------------------------------------------------------------ what is laid by and called back

    @planned_once
    def runs(self, cached: KeyValues[Masked], start: int, end: int, stripes: int, size: int) -> KeyValues[Masked]:
        keys, values = (masked_runs(self.session, x, start, end, stripes, size) for x in (cached.keys, cached.values))
        return KeyValues(keys, values, keys.shape[1])

    @planned_once
    def choose_largest(self, scores: Secret, stripes: int) -> Masked:
        """All of it is opened under fresh masks only, by `argmax` and `one_hot`; the choice is masked for all layers
        that use it."""
        session = self.session
        compared = drop_low_bits(scores.share, FRACTION_BITS - SELECT_FRACTION_BITS, SCORE_BITS)

        async def chosen() -> Masked:
            rows = compared.reshape(-1, stripes).t()
            place = await argmax(session, rows, SELECT_WIDTH)
            return await mask(
                session, (await one_hot(session, place, rows.shape[-1], WEIGHTED_BITS))[:, None], WEIGHTED_BITS
            )

        return session.run(chosen(), "selection")

    @planned_once
    def recall(self, stored: KeyValues[Masked], choice: Masked, heads: int, size: int) -> KeyValues[Masked]:
        """Products of what is masked already, under fresh masks. Rounds: 1.

        Opened: the chosen rows, each under a mask of its own, used for this layer's and step's products alone.
        """
        session = self.session

        async def recalled() -> tuple[Masked, Masked]:
            found = [multiply_masked(session, choice, x, "matmul") for x in (stored.keys, stored.values)]
            keys, values = (rows_of_runs(x, heads, size) for x in found)
            return await together(mask(session, keys), mask(session, values, WEIGHTED_BITS))

        keys, values = session.run(recalled(), "selection")
        return KeyValues(keys, values, keys.shape[1])

    # ------------------------------------------------------------ what cache policies are built from

    @planned_once
    def mask(self, x: Secret, after: Masked | None = None) -> Masked:
        return self.session.run(extend(self.session, after, x.share, 1), "selection")

    def unmask(self, masked: Masked) -> Secret:
        return self._secret(unmask(self.session, masked))

    def rows(self, parts: Sequence[tuple[Masked, int, int]]) -> Masked:
        return rows(self.session, parts)

    def forget(self, *masked: Masked) -> None:
        forget(self.session, *masked)

    @planned_once
    def similarity(self, queries: Masked, masked: Sequence[Masked]) -> list[Secret]:
        """Rounds: 0, all are masked already."""

        async def products() -> list[torch.Tensor]:
            return [multiply_masked(self.session, queries, rows, "matmul_transposed") for rows in masked]

        found = self.session.run(products(), "selection")
        return [self._secret(drop_low_bits(z.sum(1), FRACTION_BITS, PRODUCT_BITS)) for z in found]

    @planned_once
    def product(self, x: Secret, masked: Masked, operation: str) -> Secret:
        async def product() -> torch.Tensor:
            factor = await mask(self.session, x.share)
            z = multiply_masked(self.session, factor, masked, operation, forget=(factor,))
            return await truncate(self.session, z)

        return self._run(product(), "selection")

    @planned_once
    def top_k(self, scores: Secret, k: int) -> Secret:
        """Nothing is revealed: not which, and not in what order."""
        compared = drop_low_bits(scores.share, FRACTION_BITS - SELECT_FRACTION_BITS, SCORE_BITS)
        return self._run(top_k(self.session, compared, k, SELECT_WIDTH), "selection")

    @planned_once
    def argmin(self, scores: Secret, largest: float) -> Secret:
        async def choice() -> torch.Tensor:
            width = score_bits(largest, FRACTION_BITS) + 1  # and a sign
            position = await argmax(self.session, -scores.share, width)
            return (await one_hot(self.session, position, scores.shape[-1]))[:, None]

        return self._run(choice(), "selection")

    @planned_once
    def gather(self, choice: Secret, rows: Secret) -> Secret:
        return self._run(multiply(self.session, choice.share, rows.share, RING_BITS, "matmul"), "selection")

    @planned_once
    def choose(self, scores: Secret, stripes: Stripes, size: int) -> Stage[Masked]:
        """Nothing is revealed: not which, and not in what order. Masked at the first use."""
        compared = drop_low_bits(scores.share, FRACTION_BITS - SELECT_FRACTION_BITS, SCORE_BITS)
        rows = self.session.run(
            striped_top_k(self.session, compared, stripes, SELECT_WIDTH, WEIGHTED_BITS), "selection"
        )
        return Stage([None if part is None else self._secret(part) for part in rows], size, stripes)

    @planned_once
    def pick(self, stage: Stage[Masked], rows: Secret) -> Secret:
        return self._run(self._picked(stage, rows.share), "selection")

    @planned_once
    def retain(self, scores: Secret, k: int, largest: float, rows: Secret) -> Secret:
        async def retained() -> torch.Tensor:
            bits = score_bits(largest, FRACTION_BITS)
            keep = await keep_largest(self.session, scores.share, k, bits)
            return await compact(self.session, rows.share, keep, k)

        return self._run(retained(), "eviction")

    @planned_once
    def extremes(self, x: Secret) -> tuple[Secret, Secret]:
        async def both() -> tuple[torch.Tensor, torch.Tensor]:
            high, low = await _extremes(self.session, x.share)
            stacked = await truncate(self.session, torch.stack([high, low]), 0, EXTREME_BITS)
            return stacked[0], stacked[1]

        high, low = self.session.run(both(), "selection")
        return self._secret(high), self._secret(low)

    @planned_once
    def overwrite(self, masked: Masked, choice: Secret, row: Secret) -> Masked:
        """Every row is masked anew, as any may have changed. Rounds: 2."""

        async def overwritten() -> Masked:
            session, bits, at = self.session, masked.bits, choice.share.transpose(-1, -2)
            place, new = await together(mask(session, at, bits), mask(session, row.share, bits))
            change = multiply_masked(session, place, new) - multiply_masked(session, place, masked)
            forget(session, place, new, masked)
            return await mask(session, unmask(session, masked) + change, bits)

        return self.session.run(overwritten(), "selection")

    # ------------------------------------------------------------ the next token

    @planned_once
    def next_tokens(
        self,
        x: Secret,
        head: MaskedWeight,
        bias: torch.Tensor | None,
        vocabulary: int,
        temperature: float,
    ) -> list[int] | None:
        """Only party 1 learns the tokens: party 0 sends its shares of the arg max, and nothing else is opened.

        A peer that deviates makes any numbers of them: they are folded into the vocabulary, as an error would show.
        """
        session = self.session
        found = session.run(self._next_tokens(x.share, head, bias, temperature), "head")
        if found is None or session.device.type == "meta":
            return None
        return [token % vocabulary for token in found.tolist()]

    async def _next_tokens(
        self, x: torch.Tensor, head: MaskedWeight, bias: torch.Tensor | None, temperature: float
    ) -> torch.Tensor | None:
        session = self.session
        z = await linear(session, x, head)
        if bias is not None and session.party == 0:
            z = z + encode(bias, 2 * FRACTION_BITS).to(z.device)
        logits = drop_low_bits(z, 2 * FRACTION_BITS - LOGIT_FRACTION_BITS, PRODUCT_BITS)
        if temperature > 0:
            noise = session.take(GumbelNoise(tuple(logits.shape), temperature, LOGIT_FRACTION_BITS)).noise
            logits = logits + noise
        position = await argmax(session, logits, LOGIT_WIDTH)
        return await session.reveal(position, position_bits(logits.shape[-1]), to=1)

    def announce(self, goes_on: bool | None) -> bool:
        """Party 1 says whether it wants another token: the answer's length is public, see docs/threat-model.md."""
        session = self.session
        share = torch.full((1,), int(bool(goes_on)), dtype=torch.int64, device=session.device)
        heard = session.run(session.reveal(share, 8, to=0))
        if session.planning:
            return True
        return bool(heard.item()) if session.party == 0 else bool(goes_on)

    # ------------------------------------------------------------ helpers

    def _secret(self, share: torch.Tensor) -> Secret:
        return Secret(share, self.session.party)

    def _run(self, protocol: Awaitable[torch.Tensor], part: str = "other") -> Secret:
        return self._secret(self.session.run(protocol, part))


def _heads(stage: Stage[Masked], x: torch.Tensor) -> int:
    """Of the choice's rows, for x (heads, queries, tokens): 1 if all heads share a choice."""
    known = [rows for rows in stage.choice if rows is not None]
    return known[0].shape[0] if known else x.shape[0]


async def _extremes(session: Session, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maximum and minimum over the last dimension but one, modulo 2^EXTREME_BITS, by a tree of both at once."""
    high = low = x
    while (n := high.shape[-2]) > 1:
        even, odd, rest = slice(0, n - n % 2, 2), slice(1, n, 2), slice(n - n % 2, n)
        first = torch.stack([high[..., even, :], low[..., odd, :]])
        second = torch.stack([high[..., odd, :], low[..., even, :]])
        _, loss, _ = await negative_part(session, first - second, EXTREME_BITS)
        # max(a, b) = a - min(a - b, 0) and min(a, b) = a + min(b - a, 0), here with a and b exchanged
        high_pairs, low_pairs = first[0] - loss[0], second[1] + loss[1]
        high = torch.cat([high_pairs, high[..., rest, :]], -2)
        low = torch.cat([low_pairs, low[..., rest, :]], -2)
    return high[..., 0, :], low[..., 0, :]


def masked_weight(weight_key: bytes, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """What the owner sends party 1 once per model and client: W - B, uniform to whoever lacks the weight key."""
    return encoded_weight(name, tensor) - weight_mask(weight_key, name, tuple(tensor.shape), weight_bits(name))


def encoded_weight(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A weight in the ring of its products; one of integers is encoded already.

    int64 is laid out row by row, as products want it; int32 as it comes, which suits the embedding's.
    """
    if not tensor.is_floating_point():
        return tensor
    encoded = stored(encode(tensor), weight_bits(name))
    return encoded if encoded.dtype == torch.int32 else encoded.contiguous()


def weight_bits(name: str) -> int:
    """Ring of a weight's products, in which it is masked."""
    if name in LOOKED_UP:
        return EMBED_BITS
    return WIDE_BITS if name.endswith(AFTER_NORMS) else PRODUCT_BITS
