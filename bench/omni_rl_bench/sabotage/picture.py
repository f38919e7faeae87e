"""Draws the confusion matrix."""

from collections.abc import Mapping
from html import escape

CELL, LEFT, TOP = 46, 190, 150


def confusion_svg(table: Mapping[str, Mapping[str, int]], title: str) -> str:
    """Return an SVG: a row for each right cause, a column for each answer; what is right is green, what is wrong
    red."""
    rows = list(table)
    columns = sorted({answer for row in table.values() for answer in row}, key=lambda a: (a not in rows, a))
    width, height = LEFT + CELL * len(columns) + 20, TOP + CELL * len(rows) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12" role="img" aria-label="{escape(title)}">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="10" y="20" font-weight="bold">{escape(title)}</text>',
    ]
    for number, column in enumerate(columns):
        x = LEFT + CELL * number + CELL // 2
        words = escape(column.replace("_", " "))
        parts.append(f'<text x="{x}" y="{TOP - 8}" transform="rotate(-50 {x} {TOP - 8})">{words}</text>')
    for line, cause in enumerate(rows):
        y = TOP + CELL * line
        parts.append(
            f'<text x="{LEFT - 8}" y="{y + CELL // 2 + 4}" text-anchor="end">{escape(cause.replace("_", " "))}</text>'
        )
        whole = sum(table[cause].values())
        for number, column in enumerate(columns):
            count = table[cause].get(column, 0)
            parts.append(_cell(LEFT + CELL * number, y, count, count / whole, right=column in (cause, "rolled back")))
    return "\n".join([*parts, "</svg>", ""])


def _cell(x: int, y: int, count: int, share: float, *, right: bool) -> str:
    colour = "#fff" if not count else ("#2e7d32" if right else "#c62828")
    box = (
        f'<rect x="{x}" y="{y}" width="{CELL - 2}" height="{CELL - 2}" fill="{colour}" '
        f'fill-opacity="{0.25 + 0.55 * share:.2f}" stroke="#ccc"/>'
    )
    if not count:
        return box
    return box + f'<text x="{x + CELL // 2 - 1}" y="{y + CELL // 2 + 4}" text-anchor="middle">{count}</text>'
