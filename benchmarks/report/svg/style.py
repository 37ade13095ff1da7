"""How series are told apart: by colour, dashes and marker."""

from __future__ import annotations

from dataclasses import dataclass

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C7A00")
"""Okabe and Ito's colours, which colour-blind people can tell apart; their yellow darkened, to be seen on white."""
DASHES = ("", "5 3", "1.5 2.5")


@dataclass(frozen=True)
class Style:
    """Colour, dashes and marker of a series: three ways to tell it apart."""

    colour: str
    dash: str
    marker: int

    @staticmethod
    def of(index: int) -> Style:
        turn = index // len(OKABE_ITO)
        return Style(OKABE_ITO[index % len(OKABE_ITO)], DASHES[turn % len(DASHES)], index + turn)


def marker(a: float, b: float, style: Style, size: float = 3.6) -> str:
    """A circle, square, diamond or triangle."""
    kind, s = style.marker % 4, size
    if kind == 0:
        return f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{s}" fill="{style.colour}"/>'
    corners = {
        1: [(-s, -s), (s, -s), (s, s), (-s, s)],
        2: [(0, -s * 1.3), (s * 1.3, 0), (0, s * 1.3), (-s * 1.3, 0)],
        3: [(0, -s * 1.2), (s * 1.2, s), (-s * 1.2, s)],
    }[kind]
    points = " ".join(f"{a + dx:.1f},{b + dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{points}" fill="{style.colour}"/>'
