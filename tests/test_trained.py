"""What a network is told beside x_t and t."""

import pytest
from flax import linen as nn

from tests.helpers import trained_of


class Own(nn.Module):
    """A network that somebody has added, with the signature of docs/extending.md."""

    def __call__(self, x_t, t, *, train=False, dropout_keys=None, **conditioning):
        return x_t


class OfTexts(nn.Module):
    """One that cannot do without what it is told."""

    def __call__(self, x_t, t, *, tokens, mask, low_res=None, train=False):
        return x_t


def test_a_network_is_asked_for_what_its_signature_needs():
    of = lambda model: trained_of(model=model, params={}, image_shape=(8, 8, 1))
    of(Own()).check_conditions("the command line")
    with pytest.raises(ValueError, match="needs tokens= and mask=, which nll does not give: in Python"):
        of(OfTexts()).check_conditions("nll")
