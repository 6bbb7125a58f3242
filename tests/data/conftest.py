import pytest

from ddpm_jax.data import records


@pytest.fixture(params=["in memory", "lazily"])
def bound(request, monkeypatch):
    """A set is read in both ways."""
    if request.param == "lazily":
        monkeypatch.setattr(records, "MEMORY_BOUND", 0)
