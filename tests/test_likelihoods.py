import dataclasses
import math

import pytest
import torch
from torch.distributions import Normal
from torch.testing import assert_close

from seqvae.config import VARIANTS, GaussianConfig, LogisticMixtureConfig, variant
from seqvae.gaussian import Gaussian, gaussian_kl, standard_normal_like
from seqvae.likelihoods import DISCRETE, LIKELIHOODS, bits_offset, build_likelihood, dequantise
from seqvae.likelihoods.gaussian import (
    MIN_LOG_SIGMA,
    GaussianLikelihood,
    OptimalSigma,
    OptimalSigmaPerImage,
    gaussian_log_prob,
)

ANALYTIC = tuple(name for name, cls in VARIANTS["likelihood"][1].items() if cls.analytic)
CONTINUOUS = tuple(name for name in LIKELIHOODS if name not in DISCRETE)
GAUSSIAN = tuple(name for name, cls in LIKELIHOODS.items() if issubclass(cls, GaussianLikelihood))
BYTES = torch.arange(256, dtype=torch.float64).reshape(256, 1, 1, 1) / 255  # every frame of one pixel


class IdentityMean(OptimalSigma):
    """For examples whose pixels are given as errors: the mean is the parameter itself."""

    def mean(self, params):
        return params


class PerImageIdentityMean(OptimalSigmaPerImage):
    def mean(self, params):
        return params


def _errors() -> torch.Tensor:
    return torch.tensor([0.3, -0.1, 0.2, 0.0, -0.4, 0.1], dtype=torch.float64).reshape(1, 1, 2, 3)  # one frame


def _frames(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _bytes(*shape: int) -> torch.Tensor:
    return (255 * _frames(*shape)).round() / 255


def _params(likelihood, *shape: int, seed: int = 1) -> torch.Tensor:
    """(*shape[:-3], param_channels, H, W) standard normal, for frames of this shape."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape[:-3], likelihood.param_channels, *shape[-2:], generator=generator, dtype=torch.float64)


def _extremes(likelihood) -> torch.Tensor:
    """(N, param_channels, 1, 1): every parameter at +-200 or 0, alone, together, and mixed at random."""
    n = likelihood.param_channels
    ends = torch.tensor([-200.0, -50.0, -1e-4, 0.0, 1e-4, 50.0, 200.0], dtype=torch.float64)
    mixed = ends[torch.randint(7, (60, n), generator=torch.Generator().manual_seed(0))]
    return torch.cat([ends[:, None].expand(7, n), mixed])[..., None, None]


def _log_masses(likelihood, params: torch.Tensor) -> torch.Tensor:
    """params (N, param_channels, 1, 1) of one pixel -> log P of each byte, (N, 256)."""
    return likelihood.log_density(
        params[:, None].expand(-1, 256, *params.shape[1:]), BYTES.expand(len(params), -1, -1, -1, -1)
    )


# ---- every likelihood -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_likelihood_keeps_leading_dims_and_treats_frames_one_by_one(name, channels):
    likelihood = build_likelihood(name, channels)
    shape = (2, 3, 4, channels, 5, 6)
    frames, params = _bytes(*shape), _params(likelihood, *shape)
    for _ in range(2):  # in training, then in evaluation
        assert likelihood.log_prob(params, frames).shape == likelihood.log_density(params, frames).shape == (2, 3, 4)
        if likelihood.training:
            likelihood.after_step()
        likelihood.eval()
    assert likelihood.log_prob(params.float(), frames.float()).dtype == torch.float64
    assert_close(likelihood.log_prob(params, frames)[1, 2, 3], likelihood.log_prob(params[1, 2, 3], frames[1, 2, 3]))
    shared = likelihood.log_prob(params, frames[0, 0])  # frames without the leading dims of K samples
    assert_close(shared[1, 2], likelihood.log_prob(params[1, 2], frames[0, 0]))
    mean, sample = likelihood.mean(params.bfloat16()), likelihood.sample(params.float())
    assert mean.shape == sample.shape == shape and mean.dtype == sample.dtype == torch.float32
    assert 0 <= mean.min() and mean.max() <= 1
    assert_close(
        likelihood.squared_error(params, frames)[1, 2, 3], (likelihood.mean(params) - frames)[1, 2, 3].square().sum()
    )
    if name in DISCRETE:
        assert_close(255 * sample, (255 * sample).round())
        assert 0 <= sample.min() and sample.max() <= 1


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_only_surrogates_train_on_another_number_than_the_density(name):
    likelihood = build_likelihood(name, 3)
    frames = _bytes(4, 3, 5, 5)
    params = _params(likelihood, 4, 3, 5, 5)
    if name == "gaussian":  # only in evaluation: then at the sigma of held-out clips
        likelihood.eval().calibrate(0.1)
    same = torch.equal(likelihood.log_prob(params, frames), likelihood.log_density(params, frames))
    assert same == (name not in ("gaussian", "bernoulli", "optimal-sigma-per-image"))


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("training", [True, False])
def test_scores_of_a_batch_follow_from_the_statistics_of_its_frames_each_seen_alone(name, training):
    likelihood = build_likelihood(name, 1).train(training)
    frames, mask = _bytes(2, 5, 3, 1, 4, 4), torch.tensor([1.0, 0.0, 1.0])
    params = _params(likelihood, 2, 5, 3, 1, 4, 4)
    alone = [likelihood.statistics(params[:, [b]], frames[:, [b]]) for b in range(5)]
    joined = {name: torch.cat([part[name] for part in alone], dim=1) for name in alone[0]}
    log_px, log_density = likelihood.densities(joined, 16, mask)
    assert_close(joined["sse"], likelihood.squared_error(params, frames))
    assert_close(log_px, likelihood.log_prob(params, frames, mask))
    assert_close(log_density, likelihood.log_density(params, frames, mask))


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_gradients_are_finite_at_extreme_parameters_and_levels(name):
    for options in [{}, {"soft_clip": True}] if name in ANALYTIC else [{}]:
        likelihood = build_likelihood(name, 1, **options)
        for dtype in (torch.float32, torch.float64):
            levels = BYTES[[0, 1, 128, 254, 255]].to(dtype)
            params = _extremes(likelihood).to(dtype)[:, None].expand(-1, 5, -1, -1, -1).clone().requires_grad_()
            for score in (likelihood.log_prob, likelihood.log_density):
                value = score(params, levels)
                (grad,) = torch.autograd.grad(value.sum(), params)
                assert value.isfinite().all() and grad.isfinite().all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_picture_without_error_has_finite_gradients(name):
    for options in [{}, {"soft_clip": True}] if name in ANALYTIC else [{}]:
        likelihood = build_likelihood(name, 1, **options)
        params = torch.zeros(2, likelihood.param_channels, 4, 4, requires_grad=True)
        likelihood.log_prob(params, likelihood.mean(params).detach()).sum().backward()
        assert params.grad.isfinite().all()


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_broken_frames_and_parameters_give_a_broken_number_and_no_error(name, bad):
    likelihood = build_likelihood(name, 1)
    frames = torch.full((2, 1, 4, 4), bad)
    params = torch.full((2, likelihood.param_channels, 4, 4), math.nan)
    assert likelihood.log_prob(params, frames).isnan().all()
    likelihood.log_density(0 * params.nan_to_num(), frames)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_bfloat16_picture_is_scored_the_same_inside_and_outside_autocast(name):
    likelihood = build_likelihood(name, 3)
    frames = _bytes(2, 3, 64, 64)
    params = _params(likelihood, 2, 3, 64, 64).bfloat16()
    for score in (likelihood.log_prob, likelihood.log_density):
        outside = score(params, frames.float())
        with torch.autocast("cpu", torch.bfloat16):
            inside = score(params, frames.float())
        assert inside.dtype == outside.dtype == torch.float64
        assert_close(inside, outside, atol=0.01, rtol=0)
        assert_close(outside, score(params.double(), frames), atol=0.01, rtol=0)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_masked_frames_change_neither_the_state_nor_the_other_frames(name):
    frames, mask = _bytes(2, 3, 1, 4, 4), torch.tensor([1.0, 0.0, 1.0])
    values = []
    for filler in (0.0, 1.0):
        likelihood = build_likelihood(name, 1)
        params = _params(likelihood, 2, 3, 1, 4, 4)
        changed = frames.clone()
        changed[:, 1] = filler
        log_px = likelihood.log_prob(params, changed, mask)
        log_density = likelihood.log_density(params, changed, mask)
        likelihood.after_step()
        values.append((log_px[:, [0, 2]], log_density[:, [0, 2]], likelihood.state_dict()))
    assert_close(values[0], values[1], rtol=0, atol=0)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_state_dict_restores_what_was_learned_and_calibrated(name):
    first, second = build_likelihood(name, 1), build_likelihood(name, 1)
    frames = _bytes(2, 3, 1, 4, 4)
    params = _params(first, 2, 3, 1, 4, 4)
    first.log_prob(params, frames)
    first.after_step()
    first.calibrate(0.02)
    second.load_state_dict(first.state_dict())
    assert first.state_dict().get("calibrated_mse", 0.02) == 0.02
    assert_close(second.eval().log_prob(params, frames), first.eval().log_prob(params, frames), rtol=0, atol=0)


# ---- continuous: densities over pixels --------------------------------------------------------------------------


@pytest.mark.parametrize("name", GAUSSIAN)
def test_log_density_is_the_density_of_a_normal_in_evaluation(name):
    likelihood = build_likelihood(name, 3)
    frames = _frames(4, 5, 3, 8, 8)
    params = _params(likelihood, 4, 5, 3, 8, 8)
    mean = params[..., :3, :, :].sigmoid()
    assert_close(likelihood.mean(params), mean)
    likelihood.log_prob(params, frames)
    likelihood.after_step()
    likelihood.eval()
    expected = Normal(mean, likelihood.sigma(params).expand_as(mean)).log_prob(frames).sum((-3, -2, -1))
    assert_close(likelihood.log_density(params, frames), expected)
    assert_close(likelihood.log_density(params, frames), expected)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_one_pixel_integrates_to_one(name):
    likelihood = build_likelihood(name, 1).eval()
    x = torch.linspace(-12, 13, 20_001, dtype=torch.float64).reshape(-1, 1, 1, 1)
    log_px = likelihood.log_density(torch.full((20_001, likelihood.param_channels, 1, 1), 0.7).double(), x)
    one = torch.tensor(1.0, dtype=torch.float64)
    assert_close(torch.trapezoid(log_px.exp(), x.flatten()), one, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_samples_have_the_mean_and_the_sigma(name):
    likelihood = build_likelihood(name, 1).eval()
    params = torch.full((likelihood.param_channels, 300, 300), 0.4)
    sample = likelihood.sample(params, torch.Generator().manual_seed(0))
    assert_close(sample.mean(), likelihood.mean(params).mean(), atol=0.02, rtol=0)
    if name in GAUSSIAN:
        assert_close(sample.std(), likelihood.sigma(params).float().mean(), atol=0.03, rtol=0)


def test_learned_sigmas_come_from_the_channels_after_the_mean_with_a_soft_floor():
    for name, channels in (("per-image-sigma", 4), ("per-pixel-sigma", 6)):
        likelihood = build_likelihood(name, 3)
        assert likelihood.param_channels == channels
        params = _params(likelihood, 2, 3, 5, 5) - 5
        log_sigma = params[:, 3:] if channels == 6 else params[:, 3:].mean((-2, -1), keepdim=True)
        assert_close(likelihood.sigma(params), math.exp(-6) * (1 + (log_sigma + 6).exp()))  # exp(-6 + softplus)


@pytest.mark.parametrize("name", GAUSSIAN)
def test_a_dequantised_density_bounds_the_bytes_from_below(name):
    likelihood = build_likelihood(name, 1, **({"sigma": 0.01} if name == "gaussian" else {})).eval()
    likelihood.calibrate(0.01**2)  # a sigma of a few levels makes the bound's gap visible
    params = torch.full((256, likelihood.param_channels, 1, 1), -4.5, dtype=torch.float64)
    params[:, :1] = 0.1
    normal = Normal(likelihood.mean(params).flatten(), likelihood.sigma(params).expand(256, 1, 1, 1).flatten())
    k = torch.arange(256, dtype=torch.float64)
    log_mass = (normal.cdf((k + 1) / 256) - normal.cdf(k / 256)).log()
    u = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    x = dequantise(BYTES, u)  # (256, 1, 1, 200): 200 draws of a frame of one pixel
    assert ((x.reshape(256, 200) * 256).floor() == k[:, None]).all()
    log_px = torch.stack([likelihood.log_density(params, x[..., [i]]) for i in range(200)]).mean(0)
    bits = -log_px / math.log(2) + bits_offset(likelihood.discrete, dequantised=True)
    seen = log_mass > -20  # beyond, the difference of cdfs loses its digits
    assert (bits >= -log_mass / math.log(2) - 1e-9)[seen].all()
    near = log_mass > -6  # the gap, (slope of log p over a level)^2 / 24 nats, grows with the distance from the mean
    assert_close(bits[near], -log_mass[near] / math.log(2), atol=0.1, rtol=0)


def test_bits_per_dim_of_bytes_that_are_all_equally_likely_are_eight():
    density, mass = 0.0, -math.log(256)  # log p of a pixel
    assert -density / math.log(2) + bits_offset(discrete=False, dequantised=True) == 8
    assert_close(-mass / math.log(2) + bits_offset(discrete=True, dequantised=False), 8.0)
    assert_close(2 ** bits_offset(discrete=False, dequantised=False), 255.0)  # pixels k / 255 are 1 / 255 apart


# ---- continuous: the analytic sigma -----------------------------------------------------------------------------


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


@pytest.mark.parametrize("kind", [IdentityMean, PerImageIdentityMean])
@pytest.mark.parametrize("scale", [2.0, 255.0])
def test_scaling_the_pixels_shifts_nll_by_d_log_scale_and_sigma_by_scale(scale, kind):
    e = _errors()
    plain, scaled = kind(1), kind(1)
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


@pytest.mark.parametrize("name", ANALYTIC)
def test_calibration_sets_the_variance_until_the_weights_move(name):
    likelihood, frames = build_likelihood(name, 1), _bytes(3, 1, 4, 4)
    params = torch.zeros_like(frames)
    likelihood.log_prob(params, frames)
    likelihood.after_step()
    tracked = likelihood.variance()
    likelihood.calibrate(torch.tensor(0.04, dtype=torch.float64))
    assert_close(likelihood.variance().item(), 0.04)
    half = torch.full_like(frames, 0.5)
    expected = Normal(half, 0.2).log_prob(frames).sum((-3, -2, -1))
    assert_close(likelihood.eval().log_prob(params, frames), expected)
    likelihood.calibrate(0.0)
    assert_close(likelihood.variance().item(), math.exp(2 * MIN_LOG_SIGMA))
    likelihood.train().log_prob(params, frames)
    assert_close(likelihood.variance().item(), math.exp(2 * MIN_LOG_SIGMA))
    likelihood.after_step()
    assert_close(likelihood.variance(), tracked)


@pytest.mark.parametrize("log_sigma, shift", [(-3, 0.0486), (-4, 0.127), (-5, 0.313), (-6, 0.693)])
def test_soft_clip_raises_sigma_by_the_known_shift(log_sigma, shift):
    e = torch.full((1, 1, 4, 4), math.exp(log_sigma), dtype=torch.float64)
    soft = IdentityMean(1, soft_clip=True).log_prob(torch.zeros_like(e), e)
    assert_close(soft, Normal(0.0, math.exp(log_sigma + shift)).log_prob(e).sum((-3, -2, -1)), atol=1e-3 * 16, rtol=0)


@pytest.mark.parametrize(
    "log_sigma, excess, kept, stopped",
    [(-2.44, 9.5, None, None), (-4.05, 200.0, 0.971, 0.766), (-5.44, 1890.0, 0.784, 0.406)],
)
def test_soft_clip_is_no_optimum_and_its_gradient_is_that_of_the_whole_expression(log_sigma, excess, kept, stopped):
    e = math.exp(log_sigma) * torch.ones(1, 3, 64, 64, dtype=torch.float64)
    values, gradients = [], []
    for soft_clip in (False, True):
        mean = torch.zeros_like(e, requires_grad=True)
        values.append(-IdentityMean(3, soft_clip=soft_clip).log_prob(mean, e))
        gradients.append(torch.autograd.grad(values[-1].sum(), mean)[0])
    assert_close((values[1] - values[0]).item(), excess, rtol=0.02, atol=0)

    def whole(scale: torch.Tensor) -> torch.Tensor:  # the same as a function of the error's scale alone
        log_s = -6 + torch.log1p((log_sigma + scale.log() + 6).exp())
        return e.numel() * (0.5 * (scale * math.exp(log_sigma)) ** 2 * (-2 * log_s).exp() + log_s)

    h = torch.tensor(1e-5, dtype=torch.float64)
    numerical = ((whole(1 + h) - whole(1 - h)) / (2 * h)).item()
    assert_close((gradients[1] * -e).sum().item(), numerical, rtol=1e-7, atol=0)  # d mean = -e d scale
    if kept is not None:
        assert_close((gradients[1] / gradients[0]).mean().item(), kept, atol=1e-3, rtol=0)
        assert_close(math.exp(-2 * math.log1p(math.exp(-6 - log_sigma))), stopped, atol=1e-3, rtol=0)


def test_soft_clip_plays_no_part_in_evaluation():
    e = torch.full((1, 1, 4, 4), 1e-4, dtype=torch.float64)
    for likelihood in (IdentityMean(1, soft_clip=True), PerImageIdentityMean(1, soft_clip=True)):
        likelihood.log_prob(torch.zeros_like(e), e)
        likelihood.after_step()
        assert_close(likelihood.variance().item(), math.exp(2 * MIN_LOG_SIGMA))


def test_per_image_sigma_is_half_d_log_mse_of_each_image_and_its_density_the_shared_one():
    e = torch.cat([_errors(), 3 * _errors()])  # two images, MSE 0.0517 and nine times that
    mean = torch.zeros_like(e, requires_grad=True)
    per_image, shared = PerImageIdentityMean(1), IdentityMean(1)
    surrogate = per_image.log_prob(mean, e)
    known = torch.tensor([-0.3751961530, -0.3751961530 + 6 * math.log(3)], dtype=torch.float64)
    assert_close(-surrogate, known, atol=1e-9, rtol=0)
    (ours,) = torch.autograd.grad(-surrogate.sum(), mean)
    (log_mse,) = torch.autograd.grad(3 * (mean - e).square().mean((-3, -2, -1)).log().sum(), mean)
    assert_close(ours, log_mse, atol=1e-14, rtol=1e-14)

    expected = shared.log_prob(mean, e)
    assert_close(per_image.log_density(mean, e), expected, rtol=0, atol=0)
    assert surrogate.sum() > expected.sum()  # Jensen: an optimum per image beats one for all
    for likelihood in (per_image, shared):
        likelihood.after_step()
        likelihood.eval()
    assert_close(per_image.state_dict(), shared.state_dict(), rtol=0, atol=0)
    for score in (per_image.log_prob, per_image.log_density):
        assert_close(score(mean, e), shared.log_prob(mean, e), rtol=0, atol=0)


def test_per_image_soft_clip_keeps_the_gradient_through_each_images_sigma():
    e = torch.cat([0.02 * _errors(), _errors()])
    mean = torch.zeros_like(e, requires_grad=True)
    (ours,) = torch.autograd.grad(PerImageIdentityMean(1, soft_clip=True).log_prob(mean, e).sum(), mean)
    alone = [torch.autograd.grad(IdentityMean(1, soft_clip=True).log_prob(mean[[i]], e[[i]]), mean)[0] for i in (0, 1)]
    assert_close(ours, alone[0] + alone[1], atol=1e-12, rtol=1e-12)


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


# ---- discrete: masses over bytes --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DISCRETE)
def test_the_256_levels_sum_to_one_at_extreme_parameters(name):
    likelihood = build_likelihood(name, 1)
    assert likelihood.discrete
    params = _extremes(likelihood)
    if name == "bernoulli":
        logits = torch.tensor([-200, -30, -0.2, -0.19, -1e-4, 0, 1e-4, 0.19, 0.2, 3, 200], dtype=torch.float64)
        params = torch.cat([params, logits.reshape(-1, 1, 1, 1)])
    for dtype in (torch.float64, torch.float32):
        total = _log_masses(likelihood, params.to(dtype)).logsumexp(-1)
        assert_close(total, torch.zeros_like(total), atol=1e-6 if dtype == torch.float64 else 1e-4, rtol=0)


def test_logistic_mixtures_levels_sum_to_one_at_narrow_wide_and_far_components():
    likelihood = build_likelihood("logistic-mixture", 1, mixtures=1)
    places = torch.cartesian_prod(
        torch.tensor([0.0, 0.5, 1.0, -1e4, -3.0, 4.0, 1e4]).double(),
        torch.tensor([-9.0, -7.0, -3.0, 0.0, 5.0]).double(),
    )
    params = torch.stack([torch.zeros(35), places[:, 0] - 0.5, places[:, 1] + 2], -1).double()[..., None, None]
    total = _log_masses(likelihood, params).logsumexp(-1)
    assert_close(total, torch.zeros_like(total), atol=1e-6, rtol=0)


def test_bernoulli_is_torchs_on_black_and_white_and_its_density_the_same_family_over_256_levels():
    likelihood = build_likelihood("bernoulli", 3)
    params, frames = 5 * _params(likelihood, 4, 3, 5, 5), _frames(4, 3, 5, 5)
    expected = torch.distributions.Bernoulli(logits=params).log_prob(frames.round()).sum((-3, -2, -1))
    assert_close(likelihood.log_prob(params, frames.round()), expected)
    grey = -torch.nn.functional.binary_cross_entropy_with_logits(params, frames, reduction="none").sum((-3, -2, -1))
    assert_close(likelihood.log_prob(params, frames), grey)

    logits = torch.tensor([-200, -30, -0.201, -0.199, -1e-4, 0, 1e-4, 0.199, 0.201, 3, 200]).double().requires_grad_()
    masses = _log_masses(build_likelihood("bernoulli", 1), logits.reshape(-1, 1, 1, 1))
    brute = torch.distributions.Categorical(logits=logits[:, None] * BYTES.flatten()).logits
    assert_close(masses, brute, atol=1e-9, rtol=0)
    gradients = [torch.autograd.grad(m[:, 77].sum(), logits)[0] for m in (masses, brute)]
    assert_close(*gradients, atol=1e-7, rtol=0)


def test_categorical_is_the_cross_entropy_of_the_byte():
    likelihood = build_likelihood("categorical", 3)
    frames = _bytes(4, 3, 5, 5)
    params = 5 * _params(likelihood, 4, 3, 5, 5)
    channels = [
        torch.distributions.Categorical(logits=params[:, 256 * c : 256 * (c + 1)].movedim(1, -1)) for c in range(3)
    ]
    expected = sum(p.log_prob((255 * frames[:, c]).round()).sum((-2, -1)) for c, p in enumerate(channels))
    assert_close(likelihood.log_prob(params, frames), expected)


def test_bitwise_is_eight_bernoullis_on_the_bytes_binary_digits():
    likelihood = build_likelihood("bitwise", 1)
    params = 3 * _params(likelihood, 1, 1, 1)  # (8, 1, 1)
    p = params.flatten().sigmoid().tolist()
    expected = [
        sum(math.log(p[7 - i] if digit == "1" else 1 - p[7 - i]) for i, digit in enumerate(f"{k:08b}"))
        for k in range(256)
    ]
    assert_close(_log_masses(likelihood, params[None])[0], torch.tensor(expected, dtype=torch.float64))


def test_a_logistic_mixtures_level_has_the_mass_of_its_bin():
    likelihood = build_likelihood("logistic-mixture", 3, mixtures=4)
    frames = _bytes(20, 3, 2, 2)
    frames[0], frames[1] = 0, 1
    params = _params(likelihood, 20, 3, 2, 2)
    logits, mu, log_s = params.reshape(20, 3, 3, 4, 2, 2).unbind(1)
    mu, s, x = mu + 0.5, (log_s - 2).exp(), frames[:, :, None]
    top = torch.where(x == 1, 1.0, ((x + 0.5 / 255 - mu) / s).sigmoid())
    bottom = torch.where(x == 0, 0.0, ((x - 0.5 / 255 - mu) / s).sigmoid())
    expected = (logits.softmax(2) * (top - bottom)).sum(2).log().sum((-3, -2, -1))
    assert_close(likelihood.log_prob(params, frames), expected)


@pytest.mark.parametrize("name", DISCRETE)
def test_the_mean_is_the_mean_over_the_levels_to_half_a_level(name):
    likelihood = build_likelihood(name, 1)
    params = torch.cat([3 * _params(likelihood, 40, 1, 1, 1), _extremes(likelihood)])
    if name == "logistic-mixture":
        n = likelihood.mixtures
        params[:40, n : 2 * n] = _params(likelihood, 40, 1, 1, 1)[:, n : 2 * n] / 2
        params[20:40, 2 * n :] -= 4  # narrow ones too
    mean = likelihood.mean(params).flatten()
    brute = (_log_masses(likelihood, params).exp() * BYTES.flatten()).sum(-1)
    if name == "bernoulli":  # its mean is that of the Bernoulli that was trained
        brute = params.flatten().sigmoid()
    exact = name != "logistic-mixture"
    assert_close(mean, brute, atol=1e-6 if exact else 0.5 / 255 + 1e-5, rtol=0)
    assert exact or (mean - brute)[:20].abs().max() < 0.02 / 255  # half a level is the worst case, of narrow ones


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_samples_have_the_mean_and_the_masses(name):
    likelihood = build_likelihood(name, 1)
    params = _params(likelihood, 1, 1, 1).float()
    sample = likelihood.sample(params.expand(-1, 200, 200), torch.Generator().manual_seed(0))
    assert_close(sample.mean(), likelihood.mean(params).mean(), atol=0.01, rtol=0)
    counts = (255 * sample).round().long().flatten().bincount(minlength=256) / 40_000
    masses = _log_masses(likelihood, params[None])[0].exp().float()
    if name == "bernoulli":
        assert_close(counts[[0, 255]].sum().item(), 1.0)
    else:
        assert (counts.cumsum(0) - masses.cumsum(0)).abs().max() < 0.01


def test_a_narrow_component_samples_its_own_level():
    likelihood = build_likelihood("logistic-mixture", 1, mixtures=2)
    params = torch.tensor([50.0, -50.0, 100 / 255 - 0.5, 0.0, -9.0, -9.0]).reshape(6, 1, 1).expand(6, 50, 50)
    sample = likelihood.sample(params, torch.Generator().manual_seed(0))
    assert ((255 * sample).round() - 100).abs().max() <= 3 and (255 * sample).median() == 100


# ---- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_likelihood_is_built_from_its_settings(name):
    cfg = variant("likelihood", name)
    assert build_likelihood(name, 1, **cfg.options()).discrete == (name in DISCRETE)
    assert ("dequantise" in {f.name for f in dataclasses.fields(cfg)}) == (name not in DISCRETE)
    assert cfg.analytic == (name in ANALYTIC)
    for field, value in {"sigma": 0.1, "soft_clip": True, "mixtures": 3}.items():
        if field in cfg.options():
            changed = variant("likelihood", name, **{field: value})
            assert changed.options()[field] == value
            build_likelihood(name, 1, **changed.options())


def test_the_number_of_components_is_used():
    assert build_likelihood("logistic-mixture", 3, mixtures=2).param_channels == 18


def test_bad_settings_are_refused_by_name():
    with pytest.raises(ValueError, match="likelihood.name is 'laplace', expected one of gaussian, shared-sigma"):
        build_likelihood("laplace", 1)
    with pytest.raises(ValueError, match="likelihood.sigma must be finite and > 0, got -1"):
        GaussianConfig(sigma=-1)
    with pytest.raises(ValueError, match="likelihood.sigma must be finite and > 0, got nan"):
        GaussianConfig(sigma=math.nan)
    with pytest.raises(ValueError, match="likelihood.mixtures must be >= 1, got 0"):
        LogisticMixtureConfig(mixtures=0)
