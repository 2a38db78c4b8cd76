"""Predictions in one HDF5 file, ours or another program's: scored again without the model or a GPU.

docs/predictions.md describes the format for other programs. In short (V videos, N samples, T frames, F = T - n_past):

    truth            (V, T, C, H, W) uint8      the test videos, context and future
    samples          (V, N, F, C, H, W) uint8   predicted futures
    posterior        (V, F, C, H, W) uint8      optional: reconstructions of the future
    sigma            (V, N, F, c, h, w) float16 optional: decoder's sigma, c h w being C H W or 1 1 1
    posterior_sigma  (V, F, c, h, w) float16    optional
    mean_image       (C, H, W) float32          optional: mean frame of the training set, [0, 1]

Attributes: format ("seqvae predictions"), version (1), n_past, and optionally the JSON string `facts`.
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor
from typing_extensions import TypedDict

from seqvae.evaluation.predictions import BadPredictions, Predictions, array
from seqvae.extras import require

with suppress(ImportError):  # the extra `hdf5`, asked for where a file is read and before one is written
    import h5py

FORMAT, VERSION = "seqvae predictions", 1
# A chunk is one video or one of its futures; the checksum of each finds damage that gzip alone would pass.
STORAGE = {"compression": "gzip", "compression_opts": 4, "fletcher32": True}
FILTERS = {1, 2, 3, 4, 5, 6, 32000}  # HDF5's own and lzf; any other makes HDF5 look for a plugin, which is code
MIN_SIZE = 11  # px, SSIM's window


class ProtocolFacts(TypedDict, total=False):
    """Of one protocol."""

    n_samples: Annotated[int, Field(ge=1)]  # the protocol's
    note: str  # printed with the protocol's name
    n_videos: Annotated[int, Field(ge=1)]  # that the numbers below were measured on
    bounds: dict[str, Any]


class Facts(TypedDict, total=False):
    """What the attribute `facts` may hold; other keys are kept as they are."""

    __pydantic_config__ = ConfigDict(extra="allow")

    source: str
    data: str
    root: str | None
    run: str
    checkpoint: str
    amp: str
    actions: Literal["true", "none", "shuffled"]
    step: Annotated[int, Field(ge=0, lt=2**63)]
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    sigma: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    geco: dict[str, Any]
    config: dict[str, Any]
    test_set: dict[str, str | int | float | bool | None]
    protocols: dict[str, ProtocolFacts]


FACTS = TypeAdapter(Facts)


class SavedPredictions(Predictions):
    """A file's predictions; frames are read when they are asked for.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no predictions file, truncated, damaged, or of a wrong shape, dtype or range; one line that says
            what was found and what was expected. Damage inside the frames is BadPredictions when they are read.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path, self.device = Path(path), device
        require("h5py", "hdf5", f"{path}, a file of predictions,")
        if not self.path.is_file():
            raise FileNotFoundError(f"{path} is not a file; expected predictions that --save-predictions wrote")
        try:
            self.file = h5py.File(self.path, "r")
            attributes = {name: _plain(value) for name, value in self.file.attrs.items()}
        except (OSError, RuntimeError, KeyError) as error:  # h5py has one for each place that can be damaged
            raise ValueError(f"{path} is not a whole HDF5 file ({_line(error)}); write it again") from None
        if (attributes.get("format"), attributes.get("version")) != (FORMAT, VERSION):
            found = ", ".join(f"{name} {attributes.get(name)!r}" for name in ("format", "version"))
            raise ValueError(f"{path} has {found}, expected format {FORMAT!r}, version {VERSION}")
        truth, samples = (self._dataset(name, np.uint8, ndim) for name, ndim in (("truth", 5), ("samples", 6)))
        n_past = attributes.get("n_past")
        if not isinstance(n_past, int) or not 1 <= n_past < truth.shape[1]:
            raise ValueError(f"{path}: n_past is {n_past!r}, expected an integer in [1, {truth.shape[1] - 1}]")
        self.n_past, self.n_future = n_past, truth.shape[1] - n_past
        self.n_videos, self.n_samples = samples.shape[:2]
        frame = truth.shape[2:]
        if frame[0] not in (1, 3) or 0 in (*truth.shape, *samples.shape) or min(frame[1:]) < MIN_SIZE:
            raise ValueError(
                f"{path}: truth is {truth.shape}, expected (V, T, C, H, W) with C 1 or 3, H and W of {MIN_SIZE} px or "
                "more, and nothing empty"
            )
        per_video = (truth.shape[0], self.n_future)
        self._check_shape("samples", (truth.shape[0], self.n_samples, self.n_future, *frame))
        for name, dtype, shape in (("posterior", np.uint8, (*per_video, *frame)), ("mean_image", np.float32, frame)):
            if name in self.file:
                self._dataset(name, dtype, len(shape))
                self._check_shape(name, shape)
        for name, lead in (("sigma", samples.shape[:3]), ("posterior_sigma", per_video)):
            if name in self.file:
                shape = self._dataset(name, np.float16, len(lead) + 3).shape
                if shape not in ((*lead, *frame), (*lead, 1, 1, 1)):
                    raise ValueError(f"{path}: {name} is {shape}, expected {(*lead, *frame)} or {(*lead, 1, 1, 1)}")
        self.mean_image = None
        if "mean_image" in self.file:
            self.mean_image = torch.from_numpy(self._read("mean_image", ...))
            if not ((self.mean_image >= 0) & (self.mean_image <= 1)).all():
                raise ValueError(f"{path}: mean_image has values outside [0, 1], or NaN; pixels are in [0, 1]")
        self.facts = self._facts(attributes.get("facts", "{}"))
        self.one_sigma = self._sigma_attribute(attributes.get("sigma"))

    def truth(self, videos: range) -> Tensor:
        return torch.from_numpy(self._read("truth", np.s_[videos.start : videos.stop]))

    def futures(self, videos: range, samples: range) -> tuple[Tensor, Tensor | None]:
        index = np.s_[videos.start : videos.stop, samples.start : samples.stop]
        return self._frames("samples", index).transpose(0, 1), self._sigma("sigma", index, lambda x: x.transpose(0, 1))

    def posterior(self, videos: range) -> tuple[Tensor, Tensor | None] | None:
        if "posterior" not in self.file:
            return None
        index = np.s_[videos.start : videos.stop]
        return self._frames("posterior", index), self._sigma("posterior_sigma", index, lambda x: x)

    def _frames(self, name: str, index) -> Tensor:
        return torch.from_numpy(self._read(name, index)).to(self.device)

    def _sigma(self, name: str, index, arrange) -> Tensor | None:
        if name not in self.file:
            return self.one_sigma
        sigma = arrange(torch.from_numpy(self._read(name, index)).to(self.device).float())
        if not ((sigma > 0) & sigma.isfinite()).all():
            raise BadPredictions(f"{self.path}: {name} has values that are not finite and > 0")
        return sigma

    def _read(self, name: str, index) -> np.ndarray:
        try:
            return self.file[name][index]
        except OSError as error:
            raise BadPredictions(f"{self.path}: {name} is damaged ({_line(error)}); write it again") from None

    def _dataset(self, name: str, dtype: type, ndim: int) -> "h5py.Dataset":
        """A dataset of this very file, all of it written; nothing of it has been read."""
        try:
            link = self.file.get(name, getlink=True)
            if link is not None and not isinstance(link, h5py.HardLink):
                raise ValueError(f"{self.path}: {name} is a link; write the frames themselves into the file")
            found = self.file.get(name)
            if isinstance(found, h5py.Dataset):
                self._check_storage(name, found)
        except (OSError, RuntimeError, KeyError) as error:
            raise ValueError(f"{self.path}: {name} is damaged ({_line(error)}); write it again") from None
        what = f"{found.shape} {found.dtype}" if isinstance(found, h5py.Dataset) else "missing"
        if what == "missing" or found.dtype != dtype or found.ndim != ndim:
            raise ValueError(f"{self.path}: {name} is {what}, expected {ndim} axes of {np.dtype(dtype)}")
        return found

    def _check_storage(self, name: str, found: "h5py.Dataset") -> None:
        """ValueError for data in other files or virtual, filters that are plugins, and frames that nobody wrote."""
        settings = found.id.get_create_plist()
        if found.is_virtual or settings.get_external_count():
            raise ValueError(f"{self.path}: {name} lies in other files; write the frames themselves into the file")
        filters = {settings.get_filter(i)[0] for i in range(settings.get_nfilters())}
        if not filters <= FILTERS:
            raise ValueError(f"{self.path}: {name} is compressed by a plugin; use gzip, lzf or no compression")
        stored = found.id.get_storage_size()
        whole = stored >= found.nbytes
        if found.chunks:
            expected = math.prod(-(-n // c) for n, c in zip(found.shape, found.chunks))
            whole = found.id.get_num_chunks() >= expected
        # gzip compresses to 1/1032 at most
        if not whole or stored > self.path.stat().st_size or found.nbytes > 1100 * stored:
            raise ValueError(
                f"{self.path}: {name} is {found.shape}, {found.nbytes:,} bytes, of which the file holds {stored:,} on "
                f"disk: not all of it was written"
            )

    def _check_shape(self, name: str, expected: tuple[int, ...]) -> None:
        if self.file[name].shape != expected:
            raise ValueError(f"{self.path}: {name} is {self.file[name].shape}, expected {expected} beside truth")

    def _facts(self, text: object) -> "Facts":
        try:
            facts = FACTS.validate_json(text if isinstance(text, str) else b"")
            json.dumps(facts, allow_nan=False)
            return facts
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, ("facts", *first["loc"])))
            raise ValueError(f"{self.path}: the attribute {where}: {first['msg']}; docs/predictions.md") from None
        except ValueError:
            raise ValueError(f"{self.path}: the attribute facts holds NaN or infinity, which JSON has not") from None

    def _sigma_attribute(self, sigma: object) -> Tensor | None:
        if sigma is None:
            return None
        if not isinstance(sigma, int | float) or not 0 < sigma < np.inf:
            raise ValueError(f"{self.path}: the attribute sigma is {sigma!r}, expected a number > 0")
        return torch.tensor(sigma, dtype=torch.float64, device=self.device)


class Writer:
    """Takes what is predicted while it is scored."""

    def __init__(self, file: "h5py.File", predictions: Predictions, disk: "_Disk") -> None:
        self.file, self.predictions, self.disk = file, predictions, disk

    def add_truth(self, videos: range, truth: Tensor) -> None:
        """truth: (B, T, C, H, W) uint8."""
        self._put("truth", np.s_[videos.start : videos.stop], truth, lead=1)

    def add_futures(self, videos: range, samples: range, frames: Tensor, sigma: Tensor | None) -> None:
        """frames: (n, B, F, C, H, W) uint8."""
        index = np.s_[videos.start : videos.stop, samples.start : samples.stop]
        self._put("samples", index, frames.transpose(0, 1), lead=2)
        self._put_sigma("sigma", index, sigma if sigma is None or not sigma.ndim else sigma.transpose(0, 1), lead=2)

    def add_posterior(self, videos: range, frames: Tensor, sigma: Tensor | None) -> None:
        """frames: (B, F, C, H, W) uint8."""
        index = np.s_[videos.start : videos.stop]
        self._put("posterior", index, frames, lead=1)
        self._put_sigma("posterior_sigma", index, sigma, lead=1)

    def _put_sigma(self, name: str, index, sigma: Tensor | None, lead: int) -> None:
        if sigma is not None and sigma.ndim == 0:
            self.file.attrs["sigma"] = sigma.item()
        elif sigma is not None:
            self._put(name, index, sigma.half(), lead)

    def _put(self, name: str, index, values: Tensor, lead: int) -> None:
        if name not in self.file:
            first = (self.predictions.n_videos, self.predictions.n_samples)[:lead]
            rest = tuple(values.shape[lead:])
            chunks = (*(1 for _ in first), *rest)
            self.file.create_dataset(name, (*first, *rest), array(values[:0]).dtype, chunks=chunks, **STORAGE)
        self.file[name][index] = array(values)
        self.disk.check()


class _Disk:
    """A file whose first failed write is kept for later: HDF5 itself does not survive one."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.error = file, None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            return len(data)

    def check(self) -> None:
        if self.error is not None:
            raise self.error

    def __getattr__(self, name: str):
        return getattr(self.file, name)


@contextmanager
def writing(path: Path, predictions: Predictions, facts: dict[str, object]) -> Iterator[Writer]:
    """A file that is there when the block has ended well, and not there otherwise; OSError if it cannot be written.

    Args:
        facts: JSON values to keep with the frames: what made them, and what only the model can say.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w+b", buffering=0) as raw:
            disk = _Disk(raw)
            with h5py.File(disk, "w", libver="v110") as file:
                # Text of a fixed length lies in the object header, which has a checksum; h5py's str does not.
                text = {"format": np.bytes_(FORMAT), "facts": np.bytes_(json.dumps(facts))}
                file.attrs.update(text, version=VERSION, n_past=predictions.n_past)
                if predictions.mean_image is not None:
                    mean = array(predictions.mean_image.float())
                    file.create_dataset("mean_image", data=mean, chunks=mean.shape, **STORAGE)
                yield Writer(file, predictions, disk)
            disk.check()
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _plain(value: object) -> object:
    """An attribute as Python has it; text of a fixed length comes as bytes."""
    value = value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
