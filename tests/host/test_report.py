"""Reports in one HTML file."""

import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from ddpm_jax.host import html


class Texts(HTMLParser):
    """The texts of a page by tag; a tag that is not closed where it must be fails."""

    VOID = ("meta", "link", "path", "use")

    def __init__(self, page):
        super().__init__()
        self.open, self.texts = [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1] if self.open else None, data.strip()))


def test_a_page_holds_what_it_was_given():
    figure = Figure()
    figure.subplots().plot([1, 2], [3, 4], label="a")
    parts = [
        html.heading("a < b"),
        html.paragraph("x & y"),
        html.code("pip install 'x<2'\npytest"),
        html.table(["name", "value"], [["<b>", 1.5], ["c", None]]),
        html.plot(figure),
    ]
    page = html.page("T <1>", parts)
    texts = Texts(page).texts
    for tag, text in (
        ("title", "T <1>"), ("h1", "T <1>"), ("h2", "a < b"), ("p", "x & y"), ("pre", "pip install 'x<2'\npytest"),
        ("th", "name"), ("th", "value"), ("td", "<b>"), ("td", "1.5"), ("td", "c"), ("td", "None"),
    ):  # fmt: skip
        assert (tag, text) in texts
    assert page.count("<svg") == page.count("</svg>") == 1 and "<?xml" not in page
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)""", page) and "@import" not in page  # needs nothing else


def test_a_row_of_another_length():
    with pytest.raises(ValueError, match=r"a row must have 2 cells like the header, got 1: \['a'\]"):
        html.table(["x", "y"], [["a"]])
