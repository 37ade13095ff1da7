"""CrypTen's options without YAML files, overridden in a thread or task instead of in the process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from mpcache.protocols.crypten.provider import PROVIDER
from mpcache.protocols.errors import ConfigError
from mpcache.protocols.ring import FRACTION_BITS


class _Options:
    """Named values that cannot be assigned: CrypTen's options are shared by every session of the process."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update({k: _Options(v) if isinstance(v, dict) else v for k, v in values.items()})

    def __setattr__(self, name: str, value: object) -> None:
        raise ConfigError(f"CrypTen's option {name} is set for a block of code: `with cfg.temp_override({{...}}):`")

    def replaced(self, path: Sequence[str], value: Any) -> _Options:
        """A copy with one value changed."""
        name, *rest = path
        changed = _Options({})
        changed.__dict__.update(self.__dict__)
        changed.__dict__[name] = getattr(self, name).replaced(rest, value) if rest else value
        return changed


_DEFAULTS = _Options(
    # configs/default.yaml of CrypTen 0.4.1, which its wheel installs outside the package; only the provider differs
    {
        "communicator": {"verbose": False},
        "debug": {"debug_mode": False, "validation_mode": False},
        "encoder": {"precision_bits": FRACTION_BITS},
        "functions": {
            "max_method": "log_reduction",
            "exp_iterations": 8,
            "reciprocal_method": "NR",
            "reciprocal_nr_iters": 10,
            "reciprocal_log_iters": 1,
            "reciprocal_all_pos": False,
            "reciprocal_initial": None,
            "sqrt_nr_iters": 3,
            "sqrt_nr_initial": None,
            "sigmoid_tanh_method": "reciprocal",
            "sigmoid_tanh_terms": 32,
            "log_iterations": 2,
            "log_exp_iterations": 8,
            "log_order": 8,
            "trig_iterations": 10,
            "erf_iterations": 8,
        },
        "mpc": {"active_security": False, "provider": PROVIDER, "protocol": "beaver"},
    }
)


class ContextConfig:
    """CrypTen's `cfg`, with overrides that hold in the current thread or task alone."""

    def __init__(self) -> None:
        self.__dict__["_options"] = ContextVar("crypten_options", default=_DEFAULTS)

    def __getattr__(self, name: str) -> Any:
        value: Any = self.__dict__["_options"].get()
        for part in name.split("."):
            value = getattr(value, part)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        setattr(_DEFAULTS, name, value)  # refuses, and says what to do

    __getitem__ = __getattr__
    __setitem__ = __setattr__

    @contextmanager
    def temp_override(self, override: Mapping[str, Any]) -> Iterator[None]:
        """Options by their dotted names, changed inside the `with` block."""
        options = self.__dict__["_options"]
        changed: _Options = options.get()
        for name, value in override.items():
            changed = changed.replaced(name.split("."), value)
        token = options.set(changed)
        try:
            yield
        finally:
            options.reset(token)
