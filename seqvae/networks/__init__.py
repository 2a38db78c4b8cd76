"""Registry of encoders and decoders.

A pair (encoder, decoder) shares one width and one image size: `build_encoder` and `build_decoder` take the same
arguments, and the encoder's skips are what the decoder expects.
"""

from torch import nn

from seqvae.config.data import IMAGE_SIZES
from seqvae.networks.dcgan import DCGANDecoder, DCGANEncoder
from seqvae.networks.vgg import VGGDecoder, VGGEncoder

NETWORKS = {"dcgan": (DCGANEncoder, DCGANDecoder), "vgg": (VGGEncoder, VGGDecoder)}


def build_encoder(name: str, image_size: int, channels: int, g_dim: int, width: int, norm: str) -> nn.Module:
    """Encoder (B, channels, S, S) -> feature (B, g_dim) and skips; raises ValueError for an unknown name or size."""
    return _entry(name, image_size)[0](image_size, channels, g_dim, width, norm)


def build_decoder(
    name: str, image_size: int, channels: int, g_dim: int, width: int, norm: str, with_skips: bool = True
) -> nn.Module:
    """Decoder feature (B, g_dim) and skips, if it has them -> (B, channels, S, S), no output nonlinearity."""
    return _entry(name, image_size)[1](image_size, channels, g_dim, width, norm, with_skips)


def _entry(name: str, image_size: int) -> tuple[type[nn.Module], type[nn.Module]]:
    if name not in NETWORKS:
        raise ValueError(f"model.network is {name!r}, expected one of {', '.join(NETWORKS)}")
    if image_size not in IMAGE_SIZES:
        raise ValueError(f"data.image-size is {image_size}; {name} exists for {', '.join(map(str, IMAGE_SIZES))}")
    return NETWORKS[name]
