"""Which videos, and how they are cut: one variant for each dataset. The defaults are those of `datasets`."""

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from seqvae.config.base import MAX_SEED, Settings, union, variants

IMAGE_SIZES = (32, 64, 128, 256)  # that there are networks for


@dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """What every dataset has. Fields that a variant adds are options of its loader, but for those in `arguments`."""

    group = "data"

    # digits: from a font, nothing to download; moving_mnist: handwritten; bair, pushing: robot pushing, filmed or
    # rendered; kth: people who move; video_folder: your own; mnist, cifar10: single images
    name: str
    image_size: int = 64  # 32, 64, 128 or 256 pixels

    images: ClassVar[bool] = False  # whether clips are single images: no context, no recurrence
    root: ClassVar[str | None] = None  # folder of the files, of datasets that have any
    seed: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.image_size not in IMAGE_SIZES:
            raise ValueError(
                f"data.image-size is {self.image_size}; networks exist for {', '.join(map(str, IMAGE_SIZES))}"
            )

    def options(self) -> dict[str, object]:
        """The dataset's own options."""
        common = ("name", "root", "n_past", "n_future", "image_size", "seed")
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in common}

    def arguments(self) -> dict[str, object]:
        """Arguments of datasets.load_dataset, all but the split."""
        whole = {"name": self.name, "root": self.root, "seq_len": self.seq_len}
        return whole | {"image_size": self.image_size, "seed": self.seed} | self.options()

    @property
    def n_predicted(self) -> int:
        """F, frames of a training clip that the model predicts: all but the first, or the image itself."""
        return self.seq_len - (not self.images)

    @property
    def seq_len(self) -> int:
        """Frames of a training clip."""
        return self.n_past + self.n_future


@dataclass(frozen=True, kw_only=True)
class VideoDataConfig(DataConfig):
    """Videos: frames to observe, then frames to predict."""

    n_past: int = 5  # frames to condition on
    n_future: int = 10  # frames to predict in training
    seed: int = 0  # clip i of a split is a function of (seed, split, i) alone

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_past < 1:
            raise ValueError(f"data.n-past must be >= 1 frame to condition on, got {self.n_past}")
        if self.n_future < 1:
            raise ValueError(
                f"data.n-past is {self.n_past} of the clip's {self.seq_len} frames (data.n-future {self.n_future}): "
                "none is left to predict; give data.n-future >= 1"
            )
        self.require("in [0, 2^32)", lambda value: 0 <= value < MAX_SEED, "seed")


@dataclass(frozen=True, kw_only=True)
class DigitsConfig(VideoDataConfig):
    """Digits of a font that move, bounce and overlap: nothing to download."""

    name: Literal["digits"] = "digits"
    digit_size: int | None = None  # pixels, 8 to image-size; None: half of image-size
    n_digits: int = 1  # digits per clip
    deterministic: bool = False  # keep the speed at a bounce instead of drawing a new one
    min_speed: int = 0  # smallest |dx| and |dy|, pixels per frame
    max_speed: int = 4  # largest |dx| and |dy|, pixels per frame


@dataclass(frozen=True, kw_only=True)
class MovingMnistConfig(DigitsConfig):
    """Stochastic Moving MNIST: handwritten digits that move, bounce and overlap."""

    name: Literal["moving_mnist"] = "moving_mnist"
    root: str = "data"  # folder of the files
    glyphs: Literal["mnist", "drawn"] = "mnist"  # where the digits come from
    digit_size: int = 28  # pixels: 28 (exact reflection, SRVP's test set) or 32 (SVG's)
    n_digits: int = 2  # digits per clip


@dataclass(frozen=True, kw_only=True)
class BairConfig(VideoDataConfig):
    """BAIR robot pushing."""

    name: Literal["bair"] = "bair"
    root: str = "data"  # folder of the files
    flip: bool = False  # turn training clips left to right at random


@dataclass(frozen=True, kw_only=True)
class PushingConfig(BairConfig):
    """Rendered robot pushing."""

    name: Literal["pushing"] = "pushing"


@dataclass(frozen=True, kw_only=True)
class KthConfig(VideoDataConfig):
    """KTH's human actions."""

    name: Literal["kth"] = "kth"
    root: str = "data"  # folder of the files


@dataclass(frozen=True, kw_only=True)
class VideoFolderConfig(VideoDataConfig):
    """A folder of your own videos."""

    name: Literal["video_folder"] = "video_folder"
    root: str = "data"  # folder of the videos
    stride: int = 1  # take every stride-th frame of a video


@dataclass(frozen=True, kw_only=True)
class ImageDataConfig(DataConfig):
    """Single images: videos of one frame that is predicted from nothing."""

    images = True
    n_past: ClassVar[int] = 0
    n_future: ClassVar[int] = 1

    root: str = "data"  # folder of the files
    image_size: int = 32  # pixels; the only size of images


@dataclass(frozen=True, kw_only=True)
class MnistConfig(ImageDataConfig):
    """MNIST's digits."""

    name: Literal["mnist"] = "mnist"


@dataclass(frozen=True, kw_only=True)
class Cifar10Config(ImageDataConfig):
    """CIFAR-10's colour images."""

    name: Literal["cifar10"] = "cifar10"
    source: Literal["torchvision", "jpeg"] = "torchvision"  # the published files, or a lossy copy


_CLASSES = (
    *(DigitsConfig, MovingMnistConfig, BairConfig, PushingConfig, KthConfig),
    *(VideoFolderConfig, MnistConfig, Cifar10Config),
)
BY_NAME = variants("name", *_CLASSES)
AnyDataConfig = union("name", *_CLASSES)
