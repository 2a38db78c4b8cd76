"""Shared by test modules: predictions and evaluations that no model made."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch

from seqvae.evaluation.predictions import Predictions
from seqvae.evaluation.results import Results
from seqvae.evaluation.scores import Scorer, score_all
from seqvae.metrics.protocols import own_protocol
from seqvae.metrics.published import published_rows, to_json
from tests.helpers import CPU

MEASURED = (
    "protocol definitions n_samples n_videos test_set frechet results best_of_n oracle_best_of_n diversity calibration "
    "bounds geco sigma step seed published"
).split()


class Made(Predictions):
    """Futures and sigmas made up: 5 videos, 7 samples, 2 frames seen, 3 predicted, 12 px."""

    def __init__(self, sigma: str | None = None, channels: int = 1) -> None:
        self.n_past, self.n_future, self.n_samples, self.n_videos = 2, 3, 7, 5
        generator = torch.Generator().manual_seed(0)
        frame = (channels, 12, 12)

        def bytes_(*shape: int) -> torch.Tensor:
            return torch.randint(60, 200, shape, generator=generator).byte()

        self.video, self.samples = bytes_(5, 5, *frame), bytes_(7, 5, 3, *frame)
        self.drawn, self.mean_image = bytes_(5, 3, *frame), torch.rand(frame, generator=generator)
        shapes = {None: None, "one": (), "image": (1, 1, 1), "pixel": frame}
        self.sigma = self.posterior_sigma = None
        if sigma == "one":
            self.sigma = self.posterior_sigma = torch.tensor(0.1234567, dtype=torch.float64)
        elif sigma is not None:
            rest = shapes[sigma]
            self.sigma = (0.1 + 0.2 * torch.rand(7, 5, 3, *rest, generator=generator)).half().float()
            self.posterior_sigma = (0.1 + 0.2 * torch.rand(5, 3, *rest, generator=generator)).half().float()

    def truth(self, videos):
        return self.video[list(videos)]

    def futures(self, videos, samples):
        part = self.samples[samples.start : samples.stop][:, list(videos)]
        per_frame = self.sigma is not None and self.sigma.ndim
        return part, self.sigma[samples.start : samples.stop][:, list(videos)] if per_frame else self.sigma

    def posterior(self, videos):
        per_frame = self.sigma is not None and self.sigma.ndim
        return self.drawn[list(videos)], self.posterior_sigma[list(videos)] if per_frame else self.posterior_sigma


def scored(predictions: Predictions, batch_size: int = 2, **options) -> Results:
    protocol = own_protocol("made", 2, 3, 7, 5)
    scorer = Scorer(protocol, protocol.frame_metrics, 7, 5)
    score_all(predictions, [scorer], batch_size=batch_size, device=CPU, **options)
    return Results(scorer)


def metrics(folder: Path) -> dict:
    found = json.loads((folder / "metrics.json").read_text())
    return {name: found[name] for name in MEASURED if name in found}


def foreign(path: Path, **changes) -> Path:
    """Another program's file: no more than the format asks for. A change is an array, or None to leave it out."""
    rng = np.random.default_rng(0)
    content = {
        "truth": rng.integers(256, size=(2, 5, 1, 32, 32), dtype=np.uint8),
        "samples": rng.integers(256, size=(2, 3, 3, 1, 32, 32), dtype=np.uint8),
    }
    attributes = {"format": "seqvae predictions", "version": 1, "n_past": 2}
    with h5py.File(path, "w") as file:
        for name, value in ((content | attributes) | changes).items():
            if value is not None:
                (file if name in content or isinstance(value, np.ndarray) else file.attrs)[name] = value
    return path


def external(file: h5py.File, folder: Path) -> None:
    (folder / "elsewhere").write_bytes(bytes(10_240))
    file.create_dataset("truth", (2, 5, 1, 32, 32), np.uint8, external=[(str(folder / "elsewhere"), 0, 10_240)])


def virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((2, 5, 1, 32, 32), np.uint8)
    layout[:] = h5py.VirtualSource(str(foreign(folder / "other.h5")), "truth", (2, 5, 1, 32, 32))
    file.create_virtual_dataset("truth", layout)


def linked(link: object) -> Callable[[h5py.File, Path], None]:
    def write(file: h5py.File, folder: Path) -> None:
        foreign(folder / "other.h5")
        file["truth"] = link

    return write


def unwritten(shape: tuple[int, ...], **options) -> Callable[[h5py.File, Path], None]:
    return lambda file, folder: file.create_dataset("truth", shape, np.uint8, **options) and None


def half_written(file: h5py.File, folder: Path) -> None:
    file.create_dataset("truth", (2, 5, 1, 32, 32), np.uint8, chunks=(1, 5, 1, 32, 32), compression="gzip")
    file["truth"][0] = 7


def plugin(file: h5py.File, folder: Path) -> None:
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((1, 5, 1, 32, 32))
    settings.set_filter(32_015, h5py.h5z.FLAG_OPTIONAL)
    space = h5py.h5s.create_simple((2, 5, 1, 32, 32))
    h5py.h5d.create(file.id, b"truth", h5py.h5t.STD_U8LE, space, settings)


STORED_ELSEWHERE = {
    "external storage": (external, "truth lies in other files"),
    "a virtual dataset": (virtual, "truth lies in other files"),
    "a link to another file": (linked(h5py.ExternalLink("other.h5", "truth")), "truth is a link"),
    "a link within the file": (linked(h5py.SoftLink("/samples")), "truth is a link"),
    "a link to nothing": (linked(h5py.SoftLink("/nothing")), "truth is a link"),
    "a group": (lambda file, folder: file.create_group("truth") and None, "truth is missing"),
    "nothing allocated": (unwritten((10**9, 5, 1, 32, 32)), "not all of it was written"),
    "no chunk allocated": (unwritten((10**9, 5, 1, 32, 32), chunks=(1, 5, 1, 32, 32)), "not all of it was written"),
    "half of it": (half_written, "not all of it was written"),
    "a filter that is a plugin": (plugin, "truth is compressed by a plugin"),
}


N_PAST = 2


N_FUTURE = 6


def estimate(mean: float, half: float = 0.25) -> dict:
    curve = [mean + 0.1 * i for i in range(N_FUTURE)]
    return {"mean": mean, "interval95": half, "per_frame": {"mean": curve, "interval95": [half] * N_FUTURE}}


def facts(**changes) -> dict:
    """metrics.json with every entry that an evaluation can leave."""
    methods = {"best": 20.5, "mean": 18.25, "worst": 16.0, "posterior": 24.0, "oracle best": 23.5, "oracle mean": 21.0}
    methods |= {"copy last frame": 14.5, "mean of context": 15.5, "mean training image": 13.0, "black": 12.75}
    by_n = {
        str(n): {"mean": 18 + math.log(n), "low": 17.5 + math.log(n), "high": 18.7 + math.log(n)} for n in (1, 2, 5)
    }
    calibration = {"ratio": estimate(1.75, 0.05), "coverage": {"0.5": estimate(0.4), "0.9": estimate(0.8)}}
    kl = [1.5] * (N_PAST + N_FUTURE - 1)
    distance = {"distance": 321.5, "floor": 12.5, "n_real": 4, "n_fake": 4, "warning": "few videos"}
    distance |= {"definition": "logits", "sha256": "cd" * 32}
    content = {
        "protocol": "srvp-2020 (5 of 100 samples, 4 of 5000 videos)",
        "definitions": {"name": "srvp-2020", "data": "moving_mnist", "n_past": N_PAST, "n_future": N_FUTURE}
        | {"n_samples": 100, "n_videos": 5000, "best_by": None, "norm": "eval mode", "source": "somebody 2020"},
        "metrics": {
            "psnr": {"label": "PSNR (dB)", "definition": "ten log ten", "higher_is_better": True},
            "lpips": {"label": "LPIPS", "definition": "learned distance", "higher_is_better": False},
        },
        "n_samples": 5,
        "n_videos": 4,
        "test_set": {"name": "smmnist_srvp", "sha256": "ab" * 32},
        "results": {m: {"psnr": estimate(v), "lpips": estimate(2 / v, 0.01)} for m, v in methods.items()},
        "best_of_n": {"psnr": by_n, "lpips": by_n},
        "oracle_best_of_n": {"psnr": by_n, "lpips": by_n},
        "diversity": {"definition": "squared difference"} | estimate(0.0125, 0.001),
        "calibration": {"definition": "residual", "prediction": calibration, "posterior": calibration},
        "published": to_json(published_rows("srvp-2020", "moving_mnist")),
        "frechet": {"FVD": distance},
        "left_out": ["SSIM: left out, because"],
        "bounds": {"elbo_all": {"mean": 9876.5, "interval95": 4.5}, "rate_nats_per_frame": 1.5, "rmse": 0.05}
        | {"distortion_nats_per_frame": -77.0, "bits_per_dim": 3.25, "bits_bound_the_bytes": False}
        | {"kl_per_frame": kl, "kl_per_latent": [1.0, 0.5, 0.0], "active_units": 2},
        "geco": {"verdict": "met", "tolerance": 0.06, "rmse": 0.05, "summary": "RMSE 0.05"},
        "run": "runs/first",
        "checkpoint": "best",
        "step": 700,
        "seed": 3,
        "sigma": 0.125,
        "command": "python evaluate.py runs/first",
        "versions": {"torch": "2.99"},
        "config": {"model": {"z_dim": 3}, "optim": {"steps": 700, "ema": None}},
    }
    return content | changes


def image_facts(**changes) -> dict:
    error = {"posterior mean": {"mean": 14.5, "interval95": 0.5}, "posterior sample": {"mean": 15.5, "interval95": 0.5}}
    bounds = {"rate_nats_per_frame": 11.5, "bits_per_dim": 1.25, "bits_bound_the_bytes": True, "kl_per_frame": [11.5]}
    content = {"n_images": 50, "test_set": {"name": "mnist", "sha256": "ef" * 32}, "squared_error": error}
    return content | {"bounds": bounds, "run": "runs/img", "step": 9} | changes
