"""Whole batches made where the model is: the host says what each clip shows, the device makes the pixels.

What a clip shows is a few numbers, drawn by the code that `dataset[i]` runs, so the clips are the same bytes. A digit's
motion is a chain of small steps, each of which may bounce 8 times: on a GPU that is 4,800 kernel launches for 15
frames, of some microseconds each, and on the host 2 ms for a batch of 100. The numbers go to the device through pinned
memory, and nothing waits for it.

Letters: B clips, D digits per clip, T frames, S digit size, N videos.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from datasets.bair import RobotClips
from datasets.digits.bouncing import to_pixels
from datasets.digits.moving_mnist import SimulatedDigits

BatchMaker = Callable[[Iterable[int]], Tensor]
LARGEST_SHARE = 0.5  # of the device's free memory that videos may take; the model and its activations need the rest


def device_batches(dataset: Dataset, device: torch.device | str) -> BatchMaker | None:
    """Makes clips of a dataset on the device; None where they have to come from the host.

    Simulated digits keep their glyphs there (48 MB of MNIST). Robot videos stay whole, 15.1 GB of BAIR in training, if
    its array is at most half of the memory that is free on the GPU when this is called; on a CPU it is read in place.
    BAIR in PNG folders, still images and a person's own videos come from the host.

    Returns:
        A function from B indices, integers of the host and not a CUDA tensor, to uint8 (B, T, C, H, W) on the device,
        equal to the clips dataset[i] one by one. It raises IndexError as they do.

    Example:
        >>> from datasets import load_dataset
        >>> batches = device_batches(load_dataset("digits", None, "train", seq_len=15), "cpu")
        >>> batches([5, 0, 3]).shape
        torch.Size([3, 15, 1, 64, 64])
    """
    device = torch.device(device)
    if isinstance(dataset, SimulatedDigits):
        return DigitsOnDevice(dataset, device)
    if isinstance(dataset, RobotClips) and isinstance(dataset.videos, np.memmap) and has_room(dataset, device):
        return RobotVideosOnDevice(dataset, device)
    return None


class DigitsOnDevice:
    """Draws simulated digits."""

    def __init__(self, dataset: SimulatedDigits, device: torch.device) -> None:
        self.dataset, self.device = dataset, device
        glyphs = torch.tensor(dataset.glyph_table(), device=device)
        self.glyphs = F.pad(glyphs, (0, 1, 0, 1))  # (N, S + 1, S + 1): the last row and column are what is beside it
        self.pixels = torch.arange(dataset.motion.image_size, device=device)

    def __call__(self, indices: Iterable[int]) -> Tensor:
        chosen, states = self.dataset.latents(self.dataset.check_indices(indices))
        corners = to_pixels(states).swapaxes(1, 2)  # (2, B, T, D)
        return render(self.glyphs, to_device(chosen, self.device), to_device(corners, self.device), self.pixels)


def render(glyphs: Tensor, chosen: Tensor, corners: Tensor, pixels: Tensor) -> Tensor:
    """bouncing.render, gathered pixel by pixel: sum of the digits, clipped at 255.

    Args:
        glyphs: (N, S + 1, S + 1) uint8, the last row and column 0.
        chosen: (B, D) int64, glyph numbers.
        corners: (2, B, T, D) int64, row and column of the digits' upper left corners.
        pixels: (H,) int64, 0 to H - 1.

    Returns:
        (B, T, 1, H, H) uint8.
    """
    size = glyphs.shape[-1] - 1
    inside = pixels - corners[..., None]  # (2, B, T, D, H), rows and columns of the glyph
    rows, columns = torch.where((inside >= 0) & (inside < size), inside, size)
    frames = None
    for d in range(chosen.shape[1]):
        which = chosen[:, d, None, None, None]
        digit = glyphs[which, rows[:, :, d, :, None], columns[:, :, d, None, :]]  # (B, T, H, H)
        frames = digit if frames is None else frames + torch.minimum(digit, 255 - frames)  # no overflow
    return frames[:, :, None]


class RobotVideosOnDevice:
    """Cuts clips out of videos (N, 30, 64, 64, 3) that lie on the device."""

    def __init__(self, dataset: RobotClips, device: torch.device) -> None:
        self.dataset, self.device = dataset, device
        first = dataset.first_video
        self.videos = torch.from_numpy(dataset.videos[first : first + dataset.n_videos]).to(device)
        self.frames = torch.arange(dataset.seq_len, device=device)

    def __call__(self, indices: Iterable[int]) -> Tensor:
        videos, starts, mirrored = self.dataset.cuts(self.dataset.check_indices(indices))
        cuts = np.stack([videos - self.dataset.first_video, starts, mirrored])  # (3, B) int64, one copy
        videos, starts, mirrored = to_device(cuts, self.device)[..., None]  # (B, 1) each
        clips = self.videos[videos, starts + self.frames].permute(0, 1, 4, 2, 3)  # (B, T, 3, 64, 64)
        return torch.where(mirrored[..., None, None, None] > 0, clips.flip(-1), clips).contiguous()


def has_room(dataset: RobotClips, device: torch.device) -> bool:
    """Whether a split's videos may lie on the device."""
    if device.type != "cuda":
        return True  # the memory map itself
    n_bytes = dataset.n_videos * dataset.videos[0].nbytes
    return n_bytes <= LARGEST_SHARE * torch.cuda.mem_get_info(device)[0]


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy that the host does not wait for."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
