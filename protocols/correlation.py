"""Correlated randomness: what the dealer makes, what each party expands from its own seed, what must be sent.

A correlation is a frozen dataclass of public parameters. It declares its fields by name, in the order of drawing:
  - Random: uniform, shared between the parties; each party draws its share from its own seed, nothing is sent.
    With `holder` set, that party draws the whole value and the other has nothing.
  - Corrected: a function of the random values. Party 0 draws its share from its seed; the dealer sends party 1 the
    difference. (So party 0 is never sent anything, and party 1's share is uniform because party 0's is.)
and computes the corrected values from the random ones in `deal`, by the same names. Dealer's and parties' half thus
stand side by side, and the plan (protocols/plan.py) knows every correction's size from the declaration alone.

Each correlation draws from the streams numbered by its place in the session, so a party and the dealer agree
whatever order they work in. Masks that later correlations refer to are kept by the dealer under a number (see
protocols/beaver.py).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from mpcache.protocols.errors import PlanError, TooLarge
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
Fields: TypeAlias = "Mapping[str, Field | Sequence[Field] | Fields | Sequence[Fields]]"
"""Fields by name. Those of a kind are a list; those of a part of a correlation have names of their own."""
Dealt: TypeAlias = "Mapping[str, torch.Tensor | Sequence[torch.Tensor] | Dealt | Sequence[Dealt]]"
"""Values of the Corrected fields, by the names of `Fields`."""


class Tensors:
    """Tensors by the names of their fields: `shares.r` is one, `shares.each("table")` a list. `shares.part("digits")`
    has those of a part, with names of their own, and `shares.parts("combinations")` is a list of such.

    Raises PlanError for a name that was not declared, and for a value that the other party holds alone.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __getattr__(self, name: str) -> torch.Tensor:
        value = self._value(name)
        if not isinstance(value, torch.Tensor):
            raise PlanError(f"{name} is no tensor here")
        return value

    def each(self, name: str) -> list[torch.Tensor]:
        return list(self._value(name))

    def part(self, name: str) -> Tensors:
        return Tensors(self._value(name))

    def parts(self, name: str) -> list[Tensors]:
        return [Tensors(values) for values in self._value(name)]

    def _value(self, name: str) -> Any:
        if name not in self._values:
            raise PlanError(f"the correlation has no field {name}, but {', '.join(self._values) or 'none'}")
        return self._values[name]


@dataclass(frozen=True)
class Uses:
    """What the dealer has at hand for a correlation beside the seeds, by public names (see protocols/stretches.py).

    masks: the numbers of the kept masks that it reads or adds rows to. keeps: the number under which it keeps one
    itself; such a correlation deals nothing. forgets: numbers that nothing after it reads. weight: whose fixed mask it
    reads.
    """

    masks: tuple[int, ...] = ()
    keeps: int | None = None
    forgets: tuple[int, ...] = ()
    weight: str = ""


_NOTHING = Uses()


class Correlation(ABC):
    """Base of all correlations. Subclasses are frozen dataclasses of public values."""

    @abstractmethod
    def fields(self) -> Fields:
        """The fields in order; their shapes and widths follow from public values alone."""

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        """The values of the Corrected fields, from the reconstructed Random ones and the masks that the dealer kept."""
        return {}

    def uses(self) -> Uses:
        """What `deal` asks the dealer for."""
        return _NOTHING

    def correction_bytes(self) -> int:
        """Bytes that the dealer sends to party 1."""
        return sum(f.nbytes() for f in leaves(self.fields()) if isinstance(f, Corrected))


def leaves(fields: Fields) -> Iterator[Field]:
    """All fields in the order of drawing."""
    for field in fields.values():
        yield from _leaves_of(field)


def _leaves_of(field: Field | Fields | Sequence[Field] | Sequence[Fields]) -> Iterator[Field]:
    if isinstance(field, _FIELD):
        yield field
    elif isinstance(field, Mapping):
        yield from leaves(field)
    else:
        for item in field:
            yield from _leaves_of(item)


_FIELD = (Random, Corrected)


def tensors(fields: Fields, draw: Callable[[Field], torch.Tensor | None]) -> Tensors:
    """What `draw` gives for each field, in order, by the fields' names; None for a value that is not there."""
    return Tensors({name: _drawn(field, draw) for name, field in fields.items()})


def _drawn(field: Field | Fields | Sequence[Field] | Sequence[Fields], draw: Callable[[Field], Any]) -> Any:
    if isinstance(field, _FIELD):
        return draw(field)
    if isinstance(field, Mapping):
        return {name: _drawn(item, draw) for name, item in field.items()}
    return [_drawn(item, draw) for item in field]


def _is_random(field: Field | Fields | Sequence[Field] | Sequence[Fields]) -> bool:
    found = list(_leaves_of(field))
    return bool(found) and all(isinstance(f, Random) for f in found)


def _in_order(fields: Any, dealt: Any, name: str = "") -> Iterator[torch.Tensor]:
    """The dealt values of the Corrected fields, in the order of drawing. Raises PlanError if names differ."""
    if isinstance(fields, Corrected):
        if not isinstance(dealt, torch.Tensor):
            raise PlanError(f"no value was dealt for the field{name}")
        yield dealt
    elif isinstance(fields, Mapping):
        declared = [key for key, field in fields.items() if not _is_random(field)]
        given = list(dealt) if isinstance(dealt, Mapping) else []
        if set(given) != set(declared):
            raise PlanError(f"declared{name}: {', '.join(declared)}; dealt: {', '.join(given) or 'nothing'}")
        for key in declared:
            yield from _in_order(fields[key], dealt[key], f"{name} {key}")
    else:
        if not isinstance(dealt, Sequence) or len(dealt) != len(fields):
            raise PlanError(f"declared{name}: {len(fields)} of them; another number was dealt")
        for field, value in zip(fields, dealt, strict=True):
            yield from _in_order(field, value, name)


def _fitting(correlation: Correlation, largest_bytes: int) -> Fields:
    """The fields, before anything of them is drawn. Raises TooLarge."""
    fields = correlation.fields()
    check_bytes(8 * sum(math.prod(field.shape) for field in leaves(fields)), largest_bytes)
    return fields


def check_bytes(needed: int, largest_bytes: int) -> None:
    """Raises TooLarge."""
    if needed > largest_bytes:
        raise TooLarge(
            f"a step of this computation takes {needed / 2**30:,.1f} GiB, {largest_bytes / 2**30:,.1f} are allowed: "
            "shorten the prompt, choose another cache policy, or raise max_step_gib in all three settings"
        )


def held_by(party: int, field: Field) -> bool:
    """Whether that party alone has it."""
    return isinstance(field, Random) and field.holder == party


def _draw(field: Field, party: int, stream: Stream) -> torch.Tensor | None:
    if held_by(1 - party, field):
        return None
    return stream.elements(field.shape, field.bits)


def _total(field: Random, shares: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """The random value of which these are the parties' shares; None: the other party holds it alone."""
    total, *others = [share for share in shares if share is not None]
    for other in others:
        total = total ^ other if field.xor else total + other
    return reduce_bits(total, field.bits)


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

    def correction_at(self, number: int, correlation: Correlation) -> bytes:
        """What party 1 must be sent for the session's correlation of that number, wherever this dealer stands. What the
        correlation uses must be there. Raises TooLarge."""
        self._number = number
        return self.correction(correlation)

    def correction(self, correlation: Correlation) -> bytes:
        """What party 1 must be sent for the next correlation of the session. Raises TooLarge."""
        fields = _fitting(correlation, self._largest_bytes)
        streams = [Stream(key, self._number) for key in self._keys]
        masks: list[tuple[Corrected, torch.Tensor]] = []

        def draw(field: Field) -> torch.Tensor | None:
            if isinstance(field, Random):
                return _total(field, [_draw(field, party, streams[party]) for party in (0, 1)])
            masks.append((field, streams[0].elements(field.shape, field.bits)))
            return None

        randoms = tensors(fields, draw)
        values = _in_order(fields, correlation.deal(randoms, self))
        data = [
            pack(value ^ mask if field.xor else value - mask, field.bits)
            for value, (field, mask) in zip(values, masks, strict=True)
        ]
        self._number += 1
        return b"".join(data)

    def own_stream(self) -> Stream:
        """Randomness of the dealer's own for the correlation being made (noise that neither party may know)."""
        return Stream(self._own_key, self._number)

    def keep(self, handle: int, mask: torch.Tensor) -> None:
        """Later correlations will refer to this mask."""
        self._kept[handle] = mask

    def kept(self, handle: int) -> torch.Tensor:
        """The mask kept under `handle`."""
        return self._kept[handle]

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

    def take(self, correlation: Correlation) -> Tensors:
        """This party's shares of the fields, by name. Raises TooLarge."""
        fields = _fitting(correlation, self._largest_bytes)
        stream = Stream(self._key, self._number)
        self._number += 1
        return tensors(fields, lambda field: self._share(field, stream))

    def _share(self, field: Field, stream: Stream) -> torch.Tensor | None:
        if self._party == 0 or isinstance(field, Random):
            return _draw(field, self._party, stream)
        nbytes = field.nbytes()
        self.correction_bytes += nbytes
        return unpack(self._read(nbytes), field.shape, field.bits)


def corrections(dealer: Dealer, plan: Iterable[Correlation]) -> Iterator[bytes]:
    """Party 1's corrections for a plan, one correlation at a time, so that no more than one is in memory."""
    for correlation in plan:
        data = dealer.correction(correlation)
        if data:
            yield data
