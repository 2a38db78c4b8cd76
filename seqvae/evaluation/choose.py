"""Which protocol a run is scored under, and on which test set."""

import dataclasses

from seqvae.config import DataConfig, RunConfig
from seqvae.metrics.protocols import Protocol, find_protocol, own_protocol

# What a run's data has to be for the published Moving MNIST test set to be its own.
PUBLISHED_DIGITS = dict(glyphs="mnist", n_digits=2, deterministic=False, min_speed=0, max_speed=4)
SRVP_DIGITS = 28  # digit size of SRVP's Moving MNIST, which also bounce otherwise than SVG's of 32 px
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

    The two kinds of Moving MNIST differ in size and bounces. A protocol on the other kind than the run's says so in its
    name.

    Args:
        n_samples, n_videos: asked for; `own` has as many as are.
        test_set: TEST_SEQ, for `own`.

    Raises:
        ValueError: a protocol, test set or number of samples that does not fit the run.
    """
    data, deterministic = cfg.data, not cfg.model.has_latent
    if deterministic and n_samples not in (None, 1):
        raise ValueError(f"--n-samples {n_samples}: a model without latent has one future per video; drop it")
    published = published_protocol(data) if test_set is None else None
    name = (published or "own") if name == "auto" else name
    if name == "own":
        sizes = (1 if deterministic else n_samples or OWN_SAMPLES, n_videos or OWN_VIDEOS)
        if test_set is not None:
            return _test_seq_protocol(data, *sizes)
        return own_protocol(data.name, data.n_past, data.n_future, *sizes)
    if published is None:
        raise ValueError(
            f"--protocol {name} is defined on 64-px stochastic Moving MNIST, BAIR or KTH, and this run was trained on "
            f"{data.name}, image-size {data.image_size}, {data.options()}; use --protocol own"
        )
    protocol = find_protocol(name, data.name)
    if data.name == "moving_mnist":
        trained, tested = data.digit_size, protocol.options.get("digit_size", SRVP_DIGITS)
        if trained != tested:
            return dataclasses.replace(protocol, note=f"trained on {trained}-px digits, tested on {tested}-px ones")
    return protocol


def published_protocol(data: DataConfig) -> str | None:
    """The protocol whose test set a run's data belongs to, if there is one: srvp-2020, or with SVG's digits SVG's."""
    if data.name in ("bair", "kth"):
        return "srvp-2020"
    if data.name != "moving_mnist" or data.image_size != 64 or not PUBLISHED_DIGITS.items() <= data.options().items():
        return None
    return "svg-2018" if data.digit_size == 32 else "srvp-2020"


def test_set_of(protocol: Protocol, data: DataConfig) -> dict[str, object]:
    """Arguments of load_dataset, but for the root: the protocol's test set, or the run's own test split."""
    arguments = data.arguments()
    del arguments["root"]
    if protocol.test_set != data.name:
        arguments = {name: value for name, value in arguments.items() if name not in data.options()}
    arguments |= {"name": protocol.test_set, "seq_len": protocol.n_past + protocol.n_future} | protocol.options
    return arguments if protocol.name == "own" else arguments | {"seed": 0}


def _test_seq_protocol(data: DataConfig, n_samples: int, n_videos: int) -> Protocol:
    """As many frames seen as the run sees, and all the rest of the file's 20 predicted."""
    if data.name not in ("digits", "moving_mnist") or data.image_size != 64 or data.n_past >= TEST_SEQ_FRAMES:
        raise ValueError(
            f"--test-set {TEST_SEQ} holds 64-px Moving MNIST of {TEST_SEQ_FRAMES} frames, and this run was trained on "
            f"{data.name}, image-size {data.image_size}, n-past {data.n_past}; drop it"
        )
    own = own_protocol(data.name, data.n_past, TEST_SEQ_FRAMES - data.n_past, n_samples, n_videos)
    return dataclasses.replace(own, test_set=TEST_SEQ)
