import math

import pytest
import torch
from torch.testing import assert_close

from seqvae.likelihoods.gaussian import gaussian_log_prob
from seqvae.objectives import (
    FIELDS_OF,
    LAMBDA_RANGE,
    Elbo,
    Geco,
    ObjectiveConfig,
    Terms,
    beta_from_svg,
    bits_per_dim,
    build_objective,
)


def geco(tolerance=0.1, decay=0.9, step_size=0.01, lambda_init=None, **options) -> Geco:
    lambda_init = 1 / (2 * tolerance**2) if lambda_init is None else lambda_init
    return Geco(tolerance, decay, step_size, lambda_init, **options).train()


def terms(sse: torch.Tensor, kl: torch.Tensor | None = None, mask: torch.Tensor | None = None, dims: int = 1) -> Terms:
    kl = torch.zeros_like(sse) if kl is None else kl
    mask = torch.ones(sse.shape[-1]) if mask is None else mask
    return Terms(log_px=gaussian_log_prob(sse, dims, 1.0), kl=kl, sse=sse, mask=mask, dims=dims)


def rate_distortion(objective: Geco, variances: list[float], steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient descent on the Gaussian rate-distortion toy: KL_t = log(v_t / mse_t) / 2, mse_t <= v_t."""
    v = torch.tensor([variances], dtype=torch.float64)
    theta = torch.zeros_like(v, requires_grad=True)
    for _ in range(steps):
        mse = v * theta.sigmoid()
        kl = 0.5 * (v / mse).log()
        loss, _ = objective(terms(mse, kl))
        (gradient,) = torch.autograd.grad(loss, theta)
        with torch.no_grad():
            theta -= v.shape[1] * gradient
        objective.after_step()
    return mse.detach()[0], kl.detach()[0]


@pytest.mark.parametrize("kappa2, lam, kl", [(0.5, 1.0, 0.346574), (0.1, 5.0, 1.151293), (0.01, 50.0, 2.302585)])
def test_geco_solves_the_rate_distortion_toy(kappa2, lam, kl):
    objective = geco(math.sqrt(kappa2), lambda_init=1.5 * lam)
    mse, rate = rate_distortion(objective, [1.0], 4000)
    assert_close(objective.log_lambda.exp().item(), lam, rtol=0.01, atol=0)
    assert_close(mse.item(), kappa2, rtol=0.01, atol=0)
    assert_close(rate.item(), kl, rtol=0.01, atol=0)
    assert_close(2 * objective.log_lambda.exp().item() * mse.item(), 1.0, rtol=0.01, atol=0)
    assert objective.verdict() == "met"


def test_one_multiplier_meets_the_tolerance_on_average_over_frames():
    objective = geco(math.sqrt(0.1), lambda_init=1.0)
    mse, kl = rate_distortion(objective, [1.0, 0.5, 0.05], 6000)
    assert_close(objective.log_lambda.exp().item(), 4.0, rtol=0.01, atol=0)
    assert_close(mse, torch.tensor([0.125, 0.125, 0.05], dtype=torch.float64), rtol=0.01, atol=0)
    assert_close(kl.sum().item(), 1.7329, rtol=0.01, atol=0)


def test_one_multiplier_per_frame_meets_it_on_every_frame_and_lets_slack_frames_go():
    objective = geco(math.sqrt(0.1), lambda_init=1.0, n_frames=3)
    mse, kl = rate_distortion(objective, [1.0, 0.5, 0.05], 8000)
    lam = objective.log_lambda.exp()
    assert_close(lam[:2], torch.tensor([5.0, 5.0], dtype=torch.float64), rtol=0.01, atol=0)
    assert_close(lam[2].item(), 1 / LAMBDA_RANGE, rtol=1e-9, atol=0)
    assert_close(mse, torch.tensor([0.1, 0.1, 0.05], dtype=torch.float64), rtol=0.01, atol=0)
    assert_close(kl.sum().item(), 1.9560, rtol=0.01, atol=0)


@pytest.mark.parametrize("n_frames", [None, 3])
def test_the_penalty_has_the_averages_value_and_this_batchs_gradient(n_frames):
    objective = geco(lambda_init=7.0, n_frames=n_frames)
    sse = torch.rand(4, 3, dtype=torch.float64)
    objective(terms(3 * sse, dims=2))
    objective.after_step()
    lam = objective.log_lambda.exp()
    sse.requires_grad_()
    loss, _ = objective(terms(sse, dims=2))
    (gradient,) = torch.autograd.grad(loss, sse)
    objective.after_step()
    assert_close(loss.item(), (lam * 2 * objective.constraint).mean().item())
    assert_close(gradient, (lam / 12).expand(4, 3))
    now = sse.detach().mean(0 if n_frames else None) / 2 - 0.01
    before = 3 * sse.detach().mean(0 if n_frames else None) / 2 - 0.01
    assert_close(objective.constraint, 0.9 * before + 0.1 * now)


@pytest.mark.parametrize("violation", [1e-4, 3e-3, 0.5])
def test_lambda_rises_while_violated_and_the_update_is_odd(violation):
    moves = []
    for sign in (1, -1):
        objective = geco(tolerance=1.0)
        before = objective.log_lambda.clone()
        objective(terms(torch.full((2, 3), 1.0 + sign * violation, dtype=torch.float64)))
        objective.after_step()
        moves.append((objective.log_lambda - before).item())
    assert moves[0] > 0
    assert_close(moves[0], -moves[1], atol=1e-15, rtol=0)
    assert_close(moves[0], 0.01 * violation)


def test_a_step_of_log_lambda_is_never_larger_than_the_step_size():
    objective = geco(tolerance=0.01)
    before = objective.log_lambda.clone()
    objective(terms(torch.full((1, 1), 100.0, dtype=torch.float64)))
    objective.after_step()
    assert_close((objective.log_lambda - before).item(), 0.01)


def test_an_infeasible_tolerance_ends_at_the_largest_lambda_and_says_so():
    objective = geco(step_size=1.0)
    assert objective.verdict() == "met"  # nothing seen yet, nothing violated
    for i in range(40):
        objective(terms(torch.ones(1, 2, dtype=torch.float64)))
        objective.after_step()
        if i == 5:
            assert objective.verdict() == "not yet"
    assert_close(objective.log_lambda.exp().item(), LAMBDA_RANGE * 50)
    assert objective.verdict() == "infeasible"


def test_warm_up_holds_lambda_but_not_the_average():
    objective = geco(lambda_warmup=3)
    start = objective.log_lambda.clone()
    for _ in range(3):
        objective(terms(torch.ones(1, 1, dtype=torch.float64)))
        objective.after_step()
    assert_close(objective.log_lambda, start, rtol=0, atol=0)
    assert objective.constraint > 0
    objective(terms(torch.ones(1, 1, dtype=torch.float64)))
    objective.after_step()
    assert objective.log_lambda > start


@pytest.mark.parametrize("n_frames", [None, 4])
def test_evaluation_leaves_the_state_untouched(n_frames):
    objective = geco(n_frames=n_frames)
    objective(terms(torch.rand(2, 4, dtype=torch.float64)))
    objective.after_step()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    objective.eval()
    objective(terms(torch.ones(2, 4, dtype=torch.float64)))
    assert_close(objective.state_dict(), before, rtol=0, atol=0)
    with pytest.raises(AssertionError):
        objective.after_step()


@pytest.mark.parametrize("n_frames", [None, 3])
def test_masked_frames_change_nothing(n_frames):
    results = []
    for filler in (0.0, 5.0):
        objective, sse = geco(n_frames=n_frames), torch.rand(2, 3, generator=torch.Generator().manual_seed(0)).double()
        kl = sse.clone()
        sse[:, 1], kl[:, 1] = filler, filler
        loss, numbers = objective(terms(sse, kl, mask=torch.tensor([1.0, 0.0, 1.0])))
        objective.after_step()
        elbo = Elbo(1.0)(terms(sse, kl, mask=torch.tensor([1.0, 0.0, 1.0])))
        results.append((loss, numbers["rmse"], numbers["kl_nats_per_frame"], objective.log_lambda.clone(), elbo[0]))
    assert_close(results[0], results[1], rtol=0, atol=0)
    if n_frames:
        assert objective.log_lambda[1] == objective.center and objective.n_updates.tolist() == [1, 0, 1]


def test_beta_sigma_lambda_and_svg_beta_are_one_weight_in_other_units():
    torch.manual_seed(0)
    dims, sigma = 48, 0.3
    x = torch.rand(5, 4, dims, dtype=torch.float64)
    mean, mu = (torch.randn(5, 4, n, dtype=torch.float64, requires_grad=True) for n in (dims, 3))

    def gradients(loss_of) -> list[torch.Tensor]:
        sse, kl = (mean - x).square().sum(-1), 0.5 * mu.square().sum(-1)
        return torch.autograd.grad(loss_of(sse, kl), [mean, mu])

    def elbo(beta: float, s: float):
        return lambda sse, kl: Elbo(beta)(Terms(gaussian_log_prob(sse, dims, s**2), kl, sse, torch.ones(4), dims))[0]

    svg_beta = 2 * sigma**2 / dims
    assert_close(beta_from_svg(svg_beta, dims), sigma**2)
    same = {  # scale of the loss -> the loss
        1.0: elbo(1.0, sigma),
        sigma**2: elbo(sigma**2, 1.0),
        1.0 + 1e-30: lambda sse, kl: geco(0.1, lambda_init=1 / (2 * sigma**2))(terms(sse, kl, dims=dims))[0],
        2 * sigma**2: lambda sse, kl: (sse + 2 * sigma**2 * kl).mean(),
        2 * sigma**2 / dims: lambda sse, kl: (sse / dims + svg_beta * kl).mean(),
    }
    expected = gradients(elbo(1.0, sigma))
    for scale, loss_of in same.items():
        assert_close(gradients(loss_of), [scale * g for g in expected], rtol=1e-12, atol=1e-15)
    svg = build_objective(ObjectiveConfig(svg_beta=svg_beta), n_frames=4, dims=dims)
    assert_close(svg.beta, sigma**2)
    with_sigma = build_objective(ObjectiveConfig(svg_beta=svg_beta), n_frames=4, dims=dims, sigma=sigma)
    assert_close(with_sigma.beta, 1.0)


def test_svgs_own_settings_mean_these_sigmas():
    assert_close(math.sqrt(beta_from_svg(1e-4, 64 * 64)), 0.4525, atol=5e-5, rtol=0)
    assert_close(math.sqrt(beta_from_svg(1e-4, 3 * 64 * 64)), 0.7838, atol=5e-5, rtol=0)


def test_the_elbo_is_reported_as_a_bound_whatever_beta_is():
    sse, kl = torch.rand(2, 3, dtype=torch.float64), torch.rand(2, 3, dtype=torch.float64)
    loss, numbers = Elbo(0.1)(terms(sse, kl, dims=5))
    expected = (gaussian_log_prob(sse, 5, 1.0) - kl).mean()
    assert_close(numbers["elbo_nats_per_frame"], expected)
    assert_close(numbers["bits_per_dim"], -expected / (5 * math.log(2)) + math.log2(255))
    assert loss < -numbers["elbo_nats_per_frame"]
    # A density that is uniform on [0, 1] costs 8 bits on 256 levels, less the 255 of k / 255.
    assert bits_per_dim(0.0, 5) == math.log2(255)


def test_gecos_elbo_is_quoted_at_the_sigma_of_its_own_error():
    sse = torch.full((2, 3), 0.5, dtype=torch.float64)
    objective = geco(lambda_warmup=1)
    _, numbers = objective(terms(sse, dims=5))
    objective.after_step()
    assert_close(numbers["elbo_nats_per_frame"], gaussian_log_prob(sse, 5, 0.1).mean())
    assert_close(objective.status()["geco/constraint"].item(), 0.1 - 0.01)
    assert_close(objective.status()["geco/calibration"].item(), 2 * 50 * 0.1)


@pytest.mark.parametrize("name, field", [(n, f) for n in FIELDS_OF for m in FIELDS_OF for f in FIELDS_OF[m] if m != n])
def test_a_field_of_another_objective_is_refused_by_name(name, field):
    own = {"tolerance": 0.1} if name == "geco" else {}
    with pytest.raises(ValueError, match=f"objective.{field.replace('_', '-')} is not used by objective {name}"):
        ObjectiveConfig(name=name, **own, **{field: 1})


@pytest.mark.parametrize("field", [f for f in FIELDS_OF["geco"] if f != "tolerance"])
def test_every_field_of_geco_changes_what_is_built(field):
    value = {"decay": 0.5, "step_size": 0.5, "per_frame": True, "lambda_init": 3.0, "lambda_warmup": 9}[field]

    def trace(**options) -> list[float]:
        objective = build_objective(ObjectiveConfig(name="geco", tolerance=0.1, **options), n_frames=3, dims=4).train()
        for scale in (0.9, 1.0, 1.2):
            objective(terms(scale * torch.tensor([[0.04, 0.04, 0.05]], dtype=torch.float64), dims=4))
            objective.after_step()
        return objective.log_lambda.tolist()

    assert trace(**{field: value}) != trace()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"name": "geco"}, "objective.tolerance is required by objective geco"),
        ({"name": "geco", "tolerance": 0.0}, "objective.tolerance must be finite and > 0, got 0.0"),
        ({"name": "geco", "tolerance": float("nan")}, "objective.tolerance must be finite and > 0, got nan"),
        ({"name": "geco", "tolerance": 0.1, "decay": 1.0}, r"objective.decay must be in \[0, 1\), got 1.0"),
        ({"name": "geco", "tolerance": 0.1, "lambda_warmup": -1}, "objective.lambda-warmup must be >= 0"),
        ({"beta": -1.0}, "objective.beta must be finite and >= 0, got -1.0"),
        ({"beta": 1.0, "svg_beta": 1e-4}, "two units of one weight"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**settings)
