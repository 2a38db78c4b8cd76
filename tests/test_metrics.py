import itertools

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.testing import assert_close

from seqvae.metrics.best_of_n import BestOfN, expected_best, over_videos, summarise
from seqvae.metrics.frame import CHUNK_VALUES, psnr, ssim
from seqvae.metrics.protocols import PROTOCOLS, Protocol, find_protocol, label, own_protocol


def pictures(kind: str, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two (2, 3, C, 64, 48) videos in [0, 1] that resemble each other."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :48] / 64
    phase = rng.uniform(0, 6, (2, 3, channels, 1, 1))
    smooth = 0.5 + 0.2 * np.sin(9 * x + phase) + 0.2 * np.cos(7 * y - phase)
    frames = {
        "natural": smooth,
        "digits": (smooth > 0.7).astype(float),
        "bright": np.full_like(smooth, 0.98),
    }[kind]
    noise = rng.normal(0, 0.002 if kind == "bright" else 0.1, frames.shape)
    pred = (frames + noise).clip(0, 1)
    return torch.tensor(pred, dtype=torch.float32), torch.tensor(frames, dtype=torch.float32)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind, ssim_error", [("natural", 1e-5), ("digits", 1e-5), ("bright", 6e-5)])
def test_psnr_and_ssim_equal_scikit_image_in_float64(kind, ssim_error, channels):
    pred, target = pictures(kind, channels)
    expected_psnr, expected_ssim = torch.empty(2, 2, 3, dtype=torch.float64)
    for b, t in np.ndindex(2, 3):
        pairs = [(p.double().numpy(), q.double().numpy()) for p, q in zip(pred[b, t], target[b, t], strict=True)]
        expected_psnr[b, t] = np.mean([peak_signal_noise_ratio(q, p, data_range=1) for p, q in pairs])
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
        maps = [structural_similarity(q, p, full=True, **options)[1] for p, q in pairs]
        expected_ssim[b, t] = np.mean([m[5:-5, 5:-5] for m in maps])
    assert_close(psnr(pred, target).double(), expected_psnr, atol=1e-4, rtol=0)
    assert_close(ssim(pred, target).double(), expected_ssim, atol=ssim_error, rtol=0)


def test_identical_frames_score_100_db_and_1():
    frames, _ = pictures("natural", 3)
    assert_close(psnr(frames, frames), torch.full((2, 3), 100.0))
    assert_close(ssim(frames, frames), torch.ones(2, 3))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_a_frame_s_score_does_not_depend_on_the_other_frames(metric):
    torch.manual_seed(0)
    n = 2 * CHUNK_VALUES // 128**2 + 3  # three chunks, the last one short
    pred, target = torch.rand(2, n, 1, 128, 128)
    alone = torch.stack([metric(pred[i], target[i]) for i in range(0, n, 40)])
    assert_close(metric(pred, target)[::40], alone, atol=1e-6, rtol=1e-6)
    target[1:] = target[:1] / 2  # new neighbours, and a new range of the batch
    assert_close(metric(pred, target)[0], alone[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_metrics_are_float32_under_autocast_and_for_bfloat16_and_leave_the_tf32_switch(metric):
    pred, target = pictures("natural", 1)
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(metric(pred, target), metric(pred.double(), target.double()), atol=0, rtol=0)
    assert metric(pred.bfloat16(), target.bfloat16()).dtype == torch.float32
    assert conv.fp32_precision == before


def test_frames_that_cannot_be_scored_are_refused_in_one_line():
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match=r"^pred is \(2, 1, 16, 16\), target is \(1, 16, 16\), expected .*W\)$"):
            metric(torch.zeros(2, 1, 16, 16), torch.zeros(1, 16, 16))
        with pytest.raises(ValueError, match=r"^pred is torch.uint8, target is torch.float32, expected .*$"):
            metric(torch.zeros(1, 16, 16, dtype=torch.uint8), torch.zeros(1, 16, 16))
    with pytest.raises(ValueError, match=r"^ssim needs frames of at least 11x11 px, got \(1, 10, 16\)$"):
        ssim(torch.zeros(1, 10, 16), torch.zeros(1, 10, 16))
    assert ssim(torch.ones(1, 11, 11), torch.ones(1, 11, 11)).shape == ()


def test_best_of_1_equals_the_plain_metric():
    pred, target = pictures("natural", 1)
    scores = psnr(pred, target)  # (V, T)
    summary = summarise(scores[None].numpy())
    for value in (summary.best, summary.mean, summary.worst):
        np.testing.assert_allclose(value, scores.mean(1), rtol=1e-6)
    np.testing.assert_allclose(summary.best_curve.mean, scores.mean(0), rtol=1e-6)
    assert list(summary.by_n) == [1]


def test_best_of_n_never_gets_worse_and_runs_from_the_mean_to_the_best():
    scores = np.random.default_rng(0).normal(size=(100, 6, 4))
    summary = summarise(scores)
    assert list(summary.by_n) == [1, 2, 5, 10, 20, 50, 100]
    means = [e.mean for e in summary.by_n.values()]
    assert (np.diff(means) > 0).all()
    assert (summary.worst < summary.mean).all() and (summary.mean < summary.best).all()
    np.testing.assert_allclose([means[0], means[-1]], [summary.mean.mean(), summary.best.mean()])
    np.testing.assert_allclose(summary.best_curve.mean.mean(), summary.best.mean())
    assert list(summarise(scores[:7]).by_n) == [1, 2, 5, 7]


def test_expected_best_equals_the_average_over_all_subsets():
    values = np.random.default_rng(1).normal(size=(7, 3)).round(1)  # with ties
    ranked = -np.sort(-values, axis=0)
    for n in range(1, 8):
        subsets = [values[list(s)].max(0) for s in itertools.combinations(range(7), n)]
        np.testing.assert_allclose(expected_best(ranked, n), np.mean(subsets, axis=0), rtol=1e-12)


def test_each_metric_picks_its_own_best_sample_unless_one_picks_for_all():
    scores = BestOfN(n_samples=2, n_videos=2, n_frames=2)
    psnr_scores = torch.tensor([[[20.0, 10.0], [9.0, 9.0]], [[12.0, 12.0], [8.0, 8.0]]])
    lpips_scores = torch.tensor([[[0.3, 0.3], [0.1, 0.1]], [[0.2, 0.2], [0.4, 0.4]]])
    scores.add(0, 0, psnr=psnr_scores, lpips=lpips_scores)
    own = scores.summary("psnr")
    assert own.best_index.tolist() == [0, 0] and own.best.tolist() == [15, 9] and own.worst.tolist() == [12, 8]
    assert own.best_curve.mean.tolist() == [14.5, 9.5]
    low = scores.summary("lpips", higher_is_better=False)
    assert low.best_index.tolist() == [1, 0]
    np.testing.assert_allclose(low.best, [0.2, 0.1], rtol=1e-6)
    by_lpips = scores.summary("psnr", chosen_by="lpips", higher_is_better=False)
    assert by_lpips.best.tolist() == [12, 9] and by_lpips.by_n[2].mean == 10.5


def test_scores_collected_in_chunks_equal_those_collected_at_once():
    values = torch.randn(4, 5, 3)
    scores = BestOfN(4, 5, 3)
    for n, v in [(2, 3), (0, 0), (2, 0), (0, 3)]:
        scores.add(n, v, psnr=values[n : n + 2, v : v + 3])
    np.testing.assert_array_equal(scores.scores["psnr"], values)


def test_scores_that_do_not_fit_are_missing_or_not_finite_are_refused_in_one_line():
    scores = BestOfN(4, 5, 3)
    for bad in (torch.zeros(2, 5, 3), torch.zeros(1, 5, 2), torch.zeros(5, 3)):
        with pytest.raises(ValueError, match=r"^psnr is \(.*\) from sample 3, video 0, expected .* \(4, 5, 3\)$"):
            scores.add(3, 0, psnr=bad)
    with pytest.raises(ValueError, match=r"^no scores of psnr were added, there are \[\]$"):
        scores.summary("psnr")
    scores.add(0, 0, psnr=torch.zeros(3, 5, 3))
    with pytest.raises(ValueError, match="^psnr of sample 3, video 0 is missing or not finite$"):
        scores.summary("psnr")
    with pytest.raises(ValueError, match=r"^scores are \(2, 3\), chosen by \(2, 3\), expected .*$"):
        summarise(np.zeros((2, 3)))


def test_the_interval_over_videos_is_1_96_standard_errors_and_0_for_one_video():
    values = np.array([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]])
    mean, half_width = over_videos(values)
    np.testing.assert_allclose(mean, [3, 2])
    np.testing.assert_allclose(half_width, [1.96 * 2 / np.sqrt(3), 0])
    assert over_videos(values[:1]).half_width.tolist() == [0, 0]


def test_the_label_says_what_was_left_out():
    srvp = find_protocol("srvp-2020", "smmnist_srvp")
    assert label(srvp, 10, 256) == "srvp-2020 (10 of 100 samples, 256 of 5000 videos)"
    assert label(srvp, 100, 256) == "srvp-2020 (256 of 5000 videos)"
    assert label(srvp, 100, 5000) == "srvp-2020"
    assert label(own_protocol("digits", 5, 10, n_samples=10, n_videos=64), 10, 8) == "own (8 of 64 videos)"
    with pytest.raises(ValueError, match="^srvp-2020 has 100 samples, got 200$"):
        label(srvp, 200, 5000)


@pytest.mark.parametrize("key", PROTOCOLS)
def test_every_protocol_is_found_under_its_name_and_test_set(key):
    assert find_protocol(*key) is PROTOCOLS[key] and (PROTOCOLS[key].name, PROTOCOLS[key].test_set) == key


def test_own_uses_the_metrics_of_srvp_2020_and_the_lengths_of_the_run():
    own, srvp = own_protocol("digits", 3, 7, 10, 64), PROTOCOLS["srvp-2020", "smmnist_srvp"]
    assert (own.n_past, own.n_future, own.n_samples, own.n_videos) == (3, 7, 10, 64)
    assert (own.psnr, own.ssim, own.best_by) == (srvp.psnr, srvp.ssim, srvp.best_by)
    with pytest.raises(ValueError, match="^no protocol srvp-2020 on digits, there are: .*$"):
        find_protocol("srvp-2020", "digits")
    with pytest.raises(ValueError, match="^protocol x: n_past must be >= 1, got 0$"):
        Protocol(name="x", test_set="digits", n_past=0, n_future=1, n_samples=1, n_videos=1)
