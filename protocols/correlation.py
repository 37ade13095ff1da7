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

import itertools
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch

from mpcache.protocols.drawing import Streams, element_bytes, elements, packed, reduced
from mpcache.protocols.errors import PlanError, TooLarge
from mpcache.protocols.growing import Growing
from mpcache.protocols.randomness import Stream, derive_key
from mpcache.protocols.ring import packed_bytes, stored, unpack

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

    @property
    def early(self) -> bool:
        """Whether it is worth making before its turn, at once with others that are alike."""
        return False

    def several(self, count: int) -> Correlation | None:
        """One correlation for `count` of these, which are dealt at once: all shapes have another dimension in front.
        None: each is dealt alone, in the order of the plan."""
        return None

    def renamed(self, handle: Callable[[int], int], weight: Callable[[str], str]) -> Correlation:
        """The same of other kept masks and of other weights; itself if it refers to none."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """To be pickled without what follows from the fields."""
        return {name: value for name, value in vars(self).items() if name != "layout"}

    @cached_property
    def layout(self) -> Layout:
        """Where its fields lie in the streams and in what is sent."""
        return Layout(self.fields())

    def uses(self) -> Uses:
        """What `deal` asks the dealer for."""
        return _NOTHING

    def correction_bytes(self) -> int:
        """Bytes that the dealer sends to party 1."""
        return self.layout.correction_bytes


@dataclass(frozen=True)
class Placewise(Correlation):
    """A correlation of which every place is dealt alike, from its random values alone."""

    shape: Shape

    def several(self, count: int) -> Correlation:
        return replace(self, shape=(count, *self.shape))


DEALER = 2
"""Holder of what the dealer draws from a key of its own: noise that neither party may know."""
HOLDERS = (0, 1, DEALER)


class Layout:
    """The fields of a correlation in order, and where in its streams each is drawn.

    starts: for each field its first byte in each holder's stream, None where that holder draws none of it.
    drawn_bytes: of each holder's stream, None where it draws nothing. elements: of all fields.
    """

    def __init__(self, fields: Fields) -> None:
        self.fields, self.leaves = fields, tuple(leaves(fields))
        self.counts = [math.prod(field.shape) for field in self.leaves]
        self.elements = sum(self.counts)
        self.correction_bytes = sum(field.nbytes() for field in self.leaves if isinstance(field, Corrected))
        self.drawn_bytes: list[int | None] = [None, None, None]
        self.starts: list[list[int | None]] = []
        for field, count in zip(self.leaves, self.counts, strict=True):
            self.starts.append([self._place(field, holder, count) for holder in HOLDERS])

    def _place(self, field: Field, holder: int, count: int) -> int | None:
        if not draws(holder, field):
            return None
        start = self.drawn_bytes[holder] or 0
        self.drawn_bytes[holder] = start + count * element_bytes(field.bits)
        return start


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


def _fitting(correlation: Correlation, largest_bytes: int) -> Layout:
    """Its layout, before anything of it is drawn. Raises TooLarge."""
    layout = correlation.layout
    check_bytes(8 * layout.elements, largest_bytes)
    return layout


def check_bytes(needed: int, largest_bytes: int) -> None:
    """Raises TooLarge."""
    if needed > largest_bytes:
        raise TooLarge(
            f"a step of this computation takes {needed / 2**30:,.1f} GiB, {largest_bytes / 2**30:,.1f} are allowed: "
            "shorten the prompt, choose another cache policy, or raise max_step_gib in all three settings"
        )


def draws(holder: int, field: Field) -> bool:
    """Whether a party, or the dealer by itself, draws a share of it, or all of it."""
    if isinstance(field, Corrected):
        return holder == 0
    return holder in (0, 1) if field.holder is None else holder == field.holder


def has(party: int, field: Field) -> bool:
    """Whether that party has a share of it, or all of it."""
    return isinstance(field, Corrected) or draws(party, field)


def _kind(correlation: Correlation, layout: Layout) -> Hashable:
    """Equal for correlations that the dealer may make at once."""
    return (type(correlation), layout.leaves) if correlation.several(1) is None else correlation


class _Drawn:
    """What each holder draws for several correlations of one layout, a row each; None where a holder draws nothing."""

    def __init__(self, layout: Layout, drawn: Sequence[np.ndarray | None], front: Shape = (-1,)) -> None:
        self._layout, self._drawn, self._front = layout, drawn, front

    def one(self, row: int) -> _Drawn:
        """Of one of the correlations, whose values have its own shapes."""
        return _Drawn(self._layout, [None if x is None else x[row : row + 1] for x in self._drawn], ())

    def randoms(self) -> Tensors:
        """The random values, put together from their shares; with a dimension for several in front."""
        values = map(self._value, range(len(self._layout.leaves)))
        return tensors(self._layout.fields, lambda _: next(values))

    def _value(self, i: int) -> torch.Tensor | None:
        field = self._layout.leaves[i]
        if isinstance(field, Corrected):
            return None
        shares = [share for holder in HOLDERS if (share := self._share(i, holder)) is not None]
        total = shares[0] if len(shares) == 1 else shares[0] ^ shares[1] if field.xor else shares[0] + shares[1]
        value = reduced(total, field.bits)
        value = value.view(np.int64) if value.itemsize == 8 else value.astype(np.int64)
        return torch.from_numpy(value).reshape(*self._front, *field.shape)

    def _share(self, i: int, holder: int) -> np.ndarray | None:
        """(several, elements)"""
        drawn, start = self._drawn[holder], self._layout.starts[i][holder]
        if drawn is None or start is None:
            return None
        return elements(drawn, start, self._layout.counts[i], self._layout.leaves[i].bits)

    def corrections(self, dealt: Dealt) -> np.ndarray:
        """What party 1 must be sent, (several, bytes): the values less party 0's shares."""
        values, parts = iter(list(_in_order(self._layout.fields, dealt))), []
        for i, field in enumerate(self._layout.leaves):
            if isinstance(field, Corrected):
                mask, value = self._share(i, 0), next(values).to(torch.int64).numpy()
                assert mask is not None, "party 0 draws its share of everything that is corrected"
                value = value.reshape(mask.shape).astype(mask.dtype)
                parts.append(packed(value ^ mask if field.xor else value - mask, field.bits))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, 1)


class WeightMasks(dict[str, tuple[int, torch.Tensor]]):
    """(width, mask) of an owner's weights, by name, under one key. Dealers of several threads may share one."""

    def __init__(self, key: bytes | None) -> None:
        super().__init__()
        self.key, self.drawing = key, threading.Lock()

    def __repr__(self) -> str:
        return f"{len(self)} masks of weights"


class Dealer:
    """Makes the corrections of one session, in the order of the plan.

    It holds both parties' seeds of this session (each sent by that party, over TLS) and, if the plan has weights,
    the owner's weight key. It never receives a share of a prompt, weight or activation, so it learns public
    parameters alone.
    """

    def __init__(
        self,
        seeds: tuple[bytes, bytes],
        weight_key: bytes | None = None,
        largest_bytes: int = LARGEST_BYTES,
        weight_masks: WeightMasks | None = None,
    ) -> None:
        """weight_masks: of this key, where other sessions use them as well."""
        self._largest_bytes = largest_bytes
        own_key = derive_key(seeds[0] + seeds[1], "dealer")
        self._streams = [*(Streams(derive_key(seed, "correlations")) for seed in seeds), Streams(own_key)]
        self._weight_key = weight_key
        self._kept: dict[int, torch.Tensor] = {}
        self._weight_masks = WeightMasks(weight_key) if weight_masks is None else weight_masks
        self._growing: dict[int, Growing] = {}
        self._number = 0

    @property
    def weight_masks(self) -> WeightMasks:
        """For another session of the same key."""
        return self._weight_masks

    def correction(self, correlation: Correlation) -> bytes:
        """What party 1 must be sent for the next correlation of the session. Raises TooLarge."""
        (data,) = self.corrections([(self._number, correlation)])
        self._number += 1
        return data

    def corrections(self, numbered: Sequence[tuple[int, Correlation]]) -> list[bytes]:
        """What party 1 must be sent for each of these correlations, given with its number in the session.

        The bytes are those of one by one, at less cost: what is alike is drawn at once, and dealt at once where the
        order does not matter. All of it is in memory together. Raises TooLarge.
        """
        alike: dict[Hashable, list[int]] = {}
        for i, (_, correlation) in enumerate(numbered):
            alike.setdefault(_kind(correlation, _fitting(correlation, self._largest_bytes)), []).append(i)
        out, in_turn = [b""] * len(numbered), dict[int, _Drawn]()
        for places in alike.values():
            correlation = numbered[places[0]][1]
            drawn = self._draw(correlation.layout, [numbered[i][0] for i in places])
            if (several := correlation.several(len(places))) is None:
                in_turn.update((i, drawn.one(row)) for row, i in enumerate(places))
            else:
                made = drawn.corrections(several.deal(drawn.randoms(), self))
                for i, row in zip(places, made, strict=True):
                    out[i] = row.tobytes()
        for i in sorted(in_turn):
            correlation, drawn = numbered[i][1], in_turn.pop(i)
            dealt = correlation.deal(drawn.randoms(), self)
            if correlation.layout.correction_bytes or dealt:
                out[i] = drawn.corrections(dealt).tobytes()
        return out

    def _draw(self, layout: Layout, numbers: Sequence[int]) -> _Drawn:
        sizes = zip(self._streams, layout.drawn_bytes, strict=True)
        return _Drawn(layout, [None if nbytes is None else streams.begin(numbers, nbytes) for streams, nbytes in sizes])

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
        with self._weight_masks.drawing:
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
        self._party, self._read = party, read
        self._stream = Stream(derive_key(seed, "correlations"))
        self._number = 0
        self.correction_bytes = 0

    def take(self, correlation: Correlation) -> Tensors:
        """This party's shares of the fields, by name. Raises TooLarge."""
        fields = _fitting(correlation, self._largest_bytes).fields
        stream = self._stream = self._stream.next(self._number)
        self._number += 1
        return tensors(fields, lambda field: self._share(field, stream))

    def _share(self, field: Field, stream: Stream) -> torch.Tensor | None:
        if draws(self._party, field):
            return stream.elements(field.shape, field.bits)
        if isinstance(field, Random):
            return None
        nbytes = field.nbytes()
        self.correction_bytes += nbytes
        return unpack(self._read(nbytes), field.shape, field.bits)


FIRST, MOST = 1 << 8, 1 << 14
"""Correlations that are planned ahead: twice as many each time, as somebody waits for the first."""
EARLY_BYTES = 32 << 20
"""Corrections that are made before their turn, and wait for it."""
FIRST_BYTES, TOGETHER_BYTES = 1 << 18, 16 << 20
"""Bytes of the ring elements of correlations that are made together."""


def corrections(dealer: Dealer, plan: Iterable[Correlation], first: int = 0) -> Iterator[bytes]:
    """Party 1's corrections for a plan, a correlation each, in order; made ahead of who asks for them, as the bounds
    above say. first: the number of the plan's first correlation. Raises TooLarge."""
    numbered, horizon, limit = enumerate(plan, first), FIRST, FIRST_BYTES
    while coming := _coming(numbered, horizon):
        early = [item for item in coming if item[1].early]
        made = dict(zip([number for number, _ in early], dealer.corrections(early), strict=True))
        for together in _together(coming, limit):
            later = [item for item in together if item[0] not in made]
            made.update(zip([number for number, _ in later], dealer.corrections(later), strict=True))
            yield from filter(None, [made.pop(number) for number, _ in together])
            limit = min(2 * limit, TOGETHER_BYTES)
        horizon = min(2 * horizon, MOST)


Numbered: TypeAlias = tuple[int, Correlation]


def _coming(plan: Iterator[Numbered], most: int) -> list[Numbered]:
    """The next ones, up to `most`, or until what is early among them is EARLY_BYTES."""
    out, nbytes = list[Numbered](), 0
    for item in itertools.islice(plan, most):
        out.append(item)
        nbytes += item[1].correction_bytes() if item[1].early else 0
        if nbytes >= EARLY_BYTES:
            break
    return out


def _together(numbered: Sequence[Numbered], limit: int) -> Iterator[Sequence[Numbered]]:
    """Parts of which all but the last take `limit` bytes."""
    start, nbytes = 0, 0
    for end, (_, correlation) in enumerate(numbered, 1):
        nbytes += 0 if correlation.early else 8 * correlation.layout.elements
        if nbytes >= limit or end == len(numbered):
            yield numbered[start:end]
            start, nbytes = end, 0
