"""The state of a training run: weights, optimizer, objective and counters, and how they are saved and loaded."""

import copy
import math

import torch
from torch import Tensor, nn

from seqvae import distributed
from seqvae.config import RunConfig
from seqvae.device import resolve_amp, resolve_compile
from seqvae.models import VideoModel
from seqvae.objectives import Objective
from seqvae.training.checkpoint import ForeignCheckpoint, check_like
from seqvae.training.recompute import recompute_in_backward
from seqvae.training.rehearsal import Rehearsal

SIGMA_LR = 10.0  # learning rate of a learned log sigma, relative to the rest: it has far to go
TRAINED_WITH_PRIOR = ("prior", "likelihood")  # parts; a decoder's own sigma does not come with --init-from


class TrainState:
    """Everything a run changes as it trains, and what it is trained with.

    Attributes:
        step: finished optimizer steps.
        best: the best validation's `merit`.
        counters: (3,) int64 on the device, read only when metrics are: skipped steps, those of them in a row up to now,
            and the longest such streak since `take_longest_streak`.
        network: the model as training calls it, which exchanges gradients with other processes.
        mask: (F,) 1 for the predicted frames that count in the loss.
        rehearsal: what a family that rehearses remembers of earlier clips; None for others.
    """

    def __init__(self, cfg: RunConfig, model: VideoModel, objective: Objective, device: torch.device) -> None:
        n_parts, n_clips = distributed.world_size() * cfg.optim.accumulate, cfg.optim.batch_size
        if n_clips < n_parts:
            raise ValueError(
                f"optim.batch-size {n_clips} is less than a clip for each of {distributed.world_size()} processes x "
                f"optim.accumulate {cfg.optim.accumulate}; pass --optim.batch-size {n_parts} or more"
            )
        if cfg.model.batch_statistics and cfg.data.seq_len * n_clips < 2 * n_parts:
            raise ValueError(
                "model.norm batch needs 2 images in every pass; pass --model.norm group or "
                f"--optim.batch-size {2 * n_parts} or more"
            )
        self.pass_size = math.ceil(n_clips / n_parts)  # clips in a forward pass, at most
        if distributed.world_size() > 1 and cfg.model.batch_statistics:
            if device.type == "cpu":
                raise ValueError(
                    "model.norm batch needs statistics over all processes, which torch has on CUDA alone; "
                    "pass --model.norm group"
                )
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if cfg.optim.train == "prior":
            keep_all_but_prior(model)
        self.cfg, self.device = cfg, device
        self.model, self.objective = model.to(device), objective.to(device)
        self.step, self.best = 0, -math.inf
        self.counters = torch.zeros(3, dtype=torch.int64, device=device)
        groups = [
            group | {"params": trained}
            for group in model.parameter_groups()
            if (trained := [weight for weight in group["params"] if weight.requires_grad])
        ]
        if sigma := list(model.likelihood.parameters()):
            groups.append({"params": sigma, "scale": SIGMA_LR})
        self.optimizer = torch.optim.Adam(groups, lr=cfg.optim.lr, betas=(0.9, cfg.optim.beta2), fused=True)
        # .to() after the copy makes the LSTMs' weights contiguous again, as cuDNN wants them.
        self.ema = copy.deepcopy(model).requires_grad_(False).eval().to(device) if cfg.optim.ema else None
        self.amp = resolve_amp(cfg.compute, device)
        self.n_importance = cfg.objective.n_importance
        if cfg.compute.compile == "on" or (model.compiled and resolve_compile(cfg.compute, device)):
            model.compile_parts()
        if cfg.compute.checkpoint_activations:  # after compiling: it wraps the compiled modules
            recompute_in_backward(model)
        self.network = distributed.parallel(self.model, device)
        self.n_predicted = cfg.data.n_predicted
        self.mask = torch.ones(self.n_predicted, dtype=torch.float64, device=device)
        if cfg.objective.loss_on == "future":
            self.mask[: cfg.data.n_past - 1] = 0
        self.rehearsal = Rehearsal(model, n_clips, self.n_predicted, device) if model.rehearsals else None

    def train_mode(self) -> None:
        """Put the model in train mode, all but the parts that stay as they are: a norm there keeps its statistics."""
        self.model.train()
        if self.cfg.optim.train == "prior":
            for name, part in self.model.named_children():
                part.train(name in TRAINED_WITH_PRIOR)

    @property
    def eval_model(self) -> VideoModel:
        """The model that validation and evaluation use: with averaged weights if there are any."""
        return self.ema if self.ema is not None else self.model

    def state_dict(self) -> dict:
        """Everything that decides the next step, as tensors and plain values."""
        return {
            "step": self.step,
            "best": self.best,
            "counters": self.counters,
            "channels": self.model.channels,
            "image_size": self.model.image_size,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        } | ({} if self.rehearsal is None else {"rehearsal": self.rehearsal.state_dict()})

    def load_state_dict(self, saved: dict) -> None:
        """Resume from `saved`; ForeignCheckpoint unless it is the state of a run with these settings."""
        name = f"the checkpoint in {self.cfg.run_dir}: "
        check_like({**saved, "optimizer": None}, {**self.state_dict(), "optimizer": None}, f"{name}state")
        groups = self._optimizer_settings()
        try:
            self.optimizer.load_state_dict(saved["optimizer"])
            same = self._optimizer_settings() == groups
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError):
            same = False
        if not same:
            raise ForeignCheckpoint(f"{name}optimizer is not Adam's state for these weights; it is from another run")
        trained = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        for weight in trained if saved["step"] else ():
            expected = {"step": torch.zeros(()), "exp_avg": weight, "exp_avg_sq": weight}
            check_like(self.optimizer.state.get(weight), expected, f"{name}optimizer")
        self.step, self.best = saved["step"], saved["best"]
        self.counters.copy_(saved["counters"])
        self.model.load_state_dict(saved["model"])
        self.objective.load_state_dict(saved["objective"])
        if self.ema is not None:
            self.ema.load_state_dict(saved["ema"])
        if self.rehearsal is not None:
            self.rehearsal.load_state_dict(saved["rehearsal"])

    def _optimizer_settings(self) -> list[dict]:
        return [{**group, "params": None, "lr": None} for group in self.optimizer.param_groups]

    def status(self) -> dict[str, float | list[float]]:
        """Multiplier or sigma after the last step, skipped steps, and that step's learning rate, for the log."""
        tracked = self.objective.status() | self.model.likelihood.status()
        group = self.optimizer.param_groups[0]
        return {name: value.tolist() for name, value in tracked.items()} | {
            "train/skipped_steps": self.counters[0].item(),
            "train/lr": group["lr"] / group["scale"],
        }

    def take_longest_streak(self) -> int:
        """Most non-finite steps in a row since the last call."""
        longest = self.counters[2].item()
        self.counters[2] = self.counters[1]
        return longest

    def weights_are_finite(self) -> bool:
        """False after an update that overflowed: such weights are not worth a checkpoint."""
        return all(torch.isfinite(weight).all().item() for weight in self.model.parameters())

    def dequantisation_noise(self, video: Tensor, n_clips: int, generator: torch.Generator) -> Tensor | None:
        """(n_clips, F, C, H, W) uniform in [0, 1), sized as the frames of `video`; None if frames are scored as is."""
        if not self.cfg.likelihood.dequantise:
            return None
        shape = (n_clips, *video[0, -self.n_predicted :].shape)
        return torch.rand(shape, generator=generator, device=video.device)


def keep_all_but_prior(model: VideoModel) -> None:
    """Stop the gradient of every weight outside the prior and the likelihood."""
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.split(".")[0] in TRAINED_WITH_PRIOR)
