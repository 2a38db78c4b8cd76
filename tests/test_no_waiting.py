"""What a training step and a prediction do on CUDA, told without one: on tensors that have a device and no values.

Nothing can be read from such a tensor. So whatever would make the host wait for the device (item, tolist, bool, an
index that is a mask) fails here; and so does whatever mixes devices, or makes a tensor without saying where. The
backward pass needs the device itself and is left out: gradients are tensors of their shapes.
"""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from datasets import on_device
from seqvae.config import RunConfig
from seqvae.device import as_float
from seqvae.training import session
from seqvae.training.loop import Interval
from seqvae.training.state import TrainState
from seqvae.training.step import train_step
from tests.families import run_of, variants
from tests.helpers import GECO, TINY, change, combinations

CUDA = torch.device("cuda", 0)
OPTIONS = {
    "float32": (GECO, "compute", {"amp": "off"}),
    "accumulate": (GECO, "optim", {"accumulate": 3}),
    "accumulate-analytic-sigma": (TINY, "optim", {"accumulate": 3}),
    "clip": (GECO, "optim", {"grad_clip": 1.0}),
    "ema": (GECO, "optim", {"ema": 0.9}),
    "prior": (GECO, "optim", {"train": "prior"}),
    "recompute": (GECO, "compute", {"checkpoint_activations": True}),
    "dequantise": (TINY, "likelihood", {"dequantise": True}),
    "future": (TINY, "objective", {"loss_on": "future"}),
    "geco-per-frame": (GECO, "objective", {"per_frame": True}),
    "kl": (TINY, "objective", {"kl_warmup": 10, "free_bits": 0.1}),
}


@pytest.fixture(autouse=True)
def no_values(monkeypatch) -> Iterator[None]:
    """Tensors without values, also on CUDA, and the parts of torch that need a real one replaced."""
    mode = FakeTensorMode()
    random = {name: getattr(torch, name) for name in ("rand", "randn")}

    class Generator:
        def __init__(self, device):
            self.device = device

        def manual_seed(self, seed):
            return self

    def without_generator(name):
        def made(*shape, generator, device):
            assert generator.device == device
            return random[name](*shape, device=device)

        return made

    def grad(loss: Tensor, inputs: list[Tensor], gradient: Tensor, allow_unused: bool) -> list[Tensor]:
        assert gradient.device == loss.device and gradient.shape == loss.shape
        return [torch.empty_like(x) for x in inputs]

    def backward(tensors: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> None:
        for tensor, gradient in zip(tensors, gradients, strict=True):
            assert gradient.device == tensor.device and gradient.shape == tensor.shape
        for weight in current.model.parameters():
            weight.grad = torch.empty_like(weight)

    deepcopy, current = copy.deepcopy, None

    def build(cfg: RunConfig) -> TrainState:
        nonlocal current
        current = session.build_train_state(cfg, 1, CUDA)
        return current

    for name in random:
        monkeypatch.setattr(torch, name, without_generator(name))
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch.autograd, "grad", grad)
    monkeypatch.setattr(torch.autograd, "backward", backward)
    monkeypatch.setattr(copy, "deepcopy", lambda model: deepcopy(model, {id(mode): mode}))
    monkeypatch.setattr(nn.Module, "to", moved)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    with mode, torch.backends.cudnn.flags(enabled=False):
        yield build


def moved(
    module: nn.Module, device: torch.device | None = None, memory_format: torch.memory_format | None = None
) -> nn.Module:
    """Module.to, which will not swap tensors without values in place; a memory format alone moves nothing."""
    if device is None:
        return module
    for each in module.modules():
        for name, weight in list(each.named_parameters(recurse=False)):
            setattr(each, name, nn.Parameter(weight.detach().to(device), weight.requires_grad))
        for name, buffer in list(each.named_buffers(recurse=False)):
            setattr(each, name, buffer.to(device))
    return module


def bytes_of(cfg: RunConfig) -> Tensor:
    """(B, T, 1, S, S) on CUDA, as a run's clips come."""
    size = cfg.data.image_size
    shape = (cfg.optim.batch_size, cfg.data.n_past + cfg.data.n_future, 1, size, size)
    return torch.empty(shape, dtype=torch.uint8, device=CUDA)


def check_step(train_state: TrainState) -> None:
    """Two steps with their log, the second with the optimizer's moments."""
    interval = Interval()
    for _ in range(2):
        numbers = train_step(train_state, as_float(bytes_of(train_state.cfg), CUDA))
        interval.add(numbers, 1)
        assert all(value.device == CUDA for value in numbers.values())
    assert train_state.counters.device == CUDA
    for weight in train_state.model.parameters():
        assert all(value.device == CUDA for value in train_state.optimizer.state[weight].values())


def test_reading_a_value_fails_here_and_so_does_mixing_devices():
    here, there = torch.ones(3), torch.ones(3, device=CUDA)
    with pytest.raises(DataDependentOutputException):
        there.sum().item()
    with pytest.raises(RuntimeError, match="two different devices|same device"):
        here + there


@pytest.mark.parametrize("cfg", combinations())
def test_no_objective_or_likelihood_waits_for_the_device(cfg, no_values):
    check_step(no_values(change(cfg, "compute", amp="bf16", compile="off")))


@pytest.mark.parametrize("key", OPTIONS)
def test_no_option_makes_a_step_wait(key, no_values):
    cfg, group, values = OPTIONS[key]
    check_step(no_values(change(change(cfg, "compute", compile="off"), group, **values)))


@pytest.mark.parametrize("model", variants(one_at_a_time=True))
def test_no_model_waits_for_the_device(model, no_values):
    cfg = run_of(change(TINY, "compute", compile="off"), model)
    train_state = no_values(cfg)
    check_step(train_state)
    model, video = train_state.eval_model.eval(), as_float(bytes_of(cfg), CUDA)
    n_past = cfg.data.n_past
    noise = torch.empty(2, len(video), max(n_past - 1, 0) + 3, model.z_dim, device=CUDA)
    with torch.autocast("cuda", torch.bfloat16):
        frames, sigma = model.predict(video[:, :n_past], 3, noise)
    assert frames.device == sigma.device == CUDA
    assert frames.shape == (2, len(video), 3, 1, 32, 32) and frames.dtype == torch.float32


def test_digits_are_drawn_without_waiting():
    glyphs = torch.empty(9, 13, 13, dtype=torch.uint8, device=CUDA)
    chosen = torch.empty(3, 2, dtype=torch.int64, device=CUDA)
    corners = torch.empty(2, 3, 5, 2, dtype=torch.int64, device=CUDA)
    frames = on_device.render(glyphs, chosen, corners, torch.arange(32, device=CUDA))
    assert frames.device == CUDA and frames.shape == (3, 5, 1, 32, 32)
