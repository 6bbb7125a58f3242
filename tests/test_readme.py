"""The README's tour runs, and what it shows exists."""

import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_tour_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["pictures"].shape == (4, 8, 8, 1) and names["loss"].shape == (4,)
    assert "X <- " in capsys.readouterr().out
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 22


def test_what_it_names_exists():
    root = Path(__file__).parent.parent
    for path in re.findall(r"\]\((\w[\w/.]+)\)|`((?:tests|experiments)/[\w/.]+)`", README):
        assert (root / (path[0] or path[1])).exists(), path
    assert "@@" not in README
