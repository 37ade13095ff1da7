"""Planning: the same protocols on shape-only tensors, with a counting transport.

A plan session runs any protocol on torch's `meta` device. It yields, without touching a value, every correlation in
order and every message's size: what the dealer works from, what `mpcache plan` prices, and what a real run is held
against, byte for byte.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from mpcache.protocols.causal import Causal
from mpcache.protocols.correlation import Correlation, Tensors, has, tensors
from mpcache.protocols.public import Constants, Factor
from mpcache.protocols.ring import FRACTION_BITS
from mpcache.protocols.session import Cost, Opening, Part, Session

T = TypeVar("T")


@dataclass
class Plan:
    """Correlations in order, messages as (bytes from party 0, bytes from party 1), and their sums."""

    correlations: list[Correlation] = field(default_factory=list)
    messages: list[tuple[int, int]] = field(default_factory=list)

    def cost(self) -> Cost:
        """The cost as party 0 counts it."""
        return Cost(
            sum(m[0] for m in self.messages),
            sum(m[1] for m in self.messages),
            sum(c.correction_bytes() for c in self.correlations),
            len(self.messages),
        )


@dataclass(frozen=True)
class Passage:
    """A stretch of a plan, to be repeated with other masks and weights.

    handles, weights: those that it was given; it made `made` masks of its own, numbered from `first` on. parts: its
    cost by part.
    """

    handles: tuple[int, ...]
    weights: tuple[str, ...]
    first: int
    made: int
    plan: Plan
    parts: dict[str, Cost]

    def handle_for(self, handles: Sequence[int], first: int) -> Callable[[int], int]:
        """From its masks' numbers to those of a repetition. Raises KeyError for one that is neither given nor made."""
        given = dict(zip(self.handles, handles, strict=True))
        own = {self.first + i: first + i for i in range(self.made)}
        return {**own, **given}.__getitem__

    def renamed(self, handle: Callable[[int], int], weights: Sequence[str]) -> list[Correlation]:
        """Its correlations, of other masks and weights. Raises KeyError as above."""
        weight = dict(zip(self.weights, weights, strict=True)).__getitem__
        return [correlation.renamed(handle, weight) for correlation in self.plan.correlations]


class Passages:
    """Passages by what they are the plan of: up to `most`; those used least lately are forgotten."""

    def __init__(self, most: int = 1 << 10) -> None:
        self._most = most
        self._kept: OrderedDict[Hashable, tuple[Passage, Any]] = OrderedDict()

    def get(self, key: Hashable) -> tuple[Passage, Any] | None:
        """The passage, and what came out of it."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def keep(self, key: Hashable, passage: Passage, result: Any) -> None:
        self._kept[key] = passage, result
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)


_OPERATORS = "add sub mul truediv and xor or lshift rshift pow".split()
_COMPARISONS = "eq ne lt le gt ge neg invert".split()
_METHODS = "add sub mul div remainder double long to round clamp neg abs".split()
_ELEMENTWISE = (
    {getattr(torch.Tensor, f"__{name}__") for name in _OPERATORS + _COMPARISONS}
    | {getattr(torch.Tensor, f"__r{name}__") for name in _OPERATORS}
    | {getattr(torch.Tensor, name) for name in _METHODS}
    | {getattr(torch, name) for name in "add sub mul div exp where zeros_like ones_like full_like".split()}
)
_INDEXED = {torch.Tensor.gather, torch.gather}


def _of_cat(tensors: Sequence[torch.Tensor], dim: int = 0) -> Sequence[int] | None:
    shapes = [list(x.shape) for x in tensors]
    total = sum(shape.pop(dim) for shape in shapes)
    if any(shape != shapes[0] for shape in shapes):
        return None
    shapes[0].insert(dim % (len(shapes[0]) + 1), total)
    return shapes[0]


def _of_stack(tensors: Sequence[torch.Tensor], dim: int = 0) -> Sequence[int] | None:
    if any(x.shape != tensors[0].shape for x in tensors):
        return None
    shape = list(tensors[0].shape)
    shape.insert(dim % (len(shape) + 1), len(tensors))
    return shape


def _of_matmul(a: torch.Tensor, b: torch.Tensor) -> Sequence[int] | None:
    """Of two matrices, or batches of them."""
    if min(a.dim(), b.dim()) < 2 or a.shape[-1] != b.shape[-2]:
        return None
    return (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])


def _of_sum(x: torch.Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Sequence[int] | None:
    if not x.dim():
        return None
    summed = {d % x.dim() for d in ([dim] if isinstance(dim, int) else dim or range(x.dim()))}
    return [1 if d in summed else n for d, n in enumerate(x.shape) if keepdim or d not in summed]


_SHAPES: dict[Any, Callable[..., Sequence[int] | None]] = {
    torch.cat: _of_cat,
    torch.stack: _of_stack,
    torch.matmul: _of_matmul,
    torch.Tensor.matmul: _of_matmul,
    torch.Tensor.__matmul__: _of_matmul,
    torch.sum: _of_sum,
    torch.Tensor.sum: _of_sum,
    torch.mv: lambda matrix, vector: matrix.shape[:1],
    torch.Tensor.take: lambda table, index: index.shape,
    **{getattr(torch.Tensor, name): lambda x, *_, **__: x.shape for name in ("cumsum", "index_add", "index_copy")},
}
"""Shapes of results; None where torch shall say what is wrong, or what else it is."""


@lru_cache(1 << 14)
def _shaped(shape: Sequence[int]) -> torch.Tensor:
    """A tensor of that shape, always the same one: there is nothing in it to change."""
    return torch.empty(shape, dtype=torch.int64, device="meta")


class ShapeArithmetic(TorchFunctionMode):
    """Arithmetic of `meta` tensors by their shapes alone: 20 times faster than torch, whose own shapes of products
    would also import its compiler, for a second.

    What comes out has the integers' type, whatever went in: nothing in a plan depends on types.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = kwargs or {}
        named = any(isinstance(x, torch.Tensor) for x in options.values())
        if (func in _ELEMENTWISE or func in _INDEXED) and not named:
            tensors = [x for x in args if isinstance(x, torch.Tensor)]
            if any(x.is_meta for x in tensors):
                shape = tensors[-1].shape if func in _INDEXED else _broadcast([x.shape for x in tensors])
                return _shaped(shape)
        elif func in _SHAPES and args and options.keys() <= {"dim", "keepdim"}:
            first = args[0] if isinstance(args[0], torch.Tensor) else args[0][0]
            known = _SHAPES[func](*args, **options) if first.is_meta else None
            if known is not None:
                return _shaped(tuple(known))
        return func(*args, **options)


def _broadcast(shapes: list[torch.Size]) -> Sequence[int]:
    first, *others = shapes
    return first if all(shape == first for shape in others) else np.broadcast_shapes(*shapes)


def plan_of(protocol: Callable[..., Awaitable[Any]], *shapes: Sequence[int]) -> Plan:
    """The plan of `protocol(session, *shares)` for shares of these shapes."""
    session = PlanSession()
    with ShapeArithmetic():
        session.run(protocol(session, *(_shaped(tuple(shape)) for shape in shapes)))
    return session.next_part()


@lru_cache(1 << 10)
def _of_eight(
    protocol: Callable[..., Awaitable[torch.Tensor]], size: int, public: tuple[Hashable, ...], round_bytes: int
) -> tuple[list[tuple[int, int]], int]:
    """Messages and correction bytes of the protocol at eight places."""
    session = PlanSession()
    session.round_bytes = round_bytes
    session.run(protocol(session, _shaped((8, size)), *public))
    return session.plan.messages, session.cost.correction_bytes


@dataclass(frozen=True)
class _Traffic:
    """A round by its bytes alone."""

    sent: int
    received: int

    def __await__(self) -> Generator[list[Opening], None, None]:
        yield [
            Opening(torch.Size((self.sent,)), 8, None, receiver=1),
            Opening(torch.Size((self.received,)), 8, None, receiver=0),
        ]


class PlanSession(Session):
    """A session without a peer: runs on `meta` tensors and writes the plan. Faster within `ShapeArithmetic`.

    check: called at every correlation; raises if the plan is not wanted any more.
    constants: notes the public values that shares are multiplied by; None: nobody asks.
    passages: what was planned before, by this session or others of the same `listed`, and can be repeated
    (backends/planned.py). listed: write the plan; without, costs alone are added up.
    """

    device = torch.device("meta")
    planning = True
    constants: Constants | None = None

    def __init__(
        self, check: Callable[[], None] = lambda: None, passages: Passages | None = None, listed: bool = True
    ) -> None:
        self._check, self._listed = check, listed
        self.passages = passages or Passages()
        self.party = 0
        self.cost = Cost()
        self.parts = {}
        self._handles = 0
        self.plan = Plan()

    def take(self, correlation: Correlation) -> Tensors:
        self._check()
        if self._listed:
            self.plan.correlations.append(correlation)
        self.cost.correction_bytes += correlation.correction_bytes()
        return tensors(correlation.layout.fields, lambda field: _shaped(field.shape) if has(0, field) else None)

    def public(self, x: Factor, fraction_bits: int = FRACTION_BITS) -> torch.Tensor:
        if self.constants is not None:
            self.constants.add(x, fraction_bits)
        return _shaped(x.shape if isinstance(x, torch.Tensor) else ())

    def seen(self, visible: torch.Tensor | Causal) -> tuple[torch.Tensor, torch.Tensor]:
        count = visible.count() if isinstance(visible, Causal) else int(visible.sum())
        return torch.empty(visible.shape, dtype=torch.bool, device="meta"), _shaped((count,))

    async def placewise(
        self, protocol: Callable[..., Awaitable[torch.Tensor]], x: torch.Tensor, *public: Hashable
    ) -> torch.Tensor:
        """Where the plan is not listed: that of eight places, as often as there are eight. Messages and corrections
        are whole bytes for eight elements of any width, so that costs are proportional."""
        places = x.shape[:-1].numel()
        if self._listed or places % 8:
            return await protocol(self, x, *public)
        messages, correction_bytes = _of_eight(protocol, x.shape[-1], public, self.round_bytes)
        for sent, received in messages:
            await _Traffic(sent * places // 8, received * places // 8)
        self.cost.correction_bytes += correction_bytes * places // 8
        return _shaped(x.shape[:-1])

    def _round(self, requests: list[Opening]) -> None:
        sent = sum(r.nbytes() for r in requests if r.receiver != 0)
        received = sum(r.nbytes() for r in requests if r.receiver != 1)
        if self._listed:
            self.plan.messages.append((sent, received))
        self._count(sent, received)
        for r in requests:
            if r.receiver != 1:
                r.result = _shaped(r.shape)

    def next_part(self) -> Plan:
        """The plan since the last call; forgets it, so that a long plan needs little memory."""
        part, self.plan = self.plan, Plan()
        return part

    # ------------------------------------------------------------ what repeats

    def recorded(self, work: Callable[[], T], handles: Sequence[int], weights: Sequence[str]) -> tuple[T, Passage]:
        """What `work`, which is given these masks and weights, gives, and its passage."""
        correlations, messages = len(self.plan.correlations), len(self.plan.messages)
        first, before = self._handles + 1, {name: part.cost.copy() for name, part in self.parts.items()}
        result = work()
        plan = Plan(self.plan.correlations[correlations:], self.plan.messages[messages:])
        parts = {name: part.cost - before.get(name, Cost()) for name, part in self.parts.items()}
        made = self._handles + 1 - first
        return result, Passage(
            tuple(handles), tuple(weights), first, made, plan, {n: c for n, c in parts.items() if c != Cost()}
        )

    def repeat(self, passage: Passage, handles: Sequence[int], weights: Sequence[str]) -> Callable[[int], int]:
        """Plan a passage once more, with these masks and weights; gives its masks' numbers here."""
        self._check()
        handle = passage.handle_for(handles, self._handles + 1)
        self._handles += passage.made
        self.plan.correlations += passage.renamed(handle, weights)
        self.plan.messages += passage.plan.messages
        for name, cost in passage.parts.items():
            self.cost += cost
            self.parts.setdefault(name, Part()).cost += cost
        return handle
