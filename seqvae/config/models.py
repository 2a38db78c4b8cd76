"""Settings of the model families. JSON and `--model.family` name the family."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from seqvae.config.base import Settings, union, variants


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """What every family has."""

    group = "model"
    needs_context: ClassVar[bool] = True  # whether the model conditions on observed frames, at least one
    actions: ClassVar[int] = 0  # numbers of each action that the model is given; a field in families that take any
    # Of families without these fields. Not annotated, so that they are no fields here and flags keep their order.
    prior, norm = "fixed", "group"

    family: str  # svg: LSTMs on features; transport: moves what it saw; scene: for a still camera; image: images

    @property
    def has_latent(self) -> bool:
        """Whether futures differ from sample to sample; without a latent there is one, and no KL."""
        return self.prior != "none"

    @property
    def batch_statistics(self) -> bool:
        """Whether a training step normalises by the statistics of the clips in each pass (batch norm)."""
        return self.norm == "batch"

    def least_weights(self) -> int:
        """Lower bound of the number of weights, from sizes alone; absurd ones are refused before anything is made."""
        return 0

    def check_sizes(self, *names: str) -> None:
        """ValueError for the first of these fields that is less than 1, and for actions out of range."""
        self.require(">= 1", lambda value: value >= 1, *names)
        self.require("in [0, 1024]", lambda value: 0 <= value <= 1024, "actions")


@dataclass(frozen=True, kw_only=True)
class SvgConfig(ModelConfig):
    """SVG: encoder, decoder and LSTMs; the defaults are its sizes for Moving MNIST."""

    family: Literal["svg"] = "svg"
    network: Literal["dcgan", "vgg"] = "dcgan"  # encoder and decoder, with skips; SVG: dcgan on digits, vgg on BAIR
    norm: Literal["batch", "group"] = "batch"  # of the convolutions; batch as in SVG, group is blind to the batch
    prior: Literal["learned", "fixed", "none"] = "learned"  # SVG-LP, SVG-FP, or no latent: a deterministic predictor
    width: int = 64  # channels of the finest level
    g_dim: int = 128  # frame feature
    rnn_size: int = 256  # hidden units of every LSTM
    predictor_layers: int = 2  # LSTM layers of the frame predictor
    z_dim: int = 10  # latents per frame; unused with prior none
    posterior_layers: int = 1  # LSTM layers; unused with prior none
    prior_layers: int = 1  # LSTM layers; used with prior learned alone
    last_frame_skip: bool = False  # skips from the frame before, predicted ones too, instead of the last observed frame
    actions: int = 0  # size of the actions given to prior, posterior and frame predictor (bair, pushing: 4); 0: none

    def __post_init__(self) -> None:
        latent = ("z_dim", "posterior_layers", "prior_layers")
        unused = {"none": latent, "fixed": ("prior_layers",), "learned": ()}[self.prior]
        self.refuse(f"is not used with model.prior {self.prior}", *unused)
        self.check_sizes("width", "g_dim", "rnn_size", "predictor_layers", *latent)

    def least_weights(self) -> int:
        n_layers = self.predictor_layers + self.has_latent * self.posterior_layers
        n_layers += self.prior_layers if self.prior == "learned" else 0
        linear = (self.rnn_size + self.width) * (self.g_dim + self.has_latent * self.z_dim)
        return 8 * self.rnn_size**2 * n_layers + 16 * self.width**2 + linear


@dataclass(frozen=True, kw_only=True)
class TransportConfig(ModelConfig):
    """Canvases that move; the defaults are for two digits of Moving MNIST."""

    family: Literal["transport"] = "transport"
    prior: Literal["learned", "fixed", "none"] = "learned"  # none: no latent, a deterministic predictor
    layers: int = 2  # canvases: at least as many as there are things that move on their own
    rnn_size: int = 192  # hidden units of prior and posterior, which serve all layers
    width: int = 32  # channels of the network that writes the context onto the canvases
    max_displacement: int = 5  # pixels per frame and axis
    rehearsals: int = 4  # earlier clips that a learned prior rehearses, for every new one; 0: none
    actions: int = 0  # size of the actions given to prior and posterior (bair, pushing: 4); 0: none

    def __post_init__(self) -> None:
        if self.prior != "learned":
            self.refuse(f"is not used with model.prior {self.prior}", "rehearsals")
        self.require("in [0, 64]", lambda value: 0 <= value <= 64, "rehearsals")
        if self.prior == "fixed":
            self.refuse("is not used with model.prior fixed, which is blind to them", "actions")
        self.check_sizes("layers", "rnn_size", "width", "max_displacement")

    def least_weights(self) -> int:
        gate = 9 * 4**2 * self.width * (self.layers + 2)  # on patches of 4x4 pixels
        evidence = 2 * (2 * self.max_displacement + 1) ** 2
        return gate + self.rnn_size * (16 * self.rnn_size + evidence)


@dataclass(frozen=True, kw_only=True)
class SceneConfig(ModelConfig):
    """A figure that moves before a still camera; the defaults are for 64 px of a robot arm over a table."""

    family: Literal["scene"] = "scene"
    prior: Literal["learned", "fixed", "none"] = "learned"  # none: no latent, a deterministic predictor
    z_dim: int = 8  # latents per frame; unused with prior none
    width: int = 32  # channels of the finest convolutions; twice as many where the picture is half as large
    rnn_size: int = 128  # hidden units of prior and posterior; the figure's pose has twice as many
    motions: int = 6  # displacements of the ground, of which each pixel takes its own mixture
    max_displacement: int = 6  # pixels per frame and axis
    actions: int = 0  # size of the actions given to prior, posterior and pose (bair, pushing: 4); 0: none

    def __post_init__(self) -> None:
        if not self.has_latent:
            self.refuse("is not used with model.prior none", "z_dim")
        self.check_sizes("z_dim", "width", "rnn_size", "motions", "max_displacement")

    def least_weights(self) -> int:
        linear = self.rnn_size * (16 * self.rnn_size + self.has_latent * (8 * self.rnn_size + self.z_dim))
        return 200 * self.width**2 + linear + 2 * self.width * 16 * self.motions


@dataclass(frozen=True, kw_only=True)
class ImageConfig(ModelConfig):
    """Encoder and decoder of single images."""

    needs_context = False

    family: Literal["image"] = "image"
    network: Literal["dcgan", "vgg"] = "dcgan"  # encoder and decoder
    norm: Literal["batch", "group"] = "batch"  # of the convolutions; group is blind to the batch
    width: int = 64  # channels of the finest level
    g_dim: int = 128  # image feature
    z_dim: int = 10  # latents per image

    def __post_init__(self) -> None:
        self.check_sizes("width", "g_dim", "z_dim")

    def least_weights(self) -> int:
        return 16 * self.width**2 + (self.width + self.z_dim) * self.g_dim


_CLASSES = (SvgConfig, TransportConfig, SceneConfig, ImageConfig)
BY_NAME = variants("family", *_CLASSES)
AnyModelConfig = union("family", *_CLASSES)
