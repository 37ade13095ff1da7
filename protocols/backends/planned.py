"""Planning once what a model does again and again: a backend's method, for all arguments of the same shapes.

Layers differ in their weights' names and their masks' numbers, steps in how much is cached. So a method's plan is kept
under its arguments without these, and repeated with the names and numbers of another call. What is not known to be
alike is planned in full: a method without `planned_once`, arguments or results of another kind, a correlation that
refers to a mask that was neither given nor made, and everything while somebody asks for the public constants.

A method may make what is pending among its arguments (pending.py): a repetition leaves it made, too.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, fields
from fractions import Fraction
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch

from mpcache.protocols.backends.interface import KeyValues, Stage
from mpcache.protocols.beaver import Masked
from mpcache.protocols.causal import Causal
from mpcache.protocols.linear import MaskedWeight
from mpcache.protocols.pending import Normed, Pending, Product
from mpcache.protocols.plan import PlanSession
from mpcache.protocols.session import Session
from mpcache.protocols.shares import Secret
from mpcache.protocols.stripes import Stripes


class _OnSession(Protocol):
    @property
    def session(self) -> Session: ...


B = TypeVar("B", bound=_OnSession)
P = ParamSpec("P")
R = TypeVar("R")


def planned_once(method: Callable[Concatenate[B, P], R]) -> Callable[Concatenate[B, P], R]:
    """A method of a backend whose plan follows from its arguments' shapes and public values and from the session's
    `round_bytes`: planned once for all calls that are alike. Does nothing where values are computed."""

    @wraps(method)
    def planned(self: B, /, *args: P.args, **options: P.kwargs) -> R:
        session = self.session
        if not isinstance(session, PlanSession) or session.constants is not None:
            return method(self, *args, **options)
        names = _Names()
        try:
            key = (method.__name__, session.round_bytes, _described(args, names), _described(options, names))
        except _Unlike:
            return method(self, *args, **options)
        handles, weights, pending = list(names.handles), list(names.weights), names.pending
        stages: list[Stage[Masked]] = _among((*args, *options.values()), Stage)
        known = session.passages.get(key)
        if known is not None:
            passage, (first_result, first_masked, first_made) = known
            handle = session.repeat(passage, handles, weights)
            for stage, masked in zip(stages, first_masked, strict=True):
                stage.masked[:] = _renamed(masked, handle, session)
            for value, share in zip(pending, first_made, strict=True):
                if share is not None:
                    value.is_made(share)
            repeated: R = _renamed(first_result, handle, session)
            return repeated
        result: R
        result, passage = session.recorded(lambda: method(self, *args, **options), handles, weights)
        made = [value.share if value.made else None for value in pending]
        try:
            if any(out is given for out in _among(result, Pending) for given in pending):
                raise _Unlike
            handle = passage.handle_for(handles, passage.first)
            passage.renamed(handle, weights)
            kept = _renamed((result, [stage.masked for stage in stages]), handle, _NO_SESSION)
            session.passages.keep(key, passage, (*kept, made))
        except (KeyError, _Unlike):  # of a mask or weight from elsewhere, or a result of a kind that is not known
            pass
        return result

    return planned


_PUBLIC = frozenset({int, float, bool, str, type(None), Fraction, torch.Size, Causal, Stripes})
_JOINED = (KeyValues, Stage)
_NO_SESSION = PlanSession()
"""Of results that are kept: sessions may share them, and they outlive their own."""


class _Unlike(Exception):
    """A value that cannot be told to be like another."""


@dataclass
class _Names:
    """Numbers of masks and names of weights, in the order in which arguments name them, each with its place; what is
    pending among them, and what that was selected from."""

    handles: dict[int, int] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    pending: list[Pending] = field(default_factory=list)


def _among(value: Any, kind: type[Any]) -> list[Any]:
    """The values of a kind among a value's parts. Of stages: a method may mask one at its first use."""
    if isinstance(value, kind):
        return [value]
    return [part for item in value for part in _among(item, kind)] if type(value) in (tuple, list) else []


def _described(value: Any, names: _Names) -> Hashable:
    """What a plan may depend on; equal ones are alike. Raises _Unlike."""
    kind = type(value)
    if kind in _PUBLIC:
        return kind, value
    if kind is Secret:
        return kind, value.share.shape
    if kind is Masked:
        return kind, value.shape, value.bits, names.handles.setdefault(value.handle, len(names.handles))
    if kind is MaskedWeight:
        place = names.weights.setdefault(value.name, len(names.weights))
        return kind, value.tensor.shape, value.bits, place
    if isinstance(value, Pending):
        return _pending(value, names)
    if kind in (tuple, list):
        return kind, *[_described(item, names) for item in value]
    if kind is dict:
        return kind, *[(name, _described(item, names)) for name, item in value.items()]
    if kind in _JOINED:
        return kind, *[_described(getattr(value, f.name), names) for f in fields(value)]
    if kind is torch.Tensor and value.device.type == "cpu":
        return kind, value.shape, value.dtype, value.contiguous().numpy().tobytes()
    raise _Unlike


def _pending(value: Pending, names: _Names) -> Hashable:
    for place, known in enumerate(names.pending):
        if known is value:
            return Pending, place
    names.pending.append(value)
    facts = type(value), value.shape, value.made
    if type(value) is Product:
        return *facts, value.bits, value.shift, value.out_bits, _described(value.whole, names)
    if type(value) is Normed:
        return *facts, value.epsilon
    raise _Unlike


def _renamed(value: Any, handle: Callable[[int], int], session: Session) -> Any:
    """The same result for that session, with the numbers of its masks changed. Raises _Unlike."""
    kind = type(value)
    if kind is Secret or kind in _PUBLIC:
        return value
    if kind is Masked:
        return Masked(value.opened, value.mask, handle(value.handle), value.bits)
    if kind in (tuple, list):
        return kind(_renamed(item, handle, session) for item in value)
    if kind in _JOINED:
        return kind(*[_renamed(getattr(value, f.name), handle, session) for f in fields(value)])
    if kind is Product and not value.made and value.whole is None:
        return value.like(value.untruncated, session)
    if kind is Normed and not value.made:
        return Normed(value.untruncated, session, value.epsilon)
    raise _Unlike
