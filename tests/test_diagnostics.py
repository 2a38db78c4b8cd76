import math

import pytest
import torch
from torch.testing import assert_close

from seqvae.diagnostics import active_units, marginal_kl
from seqvae.gaussian import Gaussian, gaussian_kl, standard_normal_like


def posteriors(n: int, coefficient: float, variance: float) -> tuple[Gaussian, torch.Tensor]:
    """q(z | x) = N(coefficient x, variance) for x ~ N(0, 1), and one sample each: (n, 1, 1)."""
    torch.manual_seed(0)
    mu = coefficient * torch.randn(n, 1, 1, dtype=torch.float64)
    q = Gaussian(mu, torch.full_like(mu, math.log(variance)))
    return q, q.sample(torch.randn_like(mu))


def test_the_marginal_kl_of_a_gaussian_channel_has_the_known_value_and_is_not_the_rate():
    q, z = posteriors(6_000, 0.9, 0.05)  # the aggregate is N(0, .86): rate 1.4279, information 1.4225, rest .0054
    found = marginal_kl(q, standard_normal_like(q), z)
    assert_close(found.rate.item(), 1.4279, atol=0.05, rtol=0)
    assert_close(found.mutual_information.item(), 1.4225, atol=0.05, rtol=0)
    assert_close(found.marginal.item(), 0.0054, atol=0.004, rtol=0)
    assert_close(found.rate, found.mutual_information + found.marginal, atol=1e-9, rtol=0)
    assert found.cap == math.log(6_000) and not found.unreliable.any()


@pytest.mark.parametrize("n", [10, 100, 1000])
def test_the_information_never_exceeds_log_n_and_is_flagged_when_it_is_near(n):
    torch.manual_seed(0)
    mu = torch.randn(n, 2, 12)  # twelve latents that tell every video apart
    q = Gaussian(mu, torch.full_like(mu, -6.0))
    p = standard_normal_like(q)
    found = marginal_kl(q, p, q.sample(torch.randn_like(mu)))
    assert (found.mutual_information <= math.log(n) + 1e-9).all() and found.unreliable.all()
    assert (found.marginal >= found.rate - found.cap - 1e-9).all()
    assert_close(found.rate, gaussian_kl(q, p).mean(0).double(), atol=15 / math.sqrt(n), rtol=0)


def test_a_learned_prior_that_equals_the_posterior_leaves_no_marginal_kl():
    q, z = posteriors(500, 2.0, 0.1)
    found = marginal_kl(q, q, z)
    assert_close(found.marginal, torch.zeros(1, dtype=torch.float64), atol=1e-9, rtol=0)
    assert_close(found.rate, torch.zeros(1, dtype=torch.float64))
    assert found.mutual_information > 1


def test_chunks_change_no_number(monkeypatch):
    q, z = posteriors(50, 0.9, 0.05)
    whole = marginal_kl(q, standard_normal_like(q), z)
    monkeypatch.setattr("seqvae.diagnostics.ROWS", 7)
    assert_close(marginal_kl(q, standard_normal_like(q), z), whole)


def test_a_latent_is_active_when_its_posterior_mean_moves_beside_the_priors():
    torch.manual_seed(0)
    prior_mean = torch.randn(200, 3, 4)
    moving = torch.stack([0.3 * torch.randn(200, 3), torch.zeros(200, 3), 0.05 * torch.randn(200, 3)], dim=-1)
    mu = prior_mean.clone()
    mu[..., :3] += moving
    p = Gaussian(prior_mean, torch.zeros_like(prior_mean))
    assert active_units(Gaussian(mu, torch.zeros_like(mu)), p).tolist() == [True, False, False, False]
    narrow = Gaussian(prior_mean, torch.full_like(prior_mean, -4.0))  # in units of this prior the third moves too
    assert active_units(Gaussian(mu, torch.zeros_like(mu)), narrow).tolist() == [True, False, True, False]
    fixed = Gaussian(mu, torch.zeros_like(mu))
    assert active_units(fixed, standard_normal_like(fixed)).all()


def test_a_learned_prior_whose_components_never_meet_is_called_unreliable():
    torch.manual_seed(0)
    mu = torch.randn(200, 1, 4, dtype=torch.float64)
    q = Gaussian(mu, torch.full_like(mu, 2.0))  # wide: little information, far below its cap
    far_apart = Gaussian(20 * mu, torch.full_like(mu, -6.0))
    z = q.sample(torch.randn_like(mu))
    found = marginal_kl(q, far_apart, z)
    assert found.mutual_information < found.cap - 1 and found.unreliable.all()
    assert not marginal_kl(q, Gaussian(mu, torch.full_like(mu, 2.0)), z).unreliable.any()
