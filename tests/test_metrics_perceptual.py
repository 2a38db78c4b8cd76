import hashlib
import math
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
import torchmetrics
import torchvision
from PIL import Image
from torch import nn
from torch.testing import assert_close
from torchmetrics.image.fid import FrechetInceptionDistance

from seqvae.metrics import perceptual
from seqvae.metrics.frechet import FrechetDistance, frechet_distance, i3d, r3d18
from seqvae.metrics.perceptual import BACKBONES, SMALLEST, Lpips, resize_8_bit, weights_file
from tests.helpers import backbone, without_storage

TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}  # the ReLUs whose outputs LPIPS compares


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """An empty TORCH_HOME, and every download fails."""

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def frames(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_backbones_are_fetched_from_where_torchvision_fetches_them():
    assert BACKBONES["alex"] == torchvision.models.AlexNet_Weights.DEFAULT.url
    assert BACKBONES["vgg"] == torchvision.models.VGG16_Weights.DEFAULT.url


@pytest.mark.parametrize("net", BACKBONES)
def test_lpips_equals_its_published_formula(net, torch_home, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    pred, target = frames(3, 3, 40, 48), frames(3, 3, 40, 48, seed=1)
    state = torch.load(weights_file(BACKBONES[net]))
    layers = without_storage(backbone(net)).features
    layers.load_state_dict(
        {k.removeprefix("features."): v for k, v in state.items() if k.startswith("features")}, assign=True
    )
    folder = Path(torchmetrics.__file__).parent / "functional/image/lpips_models"
    linear = torch.load(folder / f"{net}.pth", map_location="cpu")

    # Zhang et al. 2018, equation 1, with the input scaling of their code.
    mean, std = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]])[..., None, None]
    x, y, expected = (2 * pred - 1 - mean) / std, (2 * target - 1 - mean) / std, 0
    with torch.no_grad():
        for i, layer in enumerate(layers[: TAPS[net][-1] + 1]):
            x, y = layer(x), layer(y)
            if i in TAPS[net]:
                weight = linear[f"lin{TAPS[net].index(i)}.model.1.weight"]  # (1, channels, 1, 1)
                expected += (weight * (F.normalize(x, dim=1) - F.normalize(y, dim=1)) ** 2).sum(1).mean((1, 2))
    assert_close(Lpips(net)(pred, target), expected, atol=1e-6, rtol=1e-5)


@pytest.fixture(scope="session")
def alex(torch_home) -> Lpips:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(torch_home))
        return Lpips("alex")


def test_lpips_is_zero_for_equal_frames_and_takes_grey_as_three_equal_channels(alex):
    pred, target = frames(2, 5, 1, 64, 64), frames(2, 5, 1, 64, 64, seed=1)
    assert_close(alex(pred, pred), torch.zeros(2, 5))
    scores = alex(pred, target)
    assert scores.shape == (2, 5) and (scores > 0).all()
    assert_close(alex(pred.expand(2, 5, 3, 64, 64), target.expand(2, 5, 3, 64, 64)), scores)


def test_lpips_is_float32_for_any_input_and_does_not_depend_on_the_chunks(alex, monkeypatch):
    pred, target = frames(7, 3, 32, 32), frames(7, 3, 32, 32, seed=1)
    at_once = alex(pred, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(alex(pred.double(), target.double()), at_once, atol=0, rtol=0)
    monkeypatch.setitem(perceptual.CHUNK_VALUES, "alex", 3 * 3 * 32 * 32)  # chunks of three frames
    assert_close(alex(pred, target), at_once, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [128, 48])
def test_the_8_bit_resize_is_pil_s_to_within_one_level(size):
    image = frames(1, 3, 64, 64)
    pil = torchvision.transforms.functional.to_pil_image(image[0]).resize((size, size), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(pil)).permute(2, 0, 1)[None]
    difference = 255 * resize_8_bit(image, size) - expected
    assert difference.abs().max() < 1.01 and difference.abs().mean() < 0.3


def test_a_resizing_lpips_compares_the_resized_frames(alex, torch_home, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    pred, target = frames(2, 1, 24, 24), frames(2, 1, 24, 24, seed=1)  # too small for AlexNet as they are
    expected = alex(resize_8_bit(pred, 128), resize_8_bit(target, 128))
    assert_close(Lpips("alex", resize=128)(pred, target), expected)


@pytest.mark.parametrize("net", BACKBONES)
def test_the_smallest_frames_named_are_the_smallest_the_backbone_takes(net):
    layers, least = without_storage(backbone(net)).features[: TAPS[net][-1] + 1], SMALLEST[net]
    assert layers(torch.zeros(1, 3, least, least, device="meta")).numel() > 0
    with pytest.raises(RuntimeError, match="too small"):
        layers(torch.zeros(1, 3, least - 1, least - 1, device="meta"))


def test_frames_lpips_cannot_score_are_refused_in_one_line(alex):
    good = frames(2, 3, 32, 32)
    for bad in (frames(2, 2, 32, 32), frames(2, 3, 30, 32)):
        with pytest.raises(
            ValueError, match=r"^LPIPS \(alex\) takes 1 or 3 channels of at least 31x31 px, got \(2, .*\)$"
        ):
            alex(bad, bad)
    with pytest.raises(ValueError, match="^pred is torch.uint8, .*$"):
        alex(good.byte(), good)
    with pytest.raises(ValueError, match=r"^pred holds 6144 NaN or infinite values, the first in frame \(0,\)$"):
        alex(good * math.nan, good)
    with pytest.raises(ValueError, match="^no LPIPS of squeeze, there are: alex, vgg$"):
        Lpips("squeeze")


@pytest.mark.parametrize(
    "load, file",
    [
        (lambda: Lpips("alex"), "alexnet-owt-7be5be79.pth"),
        (lambda: Lpips("vgg"), "vgg16-397923af.pth"),
        (r3d18, "r3d_18-b3b3357e.pth"),
    ],
)
def test_missing_weights_are_named_with_folder_reason_and_url_in_one_line(load, file, no_network):
    with pytest.raises(FileNotFoundError) as error:
        load()
    assert str(error.value) == (
        f"{file} is not in {no_network} and could not be downloaded (<urlopen error Name or service not known>); "
        f"copy it there from https://download.pytorch.org/models/{file}"
    )
    assert list(no_network.iterdir()) == []  # nothing half written that a later run would take for the weights


def test_a_broken_weights_file_is_named_with_the_remedy_in_one_line(no_network):
    no_network.mkdir(parents=True)
    file = no_network / "alexnet-owt-7be5be79.pth"
    message = rf"^{file} cannot be read as weights \(.*\); delete it and run again, or replace it from https://.*$"
    file.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=message):
        Lpips("alex")
    torch.save({"classifier.1.weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=message):
        Lpips("alex")


class Flat:
    """Videos that are features themselves, so that the distance can be checked alone."""

    def __init__(self, num_features: int) -> None:
        self.num_features = num_features

    def __call__(self, videos: torch.Tensor) -> torch.Tensor:
        return videos.flatten(1)


def features(n: int, f: int, seed: int) -> torch.Tensor:
    """(n, f) correlated, with a mean far from 0."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(f, f, generator=generator, dtype=torch.float64) / math.sqrt(f)
    return torch.randn(n, f, generator=generator, dtype=torch.float64) @ mix + 5 + 0.1 * seed


def distance(real: torch.Tensor, fake: torch.Tensor):
    frechet = FrechetDistance(Flat(real.shape[1]))
    frechet.add(real, real=True)
    frechet.add(fake, real=False)
    return frechet.result()


def test_frechet_distance_equals_scipy_s_formula_and_torchmetrics():
    real, fake = features(300, 40, seed=0), features(250, 40, seed=1)
    means, covs = [x.mean(0).numpy() for x in (real, fake)], [np.cov(x.numpy(), rowvar=False) for x in (real, fake)]
    root = scipy.linalg.sqrtm(covs[0] @ covs[1]).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covs[0] + covs[1] - 2 * root)
    result = distance(real, fake)
    assert result.distance == pytest.approx(expected, rel=1e-9)
    assert (result.n_real, result.n_fake, result.warning) == (300, 250, None)

    identity = nn.Identity()
    identity.num_features = 40
    other = FrechetInceptionDistance(feature=identity, normalize=True)
    other.update(real, real=True)
    other.update(fake, real=False)
    assert result.distance == pytest.approx(float(other.compute()), rel=1e-6)


def test_frechet_distance_of_independent_features_is_a_sum_of_squares_also_where_some_are_constant():
    # N(m, s^2) in each coordinate: (m_a - m_b)^2 + (s_a - s_b)^2, and a coordinate with s = 0 makes S singular.
    m_a, s_a = torch.tensor([[1.0, 2.0, 0.0, 3.0], [1.0, 0.5, 0.0, 2.0]], dtype=torch.float64)
    m_b, s_b = torch.tensor([[1.5, 2.0, 0.7, 3.0], [3.0, 0.0, 0.0, 2.0]], dtype=torch.float64)
    expected = float((m_a - m_b).square().sum() + (s_a - s_b).square().sum())
    turn = torch.linalg.qr(features(4, 4, seed=2))[0]  # the distance does not change when both turn
    for q in (torch.eye(4, dtype=torch.float64), turn):
        given = q @ m_a, q @ (s_a**2).diag() @ q.T, q @ m_b, q @ (s_b**2).diag() @ q.T
        assert frechet_distance(*given) == pytest.approx(expected, abs=1e-6)


def test_frechet_distance_of_a_set_to_itself_is_zero_also_with_fewer_videos_than_features():
    for n in (200, 12):
        real = features(n, 40, seed=0)
        assert distance(real, real).distance == pytest.approx(0, abs=1e-5)


def test_frechet_distance_does_not_depend_on_the_batches():
    real, fake = features(60, 10, seed=0), features(120, 10, seed=1)
    expected = distance(real, fake)
    for size in (1, 7, 16):
        frechet = FrechetDistance(Flat(10))
        for chunk in fake.split(size):
            frechet.add(chunk, real=False)
        for chunk in real.split(size):
            frechet.add(chunk, real=True)
        result = frechet.result()
        assert result.distance == pytest.approx(expected.distance, rel=1e-9)
        assert result.floor == pytest.approx(expected.floor, rel=1e-9)


def test_the_floor_is_the_distance_between_every_other_real_video_and_the_rest():
    real, fake = features(60, 10, seed=0), features(60, 10, seed=1)
    assert distance(real, fake).floor == pytest.approx(distance(real[::2], real[1::2]).distance, rel=1e-9)
    assert distance(real[:3], fake).floor is None


def test_few_videos_are_warned_of_and_one_is_refused():
    real, fake = features(41, 40, seed=0), features(41, 40, seed=1)
    assert distance(real, fake).warning is None
    assert distance(real[:40], fake).warning.startswith("40 real and 41 predicted videos for 40 features: ")
    for n_real, n_fake in [(1, 5), (5, 1), (0, 5)]:
        with pytest.raises(
            ValueError,
            match=f"^a Frechet distance needs at least 2 real and 2 predicted videos, got {n_real} and {n_fake}$",
        ):
            distance(real[:n_real], fake[:n_fake])


def test_features_that_are_wrong_are_refused_in_one_line():
    frechet = FrechetDistance(Flat(4))
    with pytest.raises(ValueError, match=r"^features are \(2, 5\), expected finite \(2, 4\)$"):
        frechet.add(torch.zeros(2, 5), real=True)
    with pytest.raises(ValueError, match=r"^features are \(2, 4\) with NaN or infinities, expected finite \(2, 4\)$"):
        frechet.add(torch.full((2, 4), math.nan), real=True)


class FakeI3D(nn.Module):
    """Answers with what it was given: mean, least and largest value, sizes; as many numbers as asked for."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(x.shape[0], self.outputs, device=x.device)
        for i in range(x.shape[0]):
            out[i, 0], out[i, 1], out[i, 2] = x[i].mean(), x[i].min(), x[i].max()
            for axis in range(4):
                out[i, 3 + axis] = x.shape[1 + axis]
        return out


class FakeStyleganV(nn.Module):
    """As the published file: it resizes, rescales and applies softmax unless told not to."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.net = FakeI3D(outputs)

    def forward(
        self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> torch.Tensor:
        out = self.net(x)
        out[:, 10], out[:, 11] = float(rescale), float(resize)
        return out if return_features else out.softmax(1)


class Broken(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, torch.zeros(1, 3, 1, 1))


def scripted(module: nn.Module, path: Path) -> Path:
    torch.jit.script(module).save(str(path))
    return path


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("module", [FakeI3D, FakeStyleganV])
def test_i3d_gets_224_px_in_minus_1_to_1_channels_first_and_gives_logits(module, tmp_path):
    path = scripted(module(400), tmp_path / "i3d.pt")
    i3d_features = i3d(path)
    grey = torch.full((2, 12, 1, 64, 64), 0.25)
    grey[:, :, :, :32] = 1.0
    logits = i3d_features(grey)
    assert logits.shape == (2, 400)
    assert logits[1, [0, 1, 2]].tolist() == pytest.approx([0.25, -0.5, 1], abs=1e-6)
    assert logits[1, 3:7].tolist() == [3, 12, 224, 224]  # C T H W
    assert logits[:, [10, 11]].tolist() == [[0, 0], [0, 0]]
    assert i3d_features.name == "FVD" and i3d_features.num_features == 400


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_i3d_gives_the_sha256_of_its_file_and_does_not_depend_on_the_chunks(tmp_path, monkeypatch):
    path = scripted(FakeI3D(400), tmp_path / "i3d.pt")
    i3d_features = i3d(path)
    assert i3d_features.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    videos = frames(3, 9, 3, 20, 20)
    at_once = i3d_features(videos)
    monkeypatch.setattr("seqvae.metrics.frechet.CHUNK_VALUES", 1)
    assert_close(i3d_features(videos), at_once)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_file_that_is_no_i3d_is_refused_in_one_line(tmp_path):
    missing, text, state = (tmp_path / name for name in ("missing.pt", "text.pt", "state.pt"))
    text.write_text("no network")
    torch.save({"weight": torch.zeros(2)}, state)
    remedy = "expected a TorchScript I3D, for example .*"
    for path in (missing, tmp_path):
        with pytest.raises(FileNotFoundError, match=rf"^{path} is not a file, {remedy}$"):
            i3d(path)
    for path in (text, state):
        with pytest.raises(ValueError, match=rf"^{path} is no TorchScript network \(.*\), {remedy}$"):
            i3d(path)
    wrong = scripted(FakeI3D(399), tmp_path / "wrong.pt")
    with pytest.raises(ValueError, match=rf"^{wrong} gives \(1, 399\) for one video, expected \(1, 400\); {remedy}$"):
        i3d(wrong)
    wrong = scripted(nn.Sequential(FakeI3D(400), nn.Softmax(1)), tmp_path / "softmax.pt")
    with pytest.raises(ValueError, match=rf"^{wrong} gives probabilities that sum to 1, expected logits .*; {remedy}$"):
        i3d(wrong)
    wrong = scripted(Broken(), tmp_path / "broken.pt")
    with pytest.raises(ValueError, match=rf"^{wrong} failed on a video \(1, 3, 16, 224, 224\) \(.*\), {remedy}$"):
        i3d(wrong)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_videos_i3d_cannot_take_are_refused_in_one_line(tmp_path):
    i3d_features = i3d(scripted(FakeI3D(400), tmp_path / "i3d.pt"))
    for shape in [(2, 8, 3, 16, 16), (2, 9, 2, 16, 16), (9, 3, 16, 16)]:
        with pytest.raises(ValueError, match=r"^videos are \(.*\), expected \(B, T, C, H, W\) .* T >= 9 for FVD$"):
            i3d_features(torch.zeros(shape))
    with pytest.raises(ValueError, match="^videos is torch.uint8, expected floating point .*$"):
        i3d_features(torch.zeros(2, 9, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"^videos holds 1 NaN or infinite values, the first in frame \(1, 4\)$"):
        videos = torch.zeros(2, 9, 3, 16, 16)
        videos[1, 4, 0, 0, 0] = math.nan
        i3d_features(videos)


def test_r3d18_gives_the_pooled_features_before_its_classifier_and_is_not_called_fvd(no_network):
    generator, model = torch.Generator().manual_seed(0), without_storage(torchvision.models.video.r3d_18).eval()
    state = dict(model.state_dict())
    for name, x in state.items():
        drawn = 0.05 * torch.randn(x.shape, generator=generator)
        state[name] = drawn.abs() + 0.1 if name.endswith("running_var") else drawn.to(x.dtype)
    model.load_state_dict(state, assign=True)
    file = no_network / "r3d_18-b3b3357e.pth"
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    r3d = r3d18()
    assert r3d.num_features == 512 and r3d.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert r3d.name == "Frechet distance on r3d_18 features" and "not FVD" in r3d.definition

    videos = frames(2, 2, 1, 112, 112)  # already of the network's size: no resizing in between
    x = (videos - torch.tensor([0.43216, 0.394666, 0.37645]).view(3, 1, 1)) / torch.tensor(
        [0.22803, 0.22145, 0.216989]
    ).view(3, 1, 1)
    with torch.no_grad():
        x = model.stem(x.transpose(1, 2))
        for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
            x = layer(x)
    assert_close(r3d(videos), x.mean((2, 3, 4)), atol=1e-5, rtol=1e-4)
