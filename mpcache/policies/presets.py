"""Settings that have a name: a policy as a kind of use wants it, or as a paper has it. Settings may follow the name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """policy: the one that it sets, spelled with its settings. summary: what for."""

    policy: str
    summary: str


PRESETS = {
    "mpcache-later": Preset(
        "mpcache:keep_ratio=1", "questions that come after the prompt, one after another: nothing is evicted"
    ),
    "mpcache-paper": Preset(
        "mpcache:keep_ratio=0.5:most_kept=1024:clusters=32+16:representative=extremes:unshared_layers=0:share_heads=false"
        ":picks=0:only_if_cheaper=false:evict_if_cheap=false",
        "as in arXiv 2501.06807, whatever it costs",
    ),
}
