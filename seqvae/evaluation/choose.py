"""Choose the protocol and the test set for a run."""

import dataclasses

from seqvae.config import DataConfig, RunConfig
from seqvae.metrics.protocols import PROTOCOLS, VIDEO_LENGTHS, Protocol, own_protocol

TEST_SEQ, TEST_SEQ_FRAMES = "mnist_test_seq", 20  # torchvision's MovingMNIST: name of the dataset, frames of a video
OWN_SAMPLES, OWN_VIDEOS = 10, 64


def choose_protocol(
    cfg: RunConfig,
    name: str,
    *,
    n_samples: int | None = None,
    n_videos: int | None = None,
    test_set: str | None = None,
) -> Protocol:
    """The protocol `name` for the run's data (auto: the published one it has, or else own).

    Moving MNIST's digits of 28 and of 32 px also bounce differently. A protocol on the other kind than the run's says
    so in its name.

    Args:
        n_samples, n_videos: asked for; `own` has as many as are.
        test_set: TEST_SEQ, for `own`.

    Raises:
        ValueError: a protocol, test set or number of samples that does not fit the run.
    """
    data, deterministic = cfg.data, not cfg.model.has_latent
    if deterministic and n_samples not in (None, 1):
        raise ValueError(f"--n-samples {n_samples}: a model without latent has one future per video; drop it")
    published = published_protocols(data) if test_set is None else {}
    name = next(iter(published), "own") if name == "auto" else name
    if name == "own":
        sizes = (1 if deterministic else n_samples or OWN_SAMPLES, n_videos or OWN_VIDEOS)
        if test_set is not None:
            return _test_seq_protocol(data, *sizes)
        n_future = VIDEO_LENGTHS.get(data.name, data.n_past + data.n_future) - data.n_past
        return own_protocol(data.name, data.n_past, n_future, *sizes)
    if name not in published:
        known = "; ".join(f"{p.data} {p.requires or ''}".strip() for p in PROTOCOLS.values() if p.name == name)
        raise ValueError(
            f"--protocol {name} is defined on {known}, and this run was trained on "
            f"{data.name}, image-size {data.image_size}, {data.options()}; use --protocol own"
        )
    protocol, trained = published[name], getattr(data, "digit_size", None)
    if protocol.digit_size not in (None, trained):
        note = f"trained on {trained}-px digits, tested on {protocol.digit_size}-px ones"
        return dataclasses.replace(protocol, note=note)
    return protocol


def published_protocols(data: DataConfig) -> dict[str, Protocol]:
    """The published protocols whose test set a run's data belongs to, by name; those with its size of digits first."""
    found = [
        p
        for p in PROTOCOLS.values()
        if p.data == data.name and all(getattr(data, name) == value for name, value in p.requires.items())
    ]
    return {
        p.name: p for p in sorted(found, key=lambda p: p.digit_size not in (None, getattr(data, "digit_size", None)))
    }


def test_set_of(protocol: Protocol, data: DataConfig) -> dict[str, object]:
    """Arguments of load_dataset, but for the root: the protocol's test set, or the run's own test split."""
    arguments = data.arguments()
    del arguments["root"]
    if protocol.test_set != data.name:
        arguments = {name: value for name, value in arguments.items() if name not in data.options()}
    arguments |= {"name": protocol.test_set, "seq_len": protocol.n_past + protocol.n_future} | protocol.options
    return arguments if protocol.name == "own" else arguments | {"seed": 0}


def _test_seq_protocol(data: DataConfig, n_samples: int, n_videos: int) -> Protocol:
    """The run's number of observed frames; all the rest of the 20 frames are predicted."""
    if data.name not in ("digits", "moving_mnist") or data.image_size != 64 or data.n_past >= TEST_SEQ_FRAMES:
        raise ValueError(
            f"--test-set {TEST_SEQ} holds 64-px Moving MNIST of {TEST_SEQ_FRAMES} frames, and this run was trained on "
            f"{data.name}, image-size {data.image_size}, n-past {data.n_past}; drop it"
        )
    return own_protocol(data.name, data.n_past, TEST_SEQ_FRAMES - data.n_past, n_samples, n_videos, TEST_SEQ)
