"""Learn again from earlier clips: a model family says what of them is worth keeping, and this remembers it.

A prior that learns next to everything else sees each clip once, though learning from its track again costs a fraction
of making the track. So every training step rehearses some of the last clips, chosen at random: experience replay, as
reinforcement learning calls it (Lin 1992, doi:10.1007/BF00992699).
"""

import numpy as np
import torch
from torch import Tensor

from seqvae import distributed
from seqvae.models import VideoModel

BATCHES = 128  # whose tracks are remembered


class Rehearsal:
    """The tracks of the last batches, the same on all processes.

    Attributes:
        tracks: (BATCHES, S, B, F), S = the model's `track_size`; batch of step i in place i % BATCHES.
        known: (BATCHES,) 1 where a batch was remembered.
    """

    def __init__(self, model: VideoModel, n_clips: int, n_frames: int, device: torch.device) -> None:
        self.n_chosen = model.rehearsals * n_clips
        self.tracks = torch.zeros(BATCHES, model.track_size, n_clips, n_frames, device=device)
        self.known = torch.zeros(BATCHES, device=device)

    def loss(self, model: VideoModel, mask: Tensor, step: int, rng: np.random.Generator) -> Tensor:
        """Mean over clips of the steps before `step` (> 0), nats per frame: this process's summand of it.

        Args:
            mask: (F,) 1 for the frames that count.
            rng: chooses the clips, alike on all processes.
        """
        n_batches, n_clips = min(step, BATCHES), self.tracks.shape[2]
        numbers = rng.integers([[n_batches], [n_clips]], size=(2, self.n_chosen))
        batch, clip = torch.from_numpy(numbers).to(self.tracks.device)
        weight = mask * self.known[batch, None]  # (chosen, F)
        own = distributed.shard(self.n_chosen)
        nats = model.rehearse(self.tracks[batch[own], :, clip[own]].movedim(1, -1))
        return (weight[own] * nats).sum() / weight.sum().clamp(min=1)

    def remember(self, tracks: Tensor, step: int, finite: Tensor) -> None:
        """Keep a step's tracks (S, B, F) in place of the oldest ones, unless it was skipped."""
        place = step % BATCHES
        self.tracks[place] = torch.where(finite, tracks.to(self.tracks.dtype), self.tracks[place])
        self.known[place] = torch.maximum(self.known[place], finite.to(self.known.dtype))

    def state_dict(self) -> dict[str, Tensor]:
        """What a later step's loss depends on."""
        return {"tracks": self.tracks, "known": self.known}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Go on from a `state_dict` of the same sizes."""
        self.tracks.copy_(saved["tracks"])
        self.known.copy_(saved["known"])
