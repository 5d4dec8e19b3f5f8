"""Pieces of a page in HTML: tables, figures, pictures inside of the file. Text is escaped here."""

import base64
import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #1f2937;
       background: #f3f4f6; margin: 0; }
main { max-width: 1180px; margin: 0 auto; padding: 24px; }
h1 { font-size: 26px; margin: 8px 0 2px; }
h2 { font-size: 18px; margin: 0 0 12px; }
h3 { font-size: 15px; margin: 20px 0 6px; color: #374151; }
p.note { color: #6b7280; margin: 6px 0; }
section { background: #fff; border: 1px solid #e5e7eb; border-radius: 8px;
          padding: 20px 24px; margin: 18px 0; }
img { width: 100%; height: auto; display: block; margin: 6px 0 14px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 6px 0 14px; }
th, td { padding: 4px 14px 4px 0; text-align: right; border-bottom: 1px solid #e5e7eb; }
th { color: #6b7280; font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
td:first-child { white-space: nowrap; }
td.text:last-child { overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; gap: 10px 36px; margin: 8px 0 20px; }
.tile b { display: block; font-size: 26px; line-height: 1.2; color: #1f5fa8; }
.tile span { color: #6b7280; font-size: 13px; }
pre { font-size: 12px; line-height: 1.4; white-space: pre-wrap; background: #f9fafb;
      padding: 12px; border-radius: 6px; }
summary { cursor: pointer; color: #1f5fa8; }
"""


LABELS = {
    "nds": "NDS",
    "ap": "AP",
    "mean_ap": "mAP",
    "map_iou": "IoU",
    "map_mean_iou": "map mIoU",
    "num_ground_truth": "objects",
}
"""Names of fields as the field writes them; others lose their underscores."""


def whole(title: str, sections: Iterable[str]) -> str:
    """The page; sections that are empty are left out."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escaped(title)}</title><style>{STYLE}</style></head><body><main>\n"
        + "\n".join(part for part in sections if part)
        + "\n</main></body></html>\n"
    )


def section(title: str, *contents: str) -> str:
    """A box with a title."""
    return f"<section><h2>{escaped(title)}</h2>{''.join(contents)}</section>"


def subsection(title: str, *contents: str) -> str:
    """A smaller title; nothing where there is no content."""
    content = "".join(contents)
    return f"<h3>{escaped(title)}</h3>{content}" if content else ""


def note(text: str) -> str:
    """A line in grey."""
    return f"<p class=note>{escaped(text)}</p>"


def folded(title: str, text: str) -> str:
    """A box that opens when its title is clicked."""
    return (
        f"<section><details><summary>{escaped(title)}</summary><pre>{escaped(text)}</pre>"
        "</details></section>"
    )


def tiles(figures: dict[str, Any]) -> str:
    """The most important figures by name, large; those that are None are left out."""
    shown = "".join(
        f"<div class=tile><b>{cell(value)}</b><span>{escaped(label(name))}</span></div>"
        for name, value in figures.items()
        if value is not None
    )
    return f"<div class=tiles>{shown}</div>" if shown else ""


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; a column of words is set to the left, one of numbers to the right."""
    is_text = [any(isinstance(row[index], str) for row in rows) for index in range(len(columns))]

    def line(tag: str, cells: Iterable[str]) -> str:
        kinds = [" class=text" if left else "" for left in is_text]
        pairs = zip(kinds, cells, strict=True)
        inside = "".join(f"<{tag}{kind}>{content}</{tag}>" for kind, content in pairs)
        return f"<tr>{inside}</tr>"

    head = line("th", (escaped(label(column)) for column in columns))
    return f"<table>{head}{''.join(line('td', map(cell, row)) for row in rows)}</table>"


def facts(values: dict[str, Any]) -> str:
    """A table of names and values; those that are None or empty are left out."""
    rows = "".join(
        f"<tr><td>{escaped(name)}</td><td class=text>{escaped(value)}</td></tr>"
        for name, value in values.items()
        if value not in (None, "")
    )
    return f"<table>{rows}</table>"


def picture(content: bytes, kind: str, description: str) -> str:
    """A picture inside of the page.

    Args:
        content: The file.
        kind: Its format: png or jpeg.
        description: For those who do not see it.
    """
    coded = base64.b64encode(content).decode()
    return f'<img alt="{escaped(description)}" src="data:image/{kind};base64,{coded}">'


def cell(value: Any) -> str:
    """A value as people read it: three decimals, a dash for what is not known."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "&ndash;"
    if isinstance(value, float):
        usual = value == 0 or 1e-3 <= abs(value) < 1e5
        return f"{value:.3f}" if usual else f"{value:.3g}"
    return escaped(value)


def label(name: str) -> str:
    """Name of a field in words."""
    return LABELS.get(name, name.replace("_", " "))


def escaped(value: Any) -> str:
    """Text in which no character means anything to HTML."""
    return html.escape(str(value))
