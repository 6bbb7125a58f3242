"""The worked examples of docs/extending.md, docs/guidance.md and docs/from_flax.md, run from the page."""

import pkgutil
import re
from pathlib import Path

import jax
import pytest

from ddpm_jax import guidance, weightings
from ddpm_jax.samplers.catalogue import CATALOGUE
from ddpm_jax.samplers.table import Row, Table
from ddpm_jax.trained import TextEncoder, Trained
from tests.helpers import few

DOCS = Path(__file__).parent.parent / "docs"


def sections(page):
    return dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))


SECTIONS = sections((DOCS / "extending.md").read_text())
FROM_FLAX = sections((DOCS / "from_flax.md").read_text())


@pytest.mark.parametrize("name", SECTIONS)
def test_what_the_page_shows_runs(name, monkeypatch):
    """Each section is complete by itself; what it registers is taken back."""
    for table in (weightings.BY_NAME, CATALOGUE):
        for entry in ("capped", "straight"):
            monkeypatch.setitem(table, entry, None)
    run(SECTIONS[name], f"docs/extending.md: {name}")


def run(text, name, **given):
    """The blocks of Python in a page or a section of one, where these names are given."""
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks, f"{name} shows nothing that runs"
    with jax.numpy_dtype_promotion("standard"):  # as users have it
        for block in blocks:
            exec(compile(block, name, "exec"), {"__name__": "a page", **given})


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


@pytest.mark.parametrize("name", few(FROM_FLAX, *(name for name in FROM_FLAX if "Pipeline" not in name)))
def test_what_replaces_a_flax_class_runs(name, request):
    """FOLDER is a folder of Stable Diffusion, where there is one."""
    given = {}
    if "FOLDER)" in re.sub("#.*", "", FROM_FLAX[name]):
        pytest.importorskip("tokenizers")
        given = {"FOLDER": request.getfixturevalue("shared_golden") / "uses" / "sd_tiny"}
    run(FROM_FLAX[name], f"docs/from_flax.md: {name}", **given)


def names_here(section):
    """The names with a dot in the column "here" of a section's tables."""
    rows = re.findall(r"^\| .* \| (.*) \|$", section, re.MULTILINE)
    return {name for cell in rows for name in re.findall(r"`([a-z_]+(?:\.\w+)+)", cell)}


@pytest.mark.parametrize("name", FROM_FLAX)
def test_all_that_replaces_a_flax_class_exists(name):
    """Modules of ddpm_jax and what is in them; fields of what a page's snippets call trained and table."""
    found = {each for each in names_here(FROM_FLAX[name]) if not each.startswith(("jax.", "vae.", "config.", "nnx."))}
    assert found or name == "FlaxAutoencoderKL", name
    held = {"trained": Trained, "trained.text": TextEncoder, "table": Table, "table.rows": Row}
    for each in found:
        owner, _, last = each.rpartition(".")
        if owner in held:
            fields = getattr(held[owner], "__dataclass_fields__", ()) or held[owner]._fields
            assert last in fields or hasattr(held[owner], last), each
        else:
            pkgutil.resolve_name(f"ddpm_jax.{each}")
