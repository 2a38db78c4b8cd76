"""Choose the device and what it computes in; move videos onto it."""

import os
import shutil

import torch
from torch import Tensor

from seqvae.config import ComputeConfig


def as_float(video: Tensor, device: torch.device) -> Tensor:
    """uint8 (..., C, H, W) -> float32 in [0, 1] on the device."""
    return video.to(device, non_blocking=True).float() / 255


def choose_device(name: str, flag: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`; ValueError naming the flag if there is no CUDA device to use."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{flag} is cuda, and torch finds no CUDA device; pass {flag} cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local, n_devices = os.environ.get("LOCAL_RANK"), torch.cuda.device_count()
    if local is None:
        return torch.device("cuda")
    if not local.isdecimal() or int(local) >= n_devices:
        raise ValueError(f"LOCAL_RANK is {local}, and this machine has {n_devices} GPUs; start one process for each")
    return torch.device("cuda", int(local))


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16; a CPU without AVX512-BF16 emulates it, slower than float32."""
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()


def resolve_amp(cfg: ComputeConfig, device: torch.device) -> bool:
    """Whether the convolutions run in bfloat16."""
    native = cfg.amp == "native" and has_bfloat16(device)
    return cfg.amp == "bf16" or native or (cfg.amp == "auto" and device.type == "cuda")


def describe(device: torch.device, amp: bool) -> str:
    """The device and what it computes in, in words."""
    if not amp:
        return f"{device}, float32"
    emulated = "" if has_bfloat16(device) else ", which this CPU emulates, slowly: amp off is faster"
    return f"{device}, bfloat16 autocast{emulated}"


def resolve_compile(cfg: ComputeConfig, device: torch.device) -> bool:
    """Whether encoder and decoder are compiled; `auto` needs CUDA and a C compiler, which torch.compile calls."""
    compiler = any(shutil.which(name) for name in ("cc", "gcc", "clang"))
    return cfg.compile == "on" or (cfg.compile == "auto" and device.type == "cuda" and compiler)
