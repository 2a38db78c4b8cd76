"""The recurrent cores: posterior, learned prior and frame predictor.

Shapes: B videos, T frames, G = g_dim, Z = z_dim, L layers, R = rnn_size. Each core takes the
state of the previous call, so T calls with one frame each equal one call with T frames: generation does the former,
training the latter.
"""

import torch
from torch import Tensor, nn

from seqvae.gaussian import Gaussian, limit_logvar

LSTMState = tuple[Tensor, Tensor]  # hidden and cell, each (B, L, R), batch first unlike nn.LSTM's own


class GaussianLSTM(nn.Module):
    """LSTM that emits a Gaussian over z_t at every frame.

    One class is both the posterior q(z_t | x_{0:t}), fed h_t, and the learned prior
    p(z_t | x_{0:t-1}), fed h_{t-1} (SVG-LP, Denton & Fergus 2018, arXiv:1802.07687).
    """

    def __init__(self, g_dim: int, z_dim: int, rnn_size: int, num_layers: int) -> None:
        super().__init__()
        self.embed = nn.Linear(g_dim, rnn_size)
        self.lstm = nn.LSTM(rnn_size, rnn_size, num_layers, batch_first=True)
        self.head = nn.Linear(rnn_size, 2 * z_dim)

    def forward(self, h: Tensor, state: LSTMState | None = None) -> tuple[Gaussian, LSTMState]:
        """h: (B, T, G). Returns a Gaussian (B, T, Z), float32, and the LSTM state after the last frame."""
        out, state = run_lstm(self.lstm, self.embed(h), state)  # (B, T, rnn_size)
        mu, logvar = self.head(out).chunk(2, dim=-1)
        return Gaussian(mu, limit_logvar(logvar)), state


class FramePredictor(nn.Module):
    """LSTM from [h_{t-1}, z_t] to the feature g_t for the decoder, in [-1, 1] (SVG's frame_predictor)."""

    def __init__(self, g_dim: int, z_dim: int, rnn_size: int, num_layers: int) -> None:
        super().__init__()
        self.embed = nn.Linear(g_dim + z_dim, rnn_size)
        self.lstm = nn.LSTM(rnn_size, rnn_size, num_layers, batch_first=True)
        self.head = nn.Linear(rnn_size, g_dim)

    def forward(self, h: Tensor, z: Tensor, state: LSTMState | None = None) -> tuple[Tensor, LSTMState]:
        """h: (B, T, G), z: (B, T, Z). Returns g (B, T, G) and the LSTM state after the last frame."""
        out, state = run_lstm(self.lstm, self.embed(torch.cat([h, z], dim=-1)), state)
        return torch.tanh(self.head(out)), state


def run_lstm(lstm: nn.LSTM, x: Tensor, state: LSTMState | None) -> tuple[Tensor, LSTMState]:
    """Run an LSTM with batch-first states: (B, T, in) -> (B, T, R), and the state after the last frame."""
    if state is not None:
        state = tuple(s.transpose(0, 1).contiguous() for s in state)  # cuDNN refuses views
    out, (hidden, cell) = lstm(x, state)
    return out, (hidden.transpose(0, 1), cell.transpose(0, 1))
