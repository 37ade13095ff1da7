"""Correlated randomness: what the dealer makes, what each party expands from its own seed, what must be sent.

A correlation is a frozen dataclass of public parameters. It declares its fields in order:
  - Random: uniform, shared between the parties; each party draws its share from its own seed, nothing is sent.
    With `holder` set, that party draws the whole value and the other has nothing.
  - Corrected: a function of the random values. Party 0 draws its share from its seed; the dealer sends party 1 the
    difference. (So party 0 is never sent anything, and party 1's share is uniform because party 0's is.)
and computes the corrected values from the random ones in `deal`. Dealer's and parties' half thus stand side by side,
and the plan (protocols/plan.py) knows every correction's size from the declaration alone.

Each correlation draws from the streams numbered by its place in the session, so a party and the dealer agree
whatever order they work in. Masks that later correlations refer to are kept by the dealer under a number (see
protocols/beaver.py).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mpcache.protocols.errors import TooLarge
from mpcache.protocols.growing import Growing
from mpcache.protocols.randomness import Stream, derive_key
from mpcache.protocols.ring import pack, packed_bytes, reduce_bits, stored, unpack

Shape = tuple[int, ...]
LARGEST_BYTES = 2 << 30
"""What one correlation, or message, may take in memory if nobody says otherwise: peers choose sizes."""


@dataclass(frozen=True)
class Random:
    """A uniform value modulo 2^bits; `xor` shares bits instead of sums; `holder` has it alone."""

    shape: Shape
    bits: int = 64
    xor: bool = False
    holder: int | None = None


@dataclass(frozen=True)
class Corrected:
    """A value that `deal` computes, shared modulo 2^bits (or by xor)."""

    shape: Shape
    bits: int = 64
    xor: bool = False

    def nbytes(self) -> int:
        return packed_bytes(math.prod(self.shape), self.bits)


Field = Random | Corrected


class Correlation(ABC):
    """Base of all correlations. Subclasses are frozen dataclasses of public values."""

    @abstractmethod
    def fields(self) -> Sequence[Field]:
        """The fields in order; their shapes and widths follow from public values alone."""

    def deal(self, randoms: Sequence[torch.Tensor], kept: dict[int, torch.Tensor], dealer: Dealer) -> Sequence[Any]:
        """The values of the Corrected fields, from the reconstructed Random ones and the masks kept so far."""
        return ()

    def correction_bytes(self) -> int:
        """Bytes that the dealer sends to party 1."""
        return sum(f.nbytes() for f in self.fields() if isinstance(f, Corrected))


def _fitting(correlation: Correlation, largest_bytes: int) -> Sequence[Field]:
    """The fields, before anything of them is drawn. Raises TooLarge."""
    fields = correlation.fields()
    check_bytes(8 * sum(math.prod(field.shape) for field in fields), largest_bytes)
    return fields


def check_bytes(needed: int, largest_bytes: int) -> None:
    """Raises TooLarge."""
    if needed > largest_bytes:
        raise TooLarge(
            f"a step of this computation takes {needed / 2**30:,.1f} GiB, {largest_bytes / 2**30:,.1f} are allowed: "
            "shorten the prompt, choose another cache policy, or raise max_step_gib in all three settings"
        )


def _draw(field: Field, party: int, stream: Stream) -> torch.Tensor | None:
    if isinstance(field, Random) and field.holder not in (None, party):
        return None
    return stream.elements(field.shape, field.bits)


class Dealer:
    """Makes the corrections of one session, in the order of the plan.

    It holds both parties' seeds of this session (each sent by that party, over TLS) and, if the plan has weights,
    the owner's weight key. It never receives a share of a prompt, weight or activation, so it learns public
    parameters alone.
    """

    def __init__(
        self, seeds: tuple[bytes, bytes], weight_key: bytes | None = None, largest_bytes: int = LARGEST_BYTES
    ) -> None:
        self._largest_bytes = largest_bytes
        self._keys = tuple(derive_key(seed, "correlations") for seed in seeds)
        self._own_key = derive_key(seeds[0] + seeds[1], "dealer")
        self._weight_key = weight_key
        self._kept: dict[int, torch.Tensor] = {}
        self._weight_masks: dict[str, tuple[int, torch.Tensor]] = {}
        self._growing: dict[int, Growing] = {}
        self._number = 0

    def correction(self, correlation: Correlation) -> bytes:
        """What party 1 must be sent for the next correlation of the session. Raises TooLarge."""
        fields = _fitting(correlation, self._largest_bytes)
        streams = [Stream(key, self._number) for key in self._keys]
        totals: list[torch.Tensor] = []
        masks: list[tuple[Corrected, torch.Tensor]] = []
        for field in fields:
            shares = [_draw(field, party, streams[party]) for party in (0, 1)] if isinstance(field, Random) else []
            if isinstance(field, Corrected):
                masks.append((field, streams[0].elements(field.shape, field.bits)))
            elif shares[0] is None or shares[1] is None:
                totals.append(reduce_bits(next(s for s in shares if s is not None), field.bits))
            else:
                total = shares[0] ^ shares[1] if field.xor else shares[0] + shares[1]
                totals.append(reduce_bits(total, field.bits))
        values = correlation.deal(totals, self._kept, self)
        self._number += 1
        return b"".join(
            pack(value ^ mask if field.xor else value - mask, field.bits)
            for value, (field, mask) in zip(values, masks, strict=True)
        )

    def own_stream(self) -> Stream:
        """Randomness of the dealer's own for the correlation being made (noise that neither party may know)."""
        return Stream(self._own_key, self._number)

    def grow(self, handle: int, rows: torch.Tensor, dim: int) -> torch.Tensor:
        """The mask kept under `handle` with more rows, or these as its first."""
        if handle not in self._kept:
            return rows
        if handle not in self._growing:
            self._growing[handle] = Growing(self._kept[handle], dim)
        return self._growing[handle].append(rows)

    def forget(self, handle: int) -> None:
        """No later correlation refers to this mask."""
        self._kept.pop(handle, None)
        self._growing.pop(handle, None)

    def weight_mask(self, name: str, shape: Shape, bits: int) -> torch.Tensor:
        """The fixed mask of a named weight; the owner derives the same from its weight key."""
        if self._weight_key is None:
            raise ValueError("the owner gave no weight key")
        if name not in self._weight_masks:
            self._weight_masks[name] = bits, weight_mask(self._weight_key, name, shape, bits)
        width, mask = self._weight_masks[name]
        if width != bits:
            raise ValueError(f"the weight {name} is masked at {width} bits, not {bits}")
        return mask


def weight_mask(weight_key: bytes, name: str, shape: Shape, bits: int) -> torch.Tensor:
    """The mask B of a weight, uniform modulo 2^bits, as int32 where that is enough (`ring.stored`).

    A function of the owner's weight key for this model and client, and of the weight's name. A key is for one choice
    of widths (parties/weights.py): at another width the same bytes would mask other elements.
    """
    return stored(Stream(derive_key(weight_key, "weight", name)).elements(shape, bits), bits)


class PartyCorrelations:
    """One party's half: expands its own seed and, at party 1, reads the corrections.

    `read` gives the next bytes of the dealer's stream to this party; party 0's is never called.
    """

    def __init__(
        self,
        party: int,
        seed: bytes,
        read: Callable[[int], bytes | bytearray | memoryview],
        largest_bytes: int = LARGEST_BYTES,
    ) -> None:
        self._largest_bytes = largest_bytes
        self._party, self._key, self._read = party, derive_key(seed, "correlations"), read
        self._number = 0
        self.correction_bytes = 0

    def take(self, correlation: Correlation) -> list[torch.Tensor | None]:
        """This party's shares of the fields; None for a value that the other party holds alone. Raises TooLarge."""
        fields = _fitting(correlation, self._largest_bytes)
        stream = Stream(self._key, self._number)
        self._number += 1
        out: list[torch.Tensor | None] = []
        for field in fields:
            if self._party == 1 and isinstance(field, Corrected):
                nbytes = field.nbytes()
                self.correction_bytes += nbytes
                out.append(unpack(self._read(nbytes), field.shape, field.bits))
            else:
                out.append(_draw(field, self._party, stream))
        return out


def corrections(dealer: Dealer, plan: Iterable[Correlation]) -> Iterator[bytes]:
    """Party 1's corrections for a plan, one correlation at a time, so that no more than one is in memory."""
    for correlation in plan:
        data = dealer.correction(correlation)
        if data:
            yield data
