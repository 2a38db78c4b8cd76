import dataclasses
import math
from functools import partial
from itertools import product

import pytest
import torch
from torch.testing import assert_close

from seqvae.config import ElboConfig, GecoConfig, GecoIwaeConfig, variant
from seqvae.likelihoods.gaussian import gaussian_log_prob
from seqvae.objectives import (
    Elbo,
    Geco,
    GecoIwae,
    Iwae,
    Terms,
    beta_from_svg,
    bits_per_dim,
    build_objective,
    iwae_bound,
)
from seqvae.objectives.geco import AdaptiveRule, PaperRule, additive_bound, coherent_bound


def paper(tolerance=0.1, decay=0.9, step_size=0.01, lambda_init=None) -> partial:
    lambda_init = 1 / (2 * tolerance**2) if lambda_init is None else lambda_init
    return partial(PaperRule, decay=decay, step_size=step_size, lambda_init=lambda_init)


def geco(tolerance=0.1, n_frames=None, **options) -> Geco:
    """With the paper's rule."""
    return Geco(tolerance, paper(tolerance, **options), n_frames).train()


def terms(
    sse: torch.Tensor,
    kl: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    dims: int = 1,
    log_ratio: torch.Tensor | None = None,
    sigma: float = 1.0,
) -> Terms:
    """sse (B, F) or (K, B, F), kl (B, F) or per latent (B, F, Z)."""
    sse = sse if sse.ndim == 3 else sse[None]
    kl = torch.zeros_like(sse[0]) if kl is None else kl
    kl = kl if kl.ndim == 3 else kl[..., None]
    log_px = gaussian_log_prob(sse, dims, sigma**2)
    return Terms(
        log_px=log_px,
        log_density=log_px,
        log_ratio=-kl.sum(-1).expand_as(sse) if log_ratio is None else log_ratio,
        kl=kl,
        sse=sse,
        mask=torch.ones(sse.shape[-1]) if mask is None else mask,
        dims=dims,
        bits_offset=math.log2(255),
    )


def rate_distortion(objective: Geco, variances: list[float], steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient descent on the Gaussian rate-distortion toy: KL_t = log(v_t / mse_t) / 2, mse_t <= v_t."""
    v = torch.tensor([variances], dtype=torch.float64)
    theta = torch.zeros_like(v, requires_grad=True)
    for step in range(steps):
        mse = v * theta.sigmoid()
        kl = 0.5 * (v / mse).log()
        loss, _ = objective(terms(mse, kl))
        (gradient,) = torch.autograd.grad(loss, theta)
        with torch.no_grad():
            theta -= v.shape[1] * gradient
        objective.after_step(remaining=steps - step - 1)
    return mse.detach()[0], kl.detach()[0]


@pytest.mark.parametrize("kappa2, lam, kl", [(0.5, 1.0, 0.346574), (0.1, 5.0, 1.151293), (0.01, 50.0, 2.302585)])
@pytest.mark.long
def test_geco_solves_the_rate_distortion_toy(kappa2, lam, kl):
    objective = geco(math.sqrt(kappa2), lambda_init=1.5 * lam)
    mse, rate = rate_distortion(objective, [1.0], 800)
    assert_close(objective.log_lambda.exp().item(), lam, rtol=0.01, atol=0)
    assert_close(mse.item(), kappa2, rtol=0.01, atol=0)
    assert_close(rate.item(), kl, rtol=0.01, atol=0)
    assert_close(2 * objective.log_lambda.exp().item() * mse.item(), 1.0, rtol=0.01, atol=0)
    assert objective.verdict() == "met"


def test_one_multiplier_meets_the_tolerance_on_average_over_frames():
    objective = geco(math.sqrt(0.1), lambda_init=1.0)
    mse, kl = rate_distortion(objective, [1.0, 0.5, 0.05], 1000)
    assert_close(objective.log_lambda.exp().item(), 4.0, rtol=0.01, atol=0)
    assert_close(mse, torch.tensor([0.125, 0.125, 0.05], dtype=torch.float64), rtol=0.01, atol=0)
    assert_close(kl.sum().item(), 1.7329, rtol=0.01, atol=0)


@pytest.mark.long
def test_one_multiplier_per_frame_meets_it_on_every_frame_and_lets_slack_frames_go():
    objective = geco(math.sqrt(0.1), lambda_init=1.0, n_frames=3)
    mse, kl = rate_distortion(objective, [1.0, 0.5, 0.05], 3000)
    lam = objective.log_lambda.exp()
    assert_close(lam[:2], torch.tensor([5.0, 5.0], dtype=torch.float64), rtol=0.01, atol=0)
    assert_close(lam[2].item(), math.exp(-PaperRule.limit), rtol=1e-9, atol=0)
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
    assert_close(objective.log_lambda.exp().item(), math.exp(PaperRule.limit) * 50)
    assert objective.verdict() == "infeasible"


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
        assert objective.log_lambda[1] == objective.rule.start and objective.n_updates.tolist() == [1, 0, 1]


def test_beta_sigma_lambda_and_svg_beta_are_one_weight_in_other_units():
    torch.manual_seed(0)
    dims, sigma = 48, 0.3
    x = torch.rand(5, 4, dims, dtype=torch.float64)
    mean, mu = (torch.randn(5, 4, n, dtype=torch.float64, requires_grad=True) for n in (dims, 3))

    def gradients(loss_of) -> list[torch.Tensor]:
        sse, kl = (mean - x).square().sum(-1), 0.5 * mu.square().sum(-1)
        return torch.autograd.grad(loss_of(sse, kl), [mean, mu])

    def elbo(beta: float, s: float):
        return lambda sse, kl: Elbo(beta)(terms(sse, kl, dims=dims, sigma=s))[0]

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
    svg = build_objective(ElboConfig(svg_beta=svg_beta), n_frames=4, dims=dims)
    assert_close(svg.beta, sigma**2)
    with_sigma = build_objective(ElboConfig(svg_beta=svg_beta), n_frames=4, dims=dims, sigma=sigma)
    assert_close(with_sigma.beta, 1.0)


def test_svgs_own_settings_mean_these_sigmas():
    assert_close(math.sqrt(beta_from_svg(1e-4, 64 * 64)), 0.4525, atol=5e-5, rtol=0)
    assert_close(math.sqrt(beta_from_svg(1e-4, 3 * 64 * 64)), 0.7838, atol=5e-5, rtol=0)


def test_the_elbo_is_reported_as_a_bound_whatever_beta_is():
    sse, kl = torch.rand(2, 3, dtype=torch.float64), torch.rand(2, 3, dtype=torch.float64)
    loss, numbers = Elbo(0.1)(terms(sse, kl, dims=5))
    expected = (gaussian_log_prob(sse, 5, 1.0) - kl).mean()  # one sample, one latent
    assert_close(numbers["elbo_nats_per_frame"], expected)
    assert_close(numbers["bits_per_dim"], -expected / (5 * math.log(2)) + math.log2(255))
    assert loss < -numbers["elbo_nats_per_frame"]
    assert bits_per_dim(-5 * math.log(256), 5, 0.0) == pytest.approx(8)  # every byte as likely as any other


def test_gecos_elbo_is_quoted_at_the_sigma_of_its_own_error():
    sse = torch.full((2, 3), 0.5, dtype=torch.float64)
    objective = geco(step_size=1e-12)
    _, numbers = objective(terms(sse, dims=5))
    objective.after_step()
    assert_close(numbers["elbo_nats_per_frame"], gaussian_log_prob(sse, 5, 0.1).mean())
    assert_close(objective.status()["geco/constraint"].item(), 0.1 - 0.01)
    assert_close(objective.status()["geco/calibration"].item(), 2 * 50 * 0.1)


GECO_FIELDS = [f.name for f in dataclasses.fields(GecoConfig) if f.name not in ("name", "loss_on", "tolerance")]


@pytest.mark.parametrize("field", GECO_FIELDS)
def test_every_field_of_geco_changes_what_is_built(field):
    values = {"decay": 0.5, "step_size": 0.5, "per_frame": True, "lambda_init": 3.0, "rule": "adaptive"}
    value = (values | {"lambda_start": 0.5})[field]
    rule = "adaptive" if field == "lambda_start" else "paper"

    def trace(**options) -> list[float]:
        cfg = GecoConfig(**{"tolerance": 0.1, "rule": rule} | options)
        objective = build_objective(cfg, n_frames=3, dims=4).train()
        for scale in (0.9, 1.0, 1.2):
            objective(terms(scale * torch.tensor([[0.04, 0.04, 0.05]], dtype=torch.float64), dims=4))
            objective.after_step()
        return objective.log_lambda.tolist()

    assert trace(**{field: value}) != trace()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"name": "geco", "tolerance": 0.0}, "objective.tolerance must be finite and > 0, got 0.0"),
        ({"name": "geco", "tolerance": 1e-200}, "expected at least 1e-06"),
        ({"name": "geco", "tolerance": float("nan")}, "objective.tolerance must be finite and > 0, got nan"),
        (
            {"name": "geco", "tolerance": 0.1, "rule": "paper", "decay": 1.0},
            r"objective.decay must be in \[0, 1\), got 1.0",
        ),
        (
            {"name": "geco", "tolerance": 0.1, "step_size": 1e-2},
            "objective.step-size is used by objective.rule paper alone",
        ),
        ({"beta": -1.0}, "objective.beta must be finite and >= 0, got -1.0"),
        ({"beta": 2.0, "svg_beta": 1e-4}, "two units of one weight"),
        ({"kl_cycle": 1}, "objective.kl-cycle must be 0"),
        ({"kl_warmup": 5, "kl_cycle": 5}, "two schedules of one weight"),
        ({"kl_warmup": -5}, "objective.kl-warmup must be finite and >= 0"),
        ({"free_bits": -0.1}, "objective.free-bits must be finite and >= 0"),
        ({"name": "iwae", "n_importance": 0}, "objective.n-importance must be >= 1 sample, got 0"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        variant("objective", **{"name": "elbo"} | settings)


# ---- importance weights


def sequence(k: int, batch: int, from_prior: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(x_t | z) and log p(z_t) - log q(z_t), (K, B, F), of a linear-Gaussian sequence whose log p(x) is known.

    p(z_t) = N(.5 x_{t-1}, 1), h_t = .8 h_{t-1} + z_t, x_t ~ N(h_t, .25), h_0 = 0; x_0..x_3 are 1, .8, -.4, 1.5, x_0 is
    given, and q(z_t) is N(.8 x_t, .3) or the prior.
    """
    normal = torch.distributions.Normal
    before, x = (torch.tensor(v, dtype=torch.float64) for v in ([1.0, 0.8, -0.4], [0.8, -0.4, 1.5]))
    prior = normal(0.5 * before, 1.0)
    q = prior if from_prior else normal(0.8 * x, math.sqrt(0.3))
    z, h, log_px = q.sample((k, batch)), torch.zeros(k, batch, dtype=torch.float64), []
    for t in range(3):
        h = 0.8 * h + z[..., t]
        log_px.append(normal(h, 0.5).log_prob(x[t]))
    return torch.stack(log_px, -1), prior.log_prob(z) - q.log_prob(z)


def test_the_linear_gaussian_sequences_bounds_rise_from_elbo_to_the_exact_value():
    torch.manual_seed(0)
    exact, values = -5.12579246, {}
    for k, n, expected in ((1, 100_000, -6.29108718), (2, 50_000, -5.484), (5, 30_000, -5.220), (100, 3_000, -5.128)):
        log_px, log_ratio = sequence(k, n)
        bound = iwae_bound((log_px + log_ratio).sum(-1))
        error = 4 * bound.std() / math.sqrt(n)
        assert abs(bound.mean() - expected) < error + 5e-4, k
        values[k] = bound.mean()
    assert values[1] < values[2] < values[5] < values[100] < exact + 0.01
    log_px, log_ratio = sequence(1, 100_000, from_prior=True)  # the ELBO is E log p(x | z) alone
    assert abs(log_px.sum(-1).mean() + 15.36377406) < 4 * log_px.sum(-1).std() / math.sqrt(100_000)
    assert_close(log_ratio, torch.zeros_like(log_ratio))


def test_a_bound_taken_frame_by_frame_exceeds_the_exact_value_and_so_is_not_what_iwae_does():
    torch.manual_seed(0)
    log_px, log_ratio = sequence(1000, 200)
    video = log_px + log_ratio  # (K, B, F)
    loss, _ = Iwae()(terms(torch.zeros_like(video), log_ratio=log_ratio)._replace(log_px=log_px))
    assert_close(-3 * loss.item(), -5.1261, atol=0.02, rtol=0)
    assert_close((iwae_bound(video.flatten(1)).sum() / 200).item(), -4.6764, atol=0.02, rtol=0)


def test_iwae_on_one_gaussian_has_the_known_values():
    torch.manual_seed(0)
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    for k, n, expected in ((2, 50_000, -1.6534737866), (5, 40_000, -1.557), (50, 4_000, -1.519)):
        z = normal.sample((k, n))
        bound = iwae_bound(torch.distributions.Normal(z, 1.0).log_prob(torch.ones_like(z)))  # q = p(z)
        assert abs(bound.mean() - expected) < 4 * bound.std() / math.sqrt(n) + 5e-4, k
    # The posterior as q: every weight is the exact value, whatever K.
    q = torch.distributions.Normal(torch.tensor(0.5, dtype=torch.float64), math.sqrt(0.5))
    z = q.sample((3, 4))
    log_w = torch.distributions.Normal(z, 1.0).log_prob(torch.ones_like(z)) + normal.log_prob(z) - q.log_prob(z)
    assert_close(iwae_bound(log_w), torch.full((4,), -1.5155121235, dtype=torch.float64))


def samples(k: int, batch: int = 3, n_frames: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared errors and log-ratios (K, B, F), with gradients."""
    generator = torch.Generator().manual_seed(k)
    sse = torch.rand(k, batch, n_frames, dtype=torch.float64, generator=generator)
    log_ratio = -torch.rand(k, batch, n_frames, dtype=torch.float64, generator=generator)
    return sse.requires_grad_(), log_ratio.requires_grad_()


def geco_iwae(tolerance=0.1, lambda_init=3.0, **options) -> GecoIwae:
    return GecoIwae(tolerance, paper(tolerance, lambda_init=lambda_init), **options).train()


@pytest.mark.parametrize("n_frames", [None, 4])
@pytest.mark.parametrize("form", ["coherent", "additive"])
@pytest.mark.parametrize("constraint_on", ["iw", "q"])
def test_geco_iwae_with_one_sample_is_geco(form, n_frames, constraint_on):
    sse, log_ratio = samples(1)
    mask = torch.tensor([1.0, 1.0, 0.0, 1.0])
    ours = geco_iwae(form=form, constraint_on=constraint_on, n_frames=n_frames)
    plain = geco(lambda_init=3.0, n_frames=n_frames)
    for _ in range(3):  # with a moving average that differs from this batch's value
        results = []
        for objective in (ours, plain):
            loss, _ = objective(terms(sse, -log_ratio[0], mask, dims=2, log_ratio=log_ratio))
            results.append((loss, *torch.autograd.grad(loss, [sse, log_ratio])))
            objective.after_step()
        assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)
        assert_close(ours.state_dict(), plain.state_dict(), rtol=1e-12, atol=1e-12)
        sse = (sse.detach() * 0.7).requires_grad_()


@pytest.mark.parametrize("form", ["coherent", "additive"])
def test_the_form_that_is_asked_for_is_the_one_that_is_minimised(form):
    cfg = GecoIwaeConfig(tolerance=0.1, rule="paper", lambda_init=3.0, form=form, n_importance=4)
    objective = build_objective(cfg, n_frames=4, dims=2).train()
    sse, log_ratio = samples(4)
    mask = torch.tensor([1.0, 0.0, 1.0, 1.0])
    loss, _ = objective(terms(sse, mask=mask, dims=2, log_ratio=log_ratio))
    cost, ratio = (sse - 2 * 0.1**2)[..., [0, 2, 3]].sum(-1), log_ratio[..., [0, 2, 3]].sum(-1)  # (K, B)
    if form == "coherent":
        expected = -(ratio - 3 * cost).exp().mean(0).log()
    else:
        w = (ratio - cost).exp()
        expected = (2 * w * cost).sum(0) / w.sum(0) - w.mean(0).log()
    assert_close(loss, expected.sum() / 9)
    ours, theirs = (torch.autograd.grad(x, sse, retain_graph=True)[0] for x in (loss, expected.sum() / 9))
    assert_close(ours, theirs)


def test_geco_iwae_at_lambda_one_with_the_nll_as_cost_is_iwae():
    sse, log_ratio = samples(5)
    log_px = gaussian_log_prob(sse, 7, 0.3)
    mask = torch.tensor([0.0, 1.0, 1.0, 1.0])
    expected = Iwae()(terms(sse, mask=mask, log_ratio=log_ratio)._replace(log_px=log_px))[0]
    for bound in (coherent_bound, additive_bound):
        value, _ = bound(log_ratio, -log_px, torch.tensor(1.0, dtype=torch.float64), mask)
        assert_close(-value.sum() / 9, expected, rtol=1e-12, atol=0)


def test_the_coherent_bounds_derivative_by_lambda_is_the_weighted_cost():
    cost, log_ratio = samples(6)
    weight = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64, requires_grad=True)  # one lambda per frame
    value, log_w = coherent_bound(log_ratio, cost, weight, torch.ones(4))
    (gradient,) = torch.autograd.grad(-value.sum(), weight)
    assert_close(gradient, (log_w.softmax(0)[..., None] * cost).sum((0, 1)))


def test_the_additive_form_stays_bounded_below_as_the_posterior_widens():
    values = []
    for variance in (1.0, 10.0, 1e2, 1e3, 1e4):  # p(z) = N(0, 1), x | z ~ N(z, 1), x = 1, lambda = 0.1
        torch.manual_seed(0)
        normal, q = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(0.0, math.sqrt(variance))
        z = q.sample((5, 20_000, 1)).double()
        cost = -torch.distributions.Normal(z, 1.0).log_prob(torch.ones_like(z))
        value, _ = additive_bound(normal.log_prob(z) - q.log_prob(z), cost, torch.tensor(0.1).double(), torch.ones(1))
        values.append(-value.mean().item())
        plain = -(iwae_bound((normal.log_prob(z) - q.log_prob(z) - cost).sum(-1)) + 0.9 * cost.mean(0)[:, 0]).mean()
    assert min(values) == values[0] > 0 and values == sorted(values)
    assert plain < -1000, "with unweighted samples it is not"


def test_the_reweighted_kl_is_what_both_forms_add_to_the_weighted_cost():
    # E_w[log p(x|z)] - L_K = E[sum w log q/p] + log K - H(w): the identity behind the additive form.
    cost, log_ratio = samples(7)
    log_w = (log_ratio - cost).sum(-1)
    w = log_w.softmax(0)
    left = -(w * cost.sum(-1)).sum(0) - iwae_bound(log_w)
    right = -(w * log_ratio.sum(-1)).sum(0) + math.log(7) + (w * w.log()).sum(0)
    assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_the_multiplier_follows_the_weighted_error_or_the_plain_one():
    sse, log_ratio = samples(8)
    moved = {}
    for on in ("iw", "q"):
        objective = geco_iwae(constraint_on=on, lambda_init=20.0)
        _, numbers = objective(terms(sse, log_ratio=log_ratio, dims=1))
        objective.after_step()
        moved[on] = objective.constraint.item()
    assert moved["iw"] < moved["q"] == pytest.approx(sse.mean().item() - 0.01)
    assert moved["iw"] == pytest.approx(numbers["rmse_iw"].item() ** 2 - 0.01)
    assert numbers["rmse"].item() ** 2 == pytest.approx(sse.mean().item())
    assert 1 <= numbers["effective_samples"] <= 8


@pytest.mark.parametrize("objective", [Iwae(), geco_iwae(), geco_iwae(form="additive"), geco_iwae(n_frames=4)])
def test_masked_frames_change_no_weighted_objective(objective):
    results = []
    for filler in (0.0, 9.0, math.inf):
        sse, log_ratio = (x.detach().clone() for x in samples(3))
        sse[..., 1], log_ratio[..., 1] = filler, -filler
        results.append(objective(terms(sse, mask=torch.tensor([1.0, 0.0, 1.0, 1.0]), log_ratio=log_ratio))[0])
    assert_close(results[0], results[1], rtol=0, atol=0)
    assert_close(results[0], results[2], rtol=0, atol=0)


# ---- weights of the KL


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"kl_warmup": 4}, [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]),
        ({"kl_cycle": 4}, [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0]),
        ({}, [1.0] * 7),
    ],
)
def test_the_kls_weight_rises_once_or_in_cycles(options, expected):
    objective, weights = build_objective(ElboConfig(beta=3.0, **options), n_frames=3, dims=4), []
    for _ in expected:
        loss, _ = objective(terms(torch.zeros(1, 3).double(), torch.ones(1, 3).double()))
        weights.append((loss - 0.5 * math.log(2 * math.pi)).item() / 3)
        objective.after_step()
    assert weights == pytest.approx(expected)


def test_free_bits_charge_each_latent_at_least_their_amount_and_leave_the_reported_elbo_alone():
    kl = torch.tensor([[[0.1, 2.0, 0.0], [0.3, 1.0, 0.0]]], dtype=torch.float64)  # (B, F, Z)
    objective = build_objective(ElboConfig(free_bits=0.5), n_frames=2, dims=4)
    sse = torch.zeros(1, 2, dtype=torch.float64)
    loss, numbers = objective(terms(sse, kl))
    plain, expected = Elbo(1.0)(terms(sse, kl))
    assert_close(loss - plain, torch.tensor(0.5 - 0.2 + 0.5, dtype=torch.float64))
    assert_close(numbers["elbo_nats_per_frame"], expected["elbo_nats_per_frame"])


def test_frames_that_no_loss_looks_at_have_no_say_in_the_verdict():
    objective = geco(tolerance=0.9, n_frames=3)
    sse = torch.full((2, 3), 0.25, dtype=torch.float64)
    objective(terms(sse, mask=torch.tensor([0.0, 1.0, 1.0])))
    objective.after_step()
    assert objective.verdict() == "met" and objective.rmse().item() == pytest.approx(0.5)
    assert "RMSE 0.5000" in objective.summary() and "room to spare" in objective.summary()


# ---- the adaptive rule


def adaptive(tolerance: float, n_frames: int | None = None) -> Geco:
    return Geco(tolerance, n_frames=n_frames).train()


@pytest.mark.parametrize("kappa2, lam, kl", [(0.5, 1.0, 0.346574), (0.1, 5.0, 1.151293), (0.01, 50.0, 2.302585)])
@pytest.mark.long
def test_the_adaptive_rule_solves_the_rate_distortion_toy(kappa2, lam, kl):
    objective = adaptive(math.sqrt(kappa2))
    mse, rate = rate_distortion(objective, [1.0], 1500)
    assert_close(objective.log_lambda.exp().item(), lam, rtol=0.03, atol=0)
    assert_close(mse.item(), kappa2, rtol=0.03, atol=0)
    assert_close(rate.item(), kl, rtol=0.03, atol=0)


@pytest.mark.long
def test_the_adaptive_rule_meets_the_tolerance_on_every_frame_and_lets_slack_frames_go():
    objective = adaptive(math.sqrt(0.1), n_frames=3)
    mse, kl = rate_distortion(objective, [1.0, 0.5, 0.05], 4000)
    lam = objective.log_lambda.exp()
    assert_close(lam[:2], torch.tensor([5.0, 5.0], dtype=torch.float64), rtol=0.02, atol=0)
    assert lam[2] < 0.02 * lam[0]
    assert_close(mse, torch.tensor([0.1, 0.1, 0.05], dtype=torch.float64), rtol=0.02, atol=0)


class Plant:
    """A model in two numbers: what it has learned, which takes time whatever lambda is, and what lambda buys.

    MSE moves with a lag of `lag` steps towards learned(t) + 0.05 lambda^-slope.
    """

    def __init__(self, slope: float, lag: float, learned: float) -> None:
        self.mse, self.slope, self.lag, self.learned, self.t = 0.1, slope, lag, learned, 0

    def step(self, weight: float, lr: float) -> float:
        target = self.learned * (1 + self.t / 30) ** -0.3 + 0.05 * weight**-self.slope
        self.mse += lr * (target - self.mse) / self.lag
        self.t += 1
        return self.mse


def control(objective: Geco | None, plant: Plant, steps: int, cosine: bool = False) -> tuple[float, float]:
    """Final MSE and largest lambda; without an objective the weight is the calibrated decoder's."""
    generator, peak = torch.Generator().manual_seed(0), 0.0
    lrs = [0.5 * (1 + math.cos(math.pi * i / steps)) if cosine else 1.0 for i in range(steps)]
    for i, lr in enumerate(lrs):
        weight = 1 / (2 * plant.mse) if objective is None else objective.log_lambda.exp().item()
        mse, peak = plant.step(weight, lr), max(peak, weight)
        if objective is not None:
            noisy = mse * math.exp(0.1 * torch.randn((), generator=generator))
            objective(terms(torch.full((1, 1), noisy, dtype=torch.float64)))
            objective.after_step(lr, steps - i - 1)
    return plant.mse, peak


@pytest.mark.parametrize(
    "factor, cosine, steps, lag",
    [*product((0.85, 1.4), (False, True), (1000,), (30,)), (1.0, False, 3000, 60)],
)
@pytest.mark.long
def test_lambda_settles_for_tolerances_around_the_calibrated_decoders_error(factor, cosine, steps, lag):
    def plant() -> Plant:
        return Plant(slope=0.4, lag=lag, learned=0.01)

    tolerance = factor * math.sqrt(control(None, plant(), steps, cosine)[0])
    objective = adaptive(tolerance)
    mse, peak = control(objective, plant(), steps, cosine)
    # Annealing lowers a real model's error; this plant it only slows down, which is less than the rule counts on.
    assert math.sqrt(mse) == pytest.approx(tolerance, rel=0.035 if cosine else 0.02)
    assert peak < 5 / (2 * tolerance**2)


@pytest.mark.long
def test_where_learning_limits_the_error_the_papers_rule_winds_up_and_the_adaptive_one_does_not():
    def plant() -> Plant:
        return Plant(slope=0.8, lag=60, learned=0.03)

    steps = 2000
    tolerance = math.sqrt(control(None, plant(), steps)[0])
    found = {}
    for name, rule in {"paper": paper(tolerance, decay=0.99, step_size=1.5e-2), "adaptive": AdaptiveRule}.items():
        objective = Geco(tolerance, rule).train()
        mse, peak = control(objective, plant(), steps)
        found[name] = (math.sqrt(mse) / tolerance, 2 * tolerance**2 * peak)
    assert found["paper"][1] > 10 and found["adaptive"][1] < 2
    assert abs(found["adaptive"][0] - 1) < 0.02


def test_lambda_hardly_rises_while_the_model_has_not_begun_to_learn():
    # Nothing lowers the error for the first half of the run, whatever the weight; then it falls at once.
    tolerance, steps = 0.05, 1000
    objective, weights = adaptive(tolerance), []
    for i in range(steps):
        mse = 0.01 if i < steps // 2 else 0.95 * tolerance**2
        objective(terms(torch.full((1, 1), mse, dtype=torch.float64)))
        objective.after_step(remaining=steps - 1 - i)
        weights.append(objective.log_lambda.exp().item())
    assert max(weights[: steps // 2]) < 10 / (2 * 0.01), "ten times the calibrated weight"
    assert weights[-1] < weights[steps // 2]


def test_an_infeasible_tolerance_ends_at_the_largest_integral_and_says_so():
    objective = adaptive(0.01)
    for i in range(1000):
        objective(terms(torch.full((1, 1), 0.04, dtype=torch.float64)))
        objective.after_step(remaining=999 - i)
    assert objective.verdict() == "infeasible"
    assert_close(objective.log_lambda.exp().item(), 30 * math.exp(0.1) / (2 * 0.04))


def test_lambda_follows_the_error_of_held_out_clips_once_it_is_known():
    moved = []
    for rmse in (None, 0.1, math.nan, 0.12):
        objective = adaptive(0.1)
        for _ in range(50):
            objective(terms(torch.full((1, 1), 0.1**2, dtype=torch.float64)))
            objective.after_step()
            if rmse is not None:
                objective.steer({"valid/constraint_rmse": rmse})
        moved.append(objective.rule.integral.item())
    assert moved[0] == moved[1] == moved[2] == 0 < moved[3]


def test_the_integral_rests_where_the_learning_rate_has_ended():
    objective = adaptive(0.1)
    for lr, mse in ((1.0, 0.0095), (0.0, 0.009), (0.0, 0.0105)):
        before = objective.rule.integral.item()
        objective(terms(torch.full((1, 1), mse, dtype=torch.float64)))
        objective.after_step(lr)
        assert (objective.rule.integral.item() == before) == (lr == 0.0)


@pytest.mark.parametrize("tolerance, better", [(0.1, "loose"), (0.05, "tight")])
def test_gecos_best_checkpoint_is_the_cheapest_within_the_tolerance_or_else_the_closest(tolerance, better):
    found = {"tight": (0.06, 25.6), "loose": (0.1, 14.2), "too loose": (0.12, 5.0)}
    merits = {
        name: adaptive(tolerance).merit({"valid/constraint_rmse": rmse, "valid/kl_nats_per_frame": kl})
        for name, (rmse, kl) in found.items()
    }
    assert max(merits, key=merits.get) == better
