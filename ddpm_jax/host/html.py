"""One-page HTML reports: headings, paragraphs, tables and plots in one file that needs nothing else."""

import html
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #8884; text-align: left; vertical-align: top; }
svg { max-width: 100%; height: auto; }
pre { background: #8882; padding: .7rem; overflow-x: auto; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A document of these parts, each HTML as the functions below return it."""
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    body = "\n".join([f"<h1>{html.escape(title)}</h1>", *parts])
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n'


def heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def code(text: str) -> str:
    """Commands, versions, a machine's description."""
    return f"<pre>{html.escape(text)}</pre>"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows as long as the header.

    Raises:
      ValueError: a row of another length.
    """

    def row(cells: Sequence[object], tag: str) -> str:
        if len(cells) != len(header):
            raise ValueError(f"a row must have {len(header)} cells like the header, got {len(cells)}: {list(cells)}")
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return "\n".join(["<table>", row(header, "th"), *(row(cells, "td") for cells in rows), "</table>"])


def plot(figure: "Figure") -> str:
    """A figure as SVG inside the page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
