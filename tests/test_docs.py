"""The worked examples of docs/extending.md, run from the page."""

import re
from pathlib import Path

import jax
import pytest

from ddpm_jax import weightings
from ddpm_jax.samplers.catalogue import CATALOGUE

PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("name", SECTIONS)
def test_what_the_page_shows_runs(name, monkeypatch):
    """Each section is complete by itself; what it registers is taken back."""
    for table in (weightings.BY_NAME, CATALOGUE):
        for entry in ("capped", "straight"):
            monkeypatch.setitem(table, entry, None)
    blocks = re.findall(r"^```python\n(.*?)^```", SECTIONS[name], re.MULTILINE | re.DOTALL)
    assert blocks, f"{name} shows nothing that runs"
    with jax.numpy_dtype_promotion("standard"):  # as users have it
        for block in blocks:
            exec(compile(block, f"docs/extending.md: {name}", "exec"), {"__name__": "extending"})
