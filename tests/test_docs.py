"""The worked examples of docs/extending.md and docs/guidance.md, run from the page."""

import re
from pathlib import Path

import jax
import pytest

from ddpm_jax import guidance, weightings
from ddpm_jax.samplers.catalogue import CATALOGUE

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "extending.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("name", SECTIONS)
def test_what_the_page_shows_runs(name, monkeypatch):
    """Each section is complete by itself; what it registers is taken back."""
    for table in (weightings.BY_NAME, CATALOGUE):
        for entry in ("capped", "straight"):
            monkeypatch.setitem(table, entry, None)
    run(SECTIONS[name], f"docs/extending.md: {name}")


def run(text, name):
    """The blocks of Python in a page or a section of one."""
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks, f"{name} shows nothing that runs"
    with jax.numpy_dtype_promotion("standard"):  # as users have it
        for block in blocks:
            exec(compile(block, name, "exec"), {"__name__": "a page"})


def test_guidance_prints_the_table_on_its_page(capsys):
    """What a scale samples, up to its last digit."""
    page = (DOCS / "guidance.md").read_text()
    run(page, "docs/guidance.md")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    said = {(line[0], line[1]): (float(line[3]), float(line[5])) for line in lines}
    assert len(said) == 9
    rows = re.findall(r"^\| (\d) \|" + r" ([\d.]+), ([\d.]+) \|" * 3 + "$", page, re.MULTILINE)
    assert len(rows) == 3
    for scale, *cells in rows:
        for k, name in enumerate(("ddim", "ddpm", "density")):
            mean, variance = said[scale, name]
            assert mean == pytest.approx(float(cells[2 * k]), abs=0.0101)
            assert variance == pytest.approx(float(cells[2 * k + 1]), abs=0.00101)


def test_every_method_of_guidance_is_on_its_page():
    page = (DOCS / "guidance.md").read_text()
    rest = {"Answers", "Method", "classifier_free"}  # what methods are made of, and the function of two networks
    assert [name for name in guidance.__all__ if name not in rest and name not in page] == []
