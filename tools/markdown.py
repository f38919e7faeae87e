"""Pieces of the pages in Markdown that are written from the code."""

import textwrap

GENERATED = "<!-- Written by tools/reference.py; do not edit. -->\n\n"


def row(*cells: str) -> str:
    """Return a row of a table."""
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def wrapped(text: str) -> list[str]:
    """Return paragraphs of lines that fit the repository's width, each followed by an empty line."""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
    return [line for part in paragraphs for line in (*textwrap.wrap(part, 120, break_on_hyphens=False), "")]
