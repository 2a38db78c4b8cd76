"""The ELBO with its usual weights on the KL, and the importance-weighted bound."""

import torch
from torch import Tensor

from seqvae.objectives.base import (
    Numbers,
    Objective,
    Terms,
    effective_samples,
    held_out_bound,
    iwae_bound,
    masked_mean,
    report,
    sum_frames,
)


class Elbo(Objective):
    """-log p(x | z) + beta KL. beta = 1 is minus the ELBO; any other beta is not a bound (Higgins et al. 2017).

    With free bits the loss is no longer a bound (Kingma et al. 2016, arXiv:1606.04934, Appendix C.8): each latent's KL,
    averaged over the batch's frames, costs at least `free_bits`. The same holds while the weight rises from 0 to beta,
    once over `kl_warmup` steps (Bowman et al. 2016, arXiv:1511.06349) or over the first half of each `kl_cycle` steps
    (Fu et al. 2019, arXiv:1903.10145).
    """

    def __init__(self, beta: float, *, kl_warmup: int = 0, kl_cycle: int = 0, free_bits: float = 0.0) -> None:
        super().__init__()
        self.beta, self.kl_warmup, self.kl_cycle, self.free_bits = beta, kl_warmup, kl_cycle, free_bits
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.int64))

    def kl_weight(self) -> Tensor:
        """Weight of the KL in the next step, 0..beta."""
        step = self.n_updates.double()
        if self.kl_cycle:
            return self.beta * (2 * (step % self.kl_cycle) / self.kl_cycle).clamp(max=1)
        if self.kl_warmup:
            return self.beta * (step / self.kl_warmup).clamp(max=1)
        return self.beta * torch.ones_like(step)

    def forward(self, terms: Terms) -> tuple[Tensor, Numbers]:
        kl = masked_mean(terms.kl.sum(-1), terms.mask)
        if self.free_bits:
            per_latent = [masked_mean(latent, terms.mask) for latent in terms.kl.unbind(-1)]
            kl = torch.stack(per_latent).clamp(min=self.free_bits).sum()
        loss = self.kl_weight() * kl - masked_mean(terms.log_px, terms.mask)
        return loss, report(terms, terms.log_density, loss)

    def merit(self, numbers: dict) -> float:
        """The ELBO on held-out clips."""
        return held_out_bound(numbers, "elbo")

    def status(self) -> Numbers:
        """The weight of the KL, if it has a schedule."""
        return {"objective/kl_weight": self.kl_weight()} if self.kl_warmup or self.kl_cycle else {}

    def after_step(self, lr: float = 1.0, remaining: int = 0) -> None:
        self.n_updates += 1


class Iwae(Objective):
    """Minus the importance-weighted bound, weights over the whole video (Burda et al. 2016, arXiv:1509.00519).

    Its log-weights use the sampled log p(z) - log q(z), not the KL in closed form.
    """

    def forward(self, terms: Terms) -> tuple[Tensor, Numbers]:
        log_w = sum_frames(terms.log_px + terms.log_ratio, terms.mask)  # (K, B)
        loss = -iwae_bound(log_w).sum() / terms.n_frames()
        samples = effective_samples(log_w.detach()).mean()
        return loss, report(terms, terms.log_density, loss) | {"effective_samples": samples}

    def merit(self, numbers: dict) -> float:
        """The importance-weighted bound on held-out clips."""
        return held_out_bound(numbers, "iwae")
