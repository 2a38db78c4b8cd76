"""Bounds on test videos against the same thing written out, one video and one sample at a time."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from benchmarks.runs import markdown
from seqvae.evaluation import bounds as bounds_module
from seqvae.evaluation.bounds import POSTERIOR_KEY, measure_bounds, summarise
from seqvae.gaussian import keyed_noise
from tests.families import build, small

CPU = torch.device("cpu")


class Clips(torch.utils.data.Dataset):
    """Random uint8 clips (T, 1, 32, 32)."""

    def __init__(self, n_frames: int) -> None:
        self.video = torch.randint(256, (5, n_frames, 1, 32, 32), generator=torch.Generator().manual_seed(3)).byte()

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.video[i]


def models() -> dict[str, tuple]:
    """name -> model, clips, frames seen: one fewer than the video model was trained with, as a protocol may have it."""
    video, image = build(small("svg", z_dim=3), n_past=3).float(), build(small("image")).float()
    for model in (video, image):
        model.likelihood.calibrate(0.04)
    return {"video": (video, Clips(6), 2), "image": (image, Clips(1), 0)}


def measure(name: str, **options):
    model, clips, n_past = models()[name]
    settings = dict(n_past=n_past, n_importance=4, seed=7, batch_size=2, device=CPU, dequantise=False)
    return measure_bounds(model, clips, 5, **settings | options), n_past


@pytest.mark.parametrize("name", ["video", "image"])
def test_bounds_equal_those_written_out_video_by_video(name):
    bounds, n_past = measure(name)
    numbers = summarise(bounds, n_past)
    model, clips, _ = models()[name]
    n_predicted, elbos, log_ws = bounds.kl.shape[1], [], []
    for i in range(5):
        video = clips[i][None].float() / 255
        log_w = torch.zeros(4, n_predicted, dtype=torch.float64)
        for k in range(4):
            noise = keyed_noise(7, [i], [POSTERIOR_KEY + k], n_predicted, 3)
            with torch.no_grad():
                out = model(video, noise, 2) if name == "video" else model(video, noise)
            q, p = (Normal(g.mu[0].double(), (g.logvar[0].double() / 2).exp()) for g in (out.q, out.p))
            mean = out.params[0, 0].double().sigmoid()
            log_px = Normal(mean, 0.2).log_prob(video[0, -n_predicted:].double()).sum((-3, -2, -1))
            z = out.z[0, 0].double()
            log_w[k] = log_px + (p.log_prob(z) - q.log_prob(z)).sum(-1)
            if k == 0:
                elbos.append(log_px - kl_divergence(q, p).sum(-1))
        log_ws.append(log_w)
    elbo, log_w = torch.stack(elbos), torch.stack(log_ws, dim=1)
    parts = {"all": 0, "future": 1} if name == "video" else {"all": 0}
    assert {key for key in numbers if key.startswith(("elbo_", "iwae_"))} == {
        f"{kind}_{part}" for kind in ("elbo", "iwae_4") for part in parts
    }
    for part, first in parts.items():
        expected = elbo[:, first:].sum(1)
        assert_close(numbers[f"elbo_{part}"]["mean"], expected.mean().item(), rtol=1e-5, atol=1e-3)
        assert_close(
            numbers[f"elbo_{part}"]["interval95"], (1.96 * expected.std() / 5**0.5).item(), rtol=1e-4, atol=1e-2
        )
        expected = log_w[..., first:].sum(-1).logsumexp(0)
        assert_close(numbers[f"iwae_4_{part}"]["mean"], (expected - math.log(4)).mean().item(), rtol=1e-5, atol=1e-3)
    bits = -elbo.sum(1).mean() / n_predicted / 1024 / math.log(2) + math.log2(255)
    assert_close(numbers["bits_per_dim"], bits.item(), rtol=1e-5, atol=1e-5)
    assert not numbers["bits_bound_the_bytes"]
    assert_close(numbers["rate_nats_per_frame"], sum(numbers["kl_per_frame"]) / n_predicted)
    assert_close(numbers["rate_nats_per_frame"], sum(numbers["kl_per_latent"]))


@pytest.mark.parametrize("dequantise", [False, True])
@pytest.mark.parametrize("name", ["video", "image"])
def test_bounds_do_not_depend_on_the_batch_or_on_chunks(name, dequantise, monkeypatch):
    whole, n_past = measure(name, dequantise=dequantise, batch_size=5)
    monkeypatch.setattr(bounds_module, "FRAMES_AT_ONCE", 1)
    pieces, _ = measure(name, dequantise=dequantise, batch_size=1)
    a, b = summarise(whole, n_past), summarise(pieces, n_past)
    for key in a:
        assert_close(a[key], b[key], rtol=1e-5, atol=1e-3)
    assert a["bits_bound_the_bytes"] == dequantise


def test_dequantised_frames_are_what_is_scored():
    plain, n_past = measure("video")
    noisy, _ = measure("video", dequantise=True)
    assert (plain.log_density != noisy.log_density).all() and torch.equal(plain.kl, noisy.kl)


def test_a_table_has_a_row_per_run_and_says_which_failed():
    rows = {"a": {"bounds": {}, "x": 1.5}, "b": {"end": "training failed"}}
    assert markdown({"x": lambda r: f"{r['x']:.2f}"}, rows) == [
        "| | x |",
        "|---|---|",
        "| a | 1.50 |",
        "| b | training failed |",
    ]


@pytest.mark.parametrize("data", ["images", "video"])
@pytest.mark.long
def test_the_benchmark_tables_run_end_to_end(data, tmp_path, mnist_root, capsys):
    from benchmarks import decoder_table, image_table

    small = ["--root", str(mnist_root), "--out", str(tmp_path), "--steps", "2", "--width", "4", "--batch-size", "2"]
    small += ["--model.g-dim", "8", "--run.n-valid", "2"]
    if data == "images":
        image_table.main([*small, "--n-images", "4", "--methods", "vae", "geco-iwae", "--seeds", "0", "1"])
        decoder_table.main(["images", *small, "--n-videos", "3", "--decoders", "bitwise"])
    else:
        small += ["--data.n-future", "1", "--model.rnn-size", "8"]
        decoder_table.main(["video", *small, "--n-videos", "2", "--n-samples", "2", "--decoders", "gaussian"])
    out = capsys.readouterr().out
    for row in ("vae", "geco-iwae", "bitwise") if data == "images" else ("gaussian",):
        assert f"\n| {row} | " in out
    assert "nan" not in out
