"""The page that a plot is drawn on: its size, colours of grid and text, and the SVG element around the shapes."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 420, 52, 14, 12, 40
GRID, TEXT = "#dddddd", "#333333"


def svg(shapes: Sequence[str], height: int) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" xmlns="http://www.w3.org/2000/svg" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{TEXT}">{"".join(shapes)}</svg>'
    )
