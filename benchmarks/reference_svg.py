"""The slow way, as SVG's released code goes: two encoder calls per frame, LSTM cells, one decoder call per frame.

It is written apart from `seqvae.models.svg` and only borrows its weights, so that it can be what that is compared
with: the oracle of tests/test_model_svg.py and the speed to beat. Norm layers run in the mode of the modules they are
borrowed from; compare in eval mode.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqvae.gaussian import limit_logvar
from seqvae.models import SVG
from seqvae.networks.vgg import VGGDecoder, VGGEncoder


class CellStack:
    """An nn.LSTM's weights in LSTMCells, one step at a time, zeros at the start."""

    def __init__(self, lstm: nn.LSTM) -> None:
        self.cells = []
        for layer in range(lstm.num_layers):
            size = lstm.input_size if layer == 0 else lstm.hidden_size
            cell = nn.LSTMCell(size, lstm.hidden_size, device="meta")  # without weights of its own
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                setattr(cell, name, getattr(lstm, f"{name}_l{layer}"))
            self.cells.append(cell)
        self.state: list[tuple[Tensor, Tensor] | None] = [None] * len(self.cells)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, in) -> (B, hidden)."""
        for i, cell in enumerate(self.cells):
            self.state[i] = cell(x, self.state[i])
            x = self.state[i][0]
        return x


class ReferenceSVG:
    """A video's life frame by frame, with the weights of `model`."""

    def __init__(self, model: SVG) -> None:
        self.model = model

    def _start(self) -> None:
        model = self.model
        self.predictor = CellStack(model.frame_predictor.lstm)
        self.posterior = CellStack(model.posterior.lstm) if model.posterior is not None else None
        self.prior = CellStack(model.prior.lstm) if model.prior is not None else None

    def _encode(self, frame: Tensor) -> tuple[Tensor, list[Tensor]]:
        encoder, skips, x = self.model.encoder, [], frame
        for level in encoder.levels:
            x = level(x)
            skips.append(x)
            if isinstance(encoder, VGGEncoder):
                x = F.max_pool2d(x, 2)
        return encoder.head(x).flatten(1), skips

    def _decode(self, g: Tensor, skips: list[Tensor]) -> Tensor:
        decoder = self.model.decoder
        d = decoder.head(g[:, :, None, None])
        if isinstance(decoder, VGGDecoder):
            for first, rest, skip in zip(decoder.firsts, decoder.rests, reversed(skips)):
                d = d.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                d = rest(first(torch.cat([d, skip], dim=1)))
            return d
        for i, (conv, skip) in enumerate(zip(decoder.levels, reversed(skips))):
            d = conv(torch.cat([d, skip], dim=1))
            if i < len(decoder.norms):
                d = decoder.norms[i](d)
        return d

    @staticmethod
    def _latent(core: nn.Module, cells: CellStack, h: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = core.head(cells(core.embed(h))).chunk(2, dim=-1)
        return mu, limit_logvar(logvar)

    def _step(self, h: Tensor, z: Tensor) -> Tensor:
        core = self.model.frame_predictor
        return torch.tanh(core.head(self.predictor(core.embed(torch.cat([h, z], dim=1)))))

    def forward(self, video: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """(B, T, C, H, W), (B, T-1, Z) -> stacked params, and mu, logvar of q and p where there is a latent."""
        self._start()
        model, out = self.model, {}
        kept: dict[str, list[Tensor]] = {name: [] for name in ("params", "q_mu", "q_logvar", "p_mu", "p_logvar")}
        for t in range(1, video.shape[1]):
            h, own_skips = self._encode(video[:, t - 1])
            h_target, _ = self._encode(video[:, t])
            if model.last_frame_skip or t <= model.n_past:
                skips = own_skips
            z = noise[:, t - 1]
            if self.posterior is not None:
                mu, logvar = self._latent(model.posterior, self.posterior, h_target)
                z = mu + (logvar / 2).exp() * z
                kept["q_mu"].append(mu)
                kept["q_logvar"].append(logvar)
            if self.prior is not None:
                mu, logvar = self._latent(model.prior, self.prior, h)
                kept["p_mu"].append(mu)
                kept["p_logvar"].append(logvar)
            kept["params"].append(self._decode(self._step(h, z), skips))
        for name, steps in kept.items():
            if steps:
                out[name] = torch.stack(steps, dim=1)
        return out

    @torch.no_grad()
    def rollout(self, context: Tensor, n_future: int, noise: Tensor) -> Tensor:
        """(B, n_past, C, H, W), (N, B, n_past - 1 + n_future, Z) -> (N, B, n_future, C, H, W), one sample at a time."""
        return torch.stack([self._rollout_one(context, n_future, each) for each in noise])

    def _rollout_one(self, context: Tensor, n_future: int, noise: Tensor) -> Tensor:
        self._start()
        model, n_past = self.model, context.shape[1]
        frame, future = context[:, 0], []
        for t in range(1, n_past + n_future):
            h, own_skips = self._encode(frame)
            if model.last_frame_skip or t <= n_past:
                skips = own_skips
            z = noise[:, t - 1]
            if self.prior is not None:
                p_mu, p_logvar = self._latent(model.prior, self.prior, h)
            if t < n_past:
                h_target, _ = self._encode(context[:, t])
                if self.posterior is not None:
                    mu, logvar = self._latent(model.posterior, self.posterior, h_target)
                    z = mu + (logvar / 2).exp() * z
                self._step(h, z)
                frame = context[:, t]
            else:
                if self.prior is not None:
                    z = p_mu + (p_logvar / 2).exp() * z
                frame = F.sigmoid(self._decode(self._step(h, z), skips))
                future.append(frame)
        return torch.stack(future, dim=1)


class ReferenceTraining:
    """SVG's training loop: a loss per frame, float32, and five Adam optimizers of which each has one network."""

    def __init__(self, model: SVG, lr: float = 2e-3) -> None:
        self.model, self.reference = model, ReferenceSVG(model)
        networks = (model.frame_predictor, model.posterior, model.prior, model.encoder, model.decoder)
        self.optimizers = [torch.optim.Adam(network.parameters(), lr=lr) for network in networks]

    def loss(self, video: Tensor, noise: Tensor, beta: float = 1e-4) -> Tensor:
        """Sum over frames of the mean squared error of pixels + beta times the KL, averaged over the batch.

        Args:
            video: (B, T, C, H, W) in [0, 1].
            noise: (B, T-1, Z) standard normal.
        """
        out, mse, kl = self.reference.forward(video, noise), 0.0, 0.0
        for t in range(video.shape[1] - 1):
            mse = mse + F.mse_loss(out["params"][:, t].sigmoid(), video[:, t + 1])
            q_mu, q_logvar, p_mu, p_logvar = (out[name][:, t] for name in ("q_mu", "q_logvar", "p_mu", "p_logvar"))
            squares = (q_logvar.exp() + (q_mu - p_mu).square()) / (2 * p_logvar.exp())
            kl = kl + ((p_logvar - q_logvar) / 2 + squares - 0.5).sum() / len(video)
        return mse + beta * kl

    def step(self, video: Tensor, noise: Tensor) -> Tensor:
        """One optimizer step of all five; returns the loss, on the device."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss = self.loss(video, noise)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.detach()
