"""The initializations that the scripts compare, above all the control."""

from math import sqrt
from pathlib import Path

import pytest
import torch
from test_method import CLOSE, diagonal_means, has_variance, products

from mimetic_min import inits, vit


def layers_after(init):
    """Three layers, initialized by a function of inits.py, always from the same random numbers."""
    torch.manual_seed(0)
    layers = [vit.Attention(dim=48, heads=3) for _ in range(3)]
    init(layers, (0.7, 0.7, 0.1, -0.4))
    return layers


# ---------------------------------------------------------------------------------------------
# The control


def assert_columns_moved(shuffled):
    before = torch.cat([products(layer) for layer in layers_after(inits.mimetic)])
    after = torch.cat([products(layer) for layer in layers_after(shuffled)])
    # orders[i, j]: the old column of product i that is nearest to its new column j
    orders = torch.cdist(after.mT, before.mT).argmin(2)
    for old, new, order in zip(before, after, orders):
        assert order.unique().numel() == 48, "a column appears twice"
        assert torch.allclose(new, old[:, order], atol=CLOSE), "a column has new entries"
        # A random order leaves one column in place, on average.
        assert (order == torch.arange(48)).sum() < 12, "many columns stayed in place"
    assert len(orders.unique(dim=0)) == len(orders), "two products have the same order"


def test_shuffled_has_the_columns_of_mimetic_in_another_order():
    """Each head and each layer has an order of its own. Every product keeps its entries, singular
    values, norm and rank.
    """
    assert_columns_moved(inits.shuffled)


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("(*attention.W_K.mT, attention.W_proj)", "(*attention.W_K, attention.W_proj)"),
        ("torch.randperm(factor.shape[1])", "torch.arange(factor.shape[1]).roll(9)"),
        ("torch.randperm(factor.shape[1])", "torch.arange(factor.shape[1])"),
        ("factor[:, order]", "factor[:, order.sort().values // 2 * 2]"),
    ],
    ids=["columns of W_K", "one order for all", "not shuffled", "a column twice"],
)
def test_a_mistake_in_the_control_is_noticed(right, wrong):
    module = {"__name__": "copy_of_inits"}
    # If inits.py no longer has the right line, nothing is replaced, and this test fails.
    exec(Path(inits.__file__).read_text().replace(right, wrong), module)
    with pytest.raises(AssertionError):
        assert_columns_moved(module["shuffled"])


# ---------------------------------------------------------------------------------------------
# All of them


@pytest.mark.parametrize(
    "name, changed, qk, vp",
    [
        ("off", "W_V W_proj", 0, [0, 0, 0]),
        ("default", "", 0, [0, 0, 0]),
        ("xavier", "W_Q W_K W_V W_proj", 0, [0, 0, 0]),
        ("shuffled", "W_Q W_K W_V W_proj", 0, [0, 0, 0]),
        # Query-key asks for 0.7, and the cut to the head dimension leaves 0.4.
        ("mimetic", "W_Q W_K W_V W_proj", 0.4, [-0.4, -0.4, -0.4]),
        ("simple", "W_Q W_K W_V W_proj", 1, [-1, -1, -1]),
        ("query-key", "W_Q W_K", 0.4, [0, 0, 0]),
        ("value-projection", "W_V W_proj", 0, [-0.4, -0.4, -0.4]),
        ("language", "W_Q W_K W_V W_proj", -0.4, [-0.4, 0, 0.4]),
    ],
)
def test_an_init_sets_the_weights_and_diagonals_that_its_help_names(name, changed, qk, vp):
    """The mean of the diagonal of each head's W_Q W_K^T, and of W_V W_proj in three layers"""
    for layer, new, mean in zip(layers_after(inits.INITS[name]), layers_after(inits.default), vp):
        for weight, W in layer.named_parameters():
            assert torch.equal(W, new.get_parameter(weight)) == (weight not in changed.split())
        found = diagonal_means(products(layer)).tolist()
        assert found == pytest.approx([qk, qk, qk, mean], abs=0.15)


def test_xavier_is_uniform_with_variance_1_over_dim():
    for W in layers_after(inits.xavier)[0].parameters():
        assert has_variance(W, 1 / 48)
        assert W.abs().max() <= sqrt(3 / 48)
