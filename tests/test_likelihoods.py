import math

import pytest
import torch
from torch.testing import assert_close

from seqvae.gaussian import Gaussian, gaussian_kl, standard_normal_like
from seqvae.likelihoods import LIKELIHOODS, LikelihoodConfig, build_likelihood
from seqvae.likelihoods.gaussian import MIN_LOG_SIGMA, OptimalSigma, gaussian_log_prob


class IdentityMean(OptimalSigma):
    """For examples whose pixels are given as errors: the mean is the parameter itself."""

    def mean(self, params):
        return params


def _errors() -> torch.Tensor:
    return torch.tensor([0.3, -0.1, 0.2, 0.0, -0.4, 0.1], dtype=torch.float64).reshape(1, 1, 2, 3)  # one frame


def _frames(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_log_prob_is_the_density_of_a_normal_in_training_and_evaluation(name):
    likelihood = build_likelihood(name, 3)
    params, frames = torch.randn(4, 5, 3, 8, 8, dtype=torch.float64), _frames(4, 5, 3, 8, 8)
    mean = params.sigmoid()
    assert_close(likelihood.mean(params), mean)
    likelihood.log_prob(params, frames)
    likelihood.after_step()
    likelihood.eval()
    sigma = likelihood.variance().sqrt().double()
    expected = torch.distributions.Normal(mean, sigma).log_prob(frames).sum((-3, -2, -1))
    assert_close(likelihood.log_prob(params, frames), expected)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_one_pixel_integrates_to_one(name):
    likelihood = build_likelihood(name, 1).eval()
    x = torch.linspace(-12, 13, 20_001, dtype=torch.float64)
    log_px = likelihood.log_prob(torch.full((20_001, 1, 1, 1), 0.7, dtype=torch.float64), x.reshape(-1, 1, 1, 1))
    assert_close(torch.trapezoid(log_px.exp(), x), torch.tensor(1.0, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_samples_have_the_mean_and_the_sigma(name):
    likelihood = build_likelihood(name, 1).eval()
    params = torch.full((1, 300, 300), 0.4)
    sample = likelihood.sample(params, torch.Generator().manual_seed(0))
    assert_close(sample.mean(), likelihood.mean(params).mean(), atol=0.02, rtol=0)
    assert_close(sample.std(), likelihood.variance().sqrt().float(), atol=0.02, rtol=0)


def test_optimal_sigma_has_the_known_values_and_is_the_best_on_a_grid():
    likelihood, e = IdentityMean(1), _errors()
    log_px = likelihood.log_prob(torch.zeros_like(e), e)
    assert_close(-log_px, torch.tensor([-0.3751961530], dtype=torch.float64), atol=1e-9, rtol=0)
    likelihood.after_step()
    likelihood.eval()
    assert_close(likelihood.variance().item(), 0.0516666667, atol=1e-9, rtol=0)
    assert_close(likelihood.variance().sqrt().item(), 0.2273030283, atol=1e-9, rtol=0)
    grid = torch.linspace(0.05, 1, 9501, dtype=torch.float64)
    on_grid = gaussian_log_prob(e.square().sum().expand(9501), 6, grid**2)
    assert on_grid.max() <= log_px.item() and abs(grid[on_grid.argmax()].item() - 0.2273) < 1e-3


def test_optimal_sigmas_gradient_is_that_of_half_d_log_mse_and_needs_no_gradient_through_sigma():
    e = _errors()
    mean = torch.zeros_like(e, requires_grad=True)
    (ours,) = torch.autograd.grad(-IdentityMean(1).log_prob(mean, e).sum(), mean)
    mse = (mean - e).square().mean()
    (log_mse,) = torch.autograd.grad(3 * mse.log(), mean)
    through_sigma = -gaussian_log_prob((mean - e).square().sum(), 6, (mean - e).square().mean())
    (full,) = torch.autograd.grad(through_sigma, mean)
    assert_close(ours, log_mse, atol=1e-14, rtol=1e-14)
    assert_close(ours, full, atol=1e-14, rtol=1e-14)


def test_the_variance_has_a_hard_floor():
    likelihood, frames = build_likelihood("optimal-sigma", 1), torch.full((2, 1, 4, 4), 0.5)
    floor = math.exp(2 * MIN_LOG_SIGMA)
    expected = -0.5 * 16 * math.log(2 * math.pi * floor)
    assert_close(likelihood.log_prob(torch.zeros(2, 1, 4, 4), frames)[0].item(), expected)
    likelihood.after_step()
    assert_close(likelihood.variance().item(), floor)


def test_masked_frames_change_neither_sigma_nor_the_other_frames():
    frames, params = _frames(2, 3, 1, 4, 4), torch.zeros(2, 3, 1, 4, 4, dtype=torch.float64)
    mask = torch.tensor([1.0, 0.0, 1.0])
    values = []
    for filler in (0.0, 1.0):
        likelihood = build_likelihood("optimal-sigma", 1)
        changed = frames.clone()
        changed[:, 1] = filler
        log_px = likelihood.log_prob(params, changed, mask)
        likelihood.after_step()
        values.append((log_px[:, [0, 2]], likelihood.variance()))
    assert_close(values[0], values[1], rtol=0, atol=0)


@pytest.mark.parametrize("scale", [2.0, 255.0])
def test_scaling_the_pixels_shifts_nll_by_d_log_scale_and_sigma_by_scale(scale):
    e = _errors()
    plain, scaled = IdentityMean(1), IdentityMean(1)
    nll = -plain.log_prob(torch.zeros_like(e), e), -scaled.log_prob(torch.zeros_like(e), scale * e)
    for likelihood in (plain, scaled):
        likelihood.after_step()
    assert_close(nll[1] - nll[0], torch.full_like(nll[0], 6 * math.log(scale)))
    assert_close(scaled.variance().sqrt(), scale * plain.variance().sqrt())


def test_the_stored_sigma_is_a_bias_corrected_average_of_mse_and_evaluation_leaves_it():
    likelihood, e = IdentityMean(1), _errors()
    expected = 0.0
    for i in range(1, 6):
        likelihood.log_prob(torch.zeros_like(e), i * e)
        likelihood.after_step()
        expected = likelihood.DECAY * expected + (1 - likelihood.DECAY) * i**2 * e.square().mean().item()
        assert_close(likelihood.variance().item(), expected / (1 - likelihood.DECAY**i))
    before = {name: value.clone() for name, value in likelihood.state_dict().items()}
    likelihood.eval()
    first = likelihood.log_prob(torch.zeros_like(e), 100 * e)
    assert_close(first, gaussian_log_prob(1e4 * e.square().sum()[None], 6, likelihood.variance()))
    assert_close(likelihood.state_dict(), before, rtol=0, atol=0)


def test_a_bfloat16_picture_is_scored_the_same_inside_and_outside_autocast():
    frames = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    params = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    for name in LIKELIHOODS:
        likelihood = build_likelihood(name, 3)
        outside = likelihood.log_prob(params, frames)
        with torch.autocast("cpu", torch.bfloat16):
            inside = likelihood.log_prob(params, frames)
        exact = likelihood.log_prob(params.double(), frames.double())
        assert_close(inside, outside, atol=0.01, rtol=0)
        assert_close(outside, exact, atol=0.01, rtol=0)


def test_sigma_vae_finds_the_maximum_likelihood_solution_of_probabilistic_pca():
    """Data of covariance eigenvalues (4, 1, .25 x 4), two latents: sigma^2 .25, -log p 6.434190, KL 2.079442.

    Expectations are exact: sigma points in place of samples, all terms being quadratic in x and the noise.
    """
    torch.manual_seed(0)
    eigenvalues = torch.tensor([4.0, 1.0, 0.25, 0.25, 0.25, 0.25], dtype=torch.float64)
    x = torch.cat([s * math.sqrt(6) * torch.diag(eigenvalues.sqrt()) for s in (1, -1)])  # (12, 6), this covariance
    eps = torch.cat([s * math.sqrt(2) * torch.eye(2, dtype=torch.float64) for s in (1, -1)])  # (4, 2), covariance 1
    decode, encode = (torch.randn(shape, dtype=torch.float64).mul(0.3).requires_grad_() for shape in ((2, 6), (6, 2)))
    logvar = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    likelihood = IdentityMean(1)
    optimizer = torch.optim.LBFGS(
        [decode, encode, logvar], max_iter=2000, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def terms():
        q = Gaussian(x @ encode, logvar.expand(12, 2))
        mean = q.sample(eps[:, None]) @ decode  # (4, 12, 6)
        log_px = likelihood.log_prob(mean.reshape(48, 1, 1, 6), x.expand(4, 12, 6).reshape(48, 1, 1, 6))
        return -log_px.mean(), gaussian_kl(q, standard_normal_like(q)).mean()

    def closure():
        optimizer.zero_grad()
        loss = sum(terms())
        loss.backward()
        return loss

    optimizer.step(closure)
    nll, kl = terms()
    likelihood.after_step()
    assert_close(nll.item() + kl.item(), 6.434190, atol=1e-5, rtol=0)
    assert_close(kl.item(), 2.079442, atol=1e-3, rtol=0)
    assert_close(likelihood.variance().item(), 0.25, atol=1e-4, rtol=0)


def test_bad_settings_are_refused_by_name():
    with pytest.raises(ValueError, match="likelihood.name is 'laplace', expected one of gaussian, shared-sigma"):
        build_likelihood("laplace", 1)
    with pytest.raises(ValueError, match="likelihood.sigma is not used by optimal-sigma"):
        LikelihoodConfig(name="optimal-sigma", sigma=0.1)
    with pytest.raises(ValueError, match="likelihood.sigma must be finite and > 0, got -1"):
        LikelihoodConfig(name="gaussian", sigma=-1)
