"""Planning once what a model does again and again: a backend's method, for all arguments of the same shapes.

Layers differ in their weights' names and their masks' numbers, steps in how much is cached. So a method's plan is kept
under its arguments without these, and repeated with the names and numbers of another call. What is not known to be
alike is planned in full: a method without `planned_once`, arguments or results of another kind, a correlation that
refers to a mask that was neither given nor made, and everything while somebody asks for the public constants.
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
from mpcache.protocols.linear import MaskedWeight
from mpcache.protocols.plan import PlanSession
from mpcache.protocols.session import Session
from mpcache.protocols.shares import Secret


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
        handles, weights = list(names.handles), list(names.weights)
        known = session.passages.get(key)
        if known is not None:
            passage, first_result = known
            repeated: R = _renamed(first_result, session.repeat(passage, handles, weights))
            return repeated
        result: R
        result, passage = session.recorded(lambda: method(self, *args, **options), handles, weights)
        try:
            handle = passage.handle_for(handles, passage.first)
            passage.renamed(handle, weights)
            session.passages.keep(key, passage, _renamed(result, handle))
        except (KeyError, _Unlike):  # of a mask or weight from elsewhere, or a result of a kind that is not known
            pass
        return result

    return planned


_PUBLIC = frozenset({int, float, bool, str, type(None), Fraction, torch.Size})
_JOINED = (KeyValues, Stage)


class _Unlike(Exception):
    """A value that cannot be told to be like another."""


@dataclass
class _Names:
    """Numbers of masks and names of weights, in the order in which arguments name them, each with its place."""

    handles: dict[int, int] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)


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
    if kind in (tuple, list):
        return kind, *[_described(item, names) for item in value]
    if kind is dict:
        return kind, *[(name, _described(item, names)) for name, item in value.items()]
    if kind in _JOINED:
        return kind, *[_described(getattr(value, f.name), names) for f in fields(value)]
    if kind is torch.Tensor and value.device.type == "cpu":
        return kind, value.shape, value.dtype, value.contiguous().numpy().tobytes()
    raise _Unlike


def _renamed(value: Any, handle: Callable[[int], int]) -> Any:
    """The same result, with the numbers of its masks changed. Raises _Unlike."""
    kind = type(value)
    if kind is Secret or kind in _PUBLIC:
        return value
    if kind is Masked:
        return Masked(value.opened, value.mask, handle(value.handle), value.bits)
    if kind in (tuple, list):
        return kind(_renamed(item, handle) for item in value)
    if kind in _JOINED:
        return kind(*[_renamed(getattr(value, f.name), handle) for f in fields(value)])
    raise _Unlike
