"""Weights of mixes: never negative, summing to 1, the heaviest symbol the one drawn; sparsemax against bisection."""

import pytest
import torch

import oracles_methods as naive
from freerun.methods.two_pass import HARD, MIXES, Mix, sparsemax

SOFT = [mix for mix in MIXES if mix not in HARD]


class TestWeights:
    logits = torch.randn(300, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3 - 5

    @pytest.mark.parametrize("mix", SOFT)
    def test_are_weights(self, mix):
        draw = Mix(mix).draw
        noise = draw.noise(3, torch.arange(300), torch.arange(300), 11)
        for temperature in (0.3, 1.0, 4.0):
            found = Mix(mix, temperature, 4 if mix == "top_k" else 5).weights(self.logits, noise)
            assert bool((found >= 0).all())
            assert torch.allclose(found.sum(-1), torch.ones(300, dtype=torch.float64), rtol=1e-12)
            chosen = draw.choose(self.logits, noise)
            assert torch.equal(found.argmax(-1), chosen)
        if mix == "top_k":
            assert bool(((found > 0).sum(-1) == 4).all())

    def test_sparsemax_is_the_projection(self):
        wanted = torch.stack([naive.bisected_sparsemax(row) for row in self.logits])
        assert torch.allclose(sparsemax(self.logits), wanted, atol=1e-12)
        large = self.logits * 1e6
        assert torch.allclose(sparsemax(large).sum(-1), torch.ones(300, dtype=torch.float64))
        tied = torch.zeros(1, 4, dtype=torch.float64)
        assert torch.equal(sparsemax(tied), torch.full((1, 4), 0.25, dtype=torch.float64))
        masked = torch.tensor([[0.3, -torch.inf, 0.1]], dtype=torch.float64)
        assert torch.allclose(sparsemax(masked), torch.tensor([[0.6, 0.0, 0.4]], dtype=torch.float64))

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_sparsemax_lets_nan_through_to_the_loss(self, bad):
        found = sparsemax(torch.tensor([[bad, 1.0, 2.0], [0.0, 5.0, 0.0]]))
        assert bool(found[0].isnan().any())
        assert found[1].tolist() == [0.0, 1.0, 0.0]

    def test_sparsemax_has_the_gradient_of_finite_differences(self):
        rows = self.logits[:20].clone().requires_grad_()
        assert torch.autograd.gradcheck(sparsemax, rows)
