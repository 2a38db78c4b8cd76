import itertools

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.testing import assert_close
from torchvision.transforms.functional import to_pil_image

from seqvae.config import MovingMnistConfig, RunConfig, SvgConfig
from seqvae.evaluation.choose import choose_protocol
from seqvae.metrics.best_of_n import BestOfN, expected_best, over_videos, summarise
from seqvae.metrics.frame import (
    grey,
    psnr,
    psnr_of_changes,
    psnr_of_rest,
    psnr_of_video,
    ssim,
    ssim_mcvd,
    ssim_mcvd_binary,
    ssim_svg,
    without_tf32,
)
from seqvae.metrics.protocols import PROTOCOLS, Protocol, find_protocol, label, own_protocol

KINDS = ("random", "smooth", "binary", "near black", "near white")
# Of every protocol; the reference of a metric NAME is `reference_NAME` below.
METRICS = {metric.score: metric for p in PROTOCOLS.values() for metric in p.metrics if metric.network is None}
PER_FRAME = tuple(score for score, metric in METRICS.items() if metric.per_frame)


def pictures(kind: str, channels: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Two (2, 3, C, 64, 48) videos in [0, 1] that resemble each other."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :48] / 64
    phase = rng.uniform(0, 6, (2, 3, channels, 1, 1))
    smooth = 0.5 + 0.2 * np.sin(9 * x + phase) + 0.2 * np.cos(7 * y - phase)
    frames = {
        "random": rng.uniform(size=smooth.shape),
        "smooth": smooth,
        "binary": (smooth > 0.7).astype(float),
        "near black": 0.01 * smooth,
        "near white": np.full_like(smooth, 0.98),
    }[kind]
    noise = rng.normal(0, 0.002 if kind.startswith("near") else 0.1, frames.shape)
    pred = (frames + noise).clip(0, 1)
    return torch.tensor(pred, dtype=dtype), torch.tensor(frames, dtype=dtype)


def reference_psnr(pred: torch.Tensor, target: torch.Tensor) -> float:
    return np.mean([peak_signal_noise_ratio(t, p, data_range=1) for p, t in channel_pairs(pred, target)])


def reference_ssim(pred: torch.Tensor, target: torch.Tensor) -> float:
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    return np.mean([structural_similarity(t, p, **options) for p, t in channel_pairs(pred, target)])


def reference_ssim_svg(pred: torch.Tensor, target: torch.Tensor) -> float:
    return np.mean([structural_similarity(t, p, data_range=2) for p, t in channel_pairs(pred, target)])


def reference_ssim_mcvd(pred: torch.Tensor, target: torch.Tensor) -> float:
    p, t = (np.asarray(to_pil_image(frame).convert("RGB").convert("L")) for frame in (pred, target))
    return structural_similarity(p, t, data_range=255, gaussian_weights=True, use_sample_covariance=False)


def reference_ssim_mcvd_binary(pred: torch.Tensor, target: torch.Tensor) -> float:
    return reference_ssim_mcvd(torch.round(pred), torch.round(target))


def channel_pairs(pred: torch.Tensor, target: torch.Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(pred.double().numpy(), target.double().numpy(), strict=True))


@pytest.mark.parametrize("dtype, error", [(torch.float64, 1e-9), (torch.float32, 2e-5)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", PER_FRAME)
def test_every_definition_equals_its_reference(metric, kind, channels, dtype, error):
    pred, target = pictures(kind, channels, dtype)
    reference = globals()[f"reference_{metric.__name__}"]
    expected = [[reference(pred[v, t], target[v, t]) for t in range(3)] for v in range(2)]
    assert_close(metric(pred, target), torch.tensor(expected, dtype=dtype), atol=error, rtol=0)


@pytest.mark.parametrize("dtype, error", [(torch.float64, 1e-9), (torch.float32, 2e-5)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_psnr_of_a_video_equals_scikit_image_on_the_whole_video(kind, channels, dtype, error):
    pred, target = pictures(kind, channels, dtype)
    videos = [(p.double().numpy(), t.double().numpy()) for p, t in zip(pred, target, strict=True)]
    expected = [peak_signal_noise_ratio(t, p, data_range=1) for p, t in videos]
    assert_close(psnr_of_video(pred, target), torch.tensor(expected, dtype=dtype), atol=error, rtol=0)


def test_psnr_of_a_video_is_below_the_mean_over_frames_unless_all_frames_err_equally():
    target = torch.zeros(2, 3, 1, 16, 16)
    pred = target + torch.tensor([[0.1, 0.1, 0.1], [0.01, 0.1, 0.3]]).view(2, 3, 1, 1, 1)
    of_video, of_frames = psnr_of_video(pred, target), psnr(pred, target).mean(1)
    assert_close(of_video[0], of_frames[0])
    assert of_video[1] < of_frames[1] - 5  # 14.7 and 23.5 dB


def test_psnr_of_changes_leaves_out_what_stands_still_and_counts_the_rest_as_psnr_does():
    target = torch.zeros(2, 3, 1, 16, 16)
    target[0, 1, :, :4] = 0.5  # a quarter of the first video changes, nothing in the second one
    pred = target + 0.01
    pred[:, :, :, :4] += 0.09
    assert_close(psnr_of_changes(pred, target)[0], torch.full((3,), 20.0))
    assert_close(psnr_of_rest(pred, target)[0], torch.full((3,), 40.0))
    assert_close(psnr_of_changes(pred, target)[1], psnr(pred, target)[1])
    target[:, 1] = 0.5
    assert_close(psnr_of_changes(pred, target), psnr(pred, target))
    assert_close(psnr_of_rest(pred, target), psnr(pred, target))  # no pixel stands still
    with pytest.raises(ValueError, match=r"^expected whole videos"):
        psnr_of_changes(torch.zeros(1, 16, 16), torch.zeros(1, 16, 16))


def test_identical_frames_score_100_db_and_1():
    frames, _ = pictures("smooth", 3)
    assert_close(psnr(frames, frames), torch.full((2, 3), 100.0))
    assert_close(psnr_of_video(frames, frames), torch.full((2,), 100.0))
    for metric in (ssim, ssim_svg, ssim_mcvd, ssim_mcvd_binary):
        assert_close(metric(frames, frames), torch.ones(2, 3))


@pytest.mark.parametrize("score", PER_FRAME)
def test_a_metrics_direction_is_that_in_which_frames_get_better(score):
    frames, _ = pictures("smooth", 3)
    noise = torch.rand(frames.shape, generator=torch.Generator().manual_seed(0))
    near, far = (score(((1 - k) * frames + k * noise), frames) for k in (0.1, 0.5))
    assert ((near > far) == METRICS[score].higher_is_better).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grey_equals_pil_and_leaves_every_8_bit_level_as_it_is(dtype):
    levels = torch.arange(256).view(1, 16, 16)
    assert_close(grey(levels.to(dtype) / 255), levels.to(dtype) / 255, atol=0, rtol=0)
    frames = torch.rand(3, 64, 64, dtype=dtype, generator=torch.Generator().manual_seed(0))
    expected = np.array(to_pil_image(frames).convert("L"))
    np.testing.assert_array_equal((255 * grey(frames)).round()[0].numpy(), expected)
    with pytest.raises(ValueError, match=r"^8-bit grey is defined for 1 or 3 channels, got frames \(4, 8, 8\)$"):
        grey(torch.zeros(4, 8, 8))


def test_binary_ssim_sees_only_on_which_side_of_a_half_a_pixel_lies():
    _, target = pictures("binary", 1)
    dim = 0.5 * target + 0.25  # 0 -> 0.25, 1 -> 0.75
    assert_close(ssim_mcvd_binary(dim, target), torch.ones(2, 3))
    assert (ssim_mcvd(dim, target) < 0.9).all()


@pytest.mark.parametrize("metric", PER_FRAME)
def test_a_frame_s_score_depends_neither_on_the_other_frames_nor_on_the_chunk_size(metric, monkeypatch):
    torch.manual_seed(0)
    pred, target = torch.rand(2, 11, 3, 32, 24)
    at_once = metric(pred, target)
    for frames in (1, 4):  # 11 chunks; three, the last one short
        monkeypatch.setattr("seqvae.metrics.frame.CHUNK_VALUES", frames * 3 * 32 * 24)
        assert_close(metric(pred, target), at_once, atol=1e-6, rtol=1e-6)
    assert_close(torch.stack([metric(p, t) for p, t in zip(pred, target)]), at_once, atol=1e-6, rtol=1e-6)
    target[1:] = target[:1] / 2  # new neighbours, and a new range of the batch
    assert_close(metric(pred, target)[0], at_once[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("metric", [*PER_FRAME, psnr_of_video, psnr_of_changes, psnr_of_rest])
def test_metrics_ignore_autocast_score_bfloat16_in_float32_and_leave_the_tf32_switch(metric):
    pred, target = pictures("smooth", 1)
    conv = torch.backends.cudnn.conv
    before, expected = conv.fp32_precision, metric(pred, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(metric(pred, target), expected, atol=0, rtol=0)
    assert metric(pred.bfloat16(), target.bfloat16()).dtype == torch.float32
    assert metric(pred.double(), target).dtype == torch.float64
    assert conv.fp32_precision == before


@pytest.mark.parametrize("metric", [*PER_FRAME, psnr_of_video, psnr_of_changes, psnr_of_rest])
def test_frames_that_cannot_be_scored_are_refused_in_one_line(metric):
    frames = torch.zeros(2, 1, 16, 16)
    with pytest.raises(ValueError, match=r"^pred is \(2, 1, 16, 16\), target is \(1, 16, 16\), expected .*W\)$"):
        metric(frames, frames[0])
    with pytest.raises(ValueError, match=r"^pred is torch.uint8, target is torch.float32, expected .* divide .* 255$"):
        metric(frames.byte(), frames)
    for bad in (float("nan"), float("inf")):
        broken = frames.clone()
        broken[1, 0, 3, 5] = bad
        with pytest.raises(ValueError, match=r"^target holds 1 NaN or infinite values, the first in frame \(1,\)$"):
            metric(frames, broken)


def test_frames_smaller_than_the_window_or_without_a_time_axis_are_refused_in_one_line():
    for metric, window in [(ssim, 11), (ssim_svg, 7), (ssim_mcvd, 11), (ssim_mcvd_binary, 11)]:
        small, fits = torch.ones(1, window - 1, 16), torch.ones(1, window, window)
        with pytest.raises(
            ValueError, match=rf"^ssim needs frames of at least {window}x{window} px, got \(1, {window - 1}, 16\)$"
        ):
            metric(small, small)
        assert metric(fits, fits).shape == ()
    with pytest.raises(ValueError, match=r"^psnr_of_video scores whole videos \(..., T, C, H, W\), got \(1, 16, 16\)$"):
        psnr_of_video(torch.zeros(1, 16, 16), torch.zeros(1, 16, 16))


def test_best_of_1_equals_the_plain_metric():
    pred, target = pictures("smooth", 1)
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
    assert np.isnan(over_videos(values[:1]).half_width).all(), "of one video it is not known"


def test_the_label_says_what_was_left_out():
    srvp = find_protocol("srvp-2020", "moving_mnist")
    assert label(srvp, 10, 256) == "srvp-2020 (10 of 100 samples, 256 of 5000 videos)"
    assert label(srvp, 100, 256) == "srvp-2020 (256 of 5000 videos)"
    assert label(srvp, 100, 5000) == "srvp-2020"
    assert label(own_protocol("digits", 5, 10, n_samples=10, n_videos=64), 10, 8) == "own (8 of 64 videos)"
    with pytest.raises(ValueError, match="^srvp-2020 has 100 samples, got 200$"):
        label(srvp, 200, 5000)


@pytest.mark.parametrize("key", PROTOCOLS)
def test_every_protocol_is_found_under_its_name_and_data(key):
    assert find_protocol(*key) is PROTOCOLS[key] and (PROTOCOLS[key].name, PROTOCOLS[key].data) == key


def test_own_uses_the_metrics_of_srvp_2020_and_the_lengths_of_the_run():
    own, srvp = own_protocol("digits", 3, 7, 10, 64), PROTOCOLS["srvp-2020", "moving_mnist"]
    assert (own.n_past, own.n_future, own.n_samples, own.n_videos) == (3, 7, 10, 64)
    assert (own.metrics, own.best_by) == (srvp.metrics, srvp.best_by)
    with pytest.raises(ValueError, match="^no protocol srvp-2020 on digits, there are: .*$"):
        find_protocol("srvp-2020", "digits")
    with pytest.raises(ValueError, match="^protocol x: n_past must be >= 1, got 0$"):
        Protocol(name="x", data="digits", test_set="digits", n_past=0, n_future=1, n_samples=1, n_videos=1)


def test_full_float32_reaches_convolutions_lstms_and_products_and_ends_with_the_block():
    switches = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul)
    before = [switch.fp32_precision for switch in switches]
    with without_tf32():
        assert {switch.fp32_precision for switch in switches} == {"ieee"}
    assert [switch.fp32_precision for switch in switches] == before


def test_a_protocol_on_the_other_kind_of_moving_mnist_says_so_in_its_name():
    def name(protocol: str, digit_size: int, prior: str = "learned") -> str:
        data = MovingMnistConfig(digit_size=digit_size)
        chosen = choose_protocol(RunConfig(data=data, model=SvgConfig(prior=prior)), protocol)
        return label(chosen, 1 if prior == "none" else chosen.n_samples, chosen.n_videos)

    assert name("mcvd-2022", 32) == "mcvd-2022" and name("srvp-2020", 28) == "srvp-2020"
    assert name("mcvd-2022", 28) == "mcvd-2022 (trained on 28-px digits, tested on 32-px ones)"
    assert name("svg-2018", 28) == "svg-2018 (trained on 28-px digits, tested on 32-px ones)"
    assert name("srvp-2020", 32) == "srvp-2020 (trained on 32-px digits, tested on 28-px ones)"
    assert name("srvp-2020", 28, prior="none") == "srvp-2020 (1 of 100 samples)"
