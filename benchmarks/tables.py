"""Tables that read well in a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def print_table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """Print a table."""
    cells = [list(columns), *(list(line) for line in lines)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    rule = ["-" * width for width in widths]
    for line in (cells[0], rule, *cells[1:]):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |", flush=True)
