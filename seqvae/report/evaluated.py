"""What an evaluation left behind: the content of metrics.json, checked, and read again where runs are compared."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from seqvae.metrics.protocols import METRICS, Metric
from seqvae.metrics.published import MARKS

Count = Annotated[int, Field(ge=0, lt=2**63)] | None
Number = float | None


class Entry(TypedDict, total=False):
    """Of metrics.json; here and below any entry may be absent, and others are kept as they are."""

    __pydantic_config__ = ConfigDict(extra="allow")


class Curve(Entry, total=False):
    mean: list[Number]
    interval95: list[Number]


def _as_long(curve: Curve) -> Curve:
    if len({len(values) for values in (curve.get("mean"), curve.get("interval95")) if values is not None}) > 1:
        raise ValueError("mean and interval95 differ in length")
    return curve


class Estimated(Entry, total=False):
    mean: Number
    interval95: Number
    per_frame: Annotated[Curve, AfterValidator(_as_long)]


class Calibrated(Entry, total=False):
    ratio: Estimated
    coverage: dict[Annotated[str, Field(pattern=r"^0\.\d+$")], Estimated]


class Interval(Entry, total=False):
    mean: Number
    low: Number
    high: Number


class StoredMetric(Entry, total=False):
    label: str
    definition: str | None
    higher_is_better: bool


class Definitions(Entry, total=False):
    name: str
    data: str | None
    n_past: Count
    n_future: Count


class TestSet(Entry, total=False):
    name: str | None
    sha256: str | None


class Distance(Entry, total=False):
    distance: Number
    floor: Number
    n_fake: Count
    n_real: Count
    sha256: str | None


class Published(Entry):
    name: str
    mark: Literal[tuple(MARKS)]


class Bounds(Entry, total=False):
    rate_nats_per_frame: Number
    distortion_nats_per_frame: Number
    rmse: Number
    bits_per_dim: Number
    bits_bound_the_bytes: bool
    active_units: Count
    kl_per_frame: list[Number]
    kl_per_latent: list[float]


class Facts(Entry, total=False):
    """metrics.json of one evaluation."""

    protocol: str
    definitions: Definitions
    metrics: dict[str, StoredMetric]
    n_samples: Count
    n_videos: Count
    n_images: Count
    test_set: TestSet
    results: dict[str, dict[str, Estimated | Number]]
    best_of_n: dict[str, dict[Annotated[int, Field(ge=1, lt=2**63)], Interval]]
    oracle_best_of_n: dict[str, dict[Annotated[int, Field(ge=1, lt=2**63)], Interval]]
    squared_error: dict[str, Estimated]
    diversity: Estimated
    diversity_lpips: Estimated
    calibration: dict[str, str | Calibrated]
    published: list[Published]
    frechet: dict[str, Distance]
    left_out: list[str]
    bounds: Bounds
    geco: dict[str, Any]
    config: dict[str, Any]
    versions: dict[str, Any]
    predictions: dict[str, Any]
    run: str
    checkpoint: str
    actions: Literal["true", "none", "shuffled"]
    command: str
    step: Count
    seed: Count
    sigma: Number


FACTS = TypeAdapter(Facts)

Score = tuple[float, float | None]  # mean, half width of its 95 % interval if known


@dataclass(frozen=True)
class Evaluated:
    """One evaluation's folder and the content of its metrics.json; most entries may be absent."""

    folder: Path
    facts: dict
    name: str  # of the run, or of the program that made the predictions

    @property
    def images(self) -> bool:
        """Of single images, not of videos."""
        return "squared_error" in self.facts

    @property
    def definitions(self) -> dict:
        return self.facts.get("definitions") or {}

    @property
    def metrics(self) -> dict[str, Metric]:
        """By key, those that were scored. What the file does not say is as in METRICS."""
        found = {}
        for key in self.facts.get("best_of_n", {}):
            stored = (self.facts.get("metrics") or {}).get(key, {})
            metric = METRICS.get(key) or Metric(key=key, name=key, score=None, definition="")
            label = stored.get("label") or metric.label
            if label != metric.label:
                metric = replace(metric, name=label, unit="")
            better = stored.get("higher_is_better", metric.higher_is_better)
            found[key] = replace(metric, definition=stored.get("definition") or "", higher_is_better=better)
        return found

    def find(self, *path: str) -> object:
        """The entry below these keys; None where one of them is absent."""
        value: object = self.facts
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def score(self, *path: str) -> Score | None:
        """The entry's mean and half width, of {mean, interval95} or a number; None if it is absent or not finite."""
        return as_score(self.find(*path))


def of_actions(facts: dict) -> str:
    """What the videos were predicted under, to print; "" for the actions that were taken, and without any."""
    return {"none": "no actions", "shuffled": "another video's actions"}.get(facts.get("actions"), "")


def as_score(value: object) -> Score | None:
    """Of {mean, interval95}, [mean, half width] or a number; None where the mean is not finite."""
    if isinstance(value, dict):
        value = [value.get("mean"), value.get("interval95")]
    mean, half_width = [*value, None][:2] if isinstance(value, list) else (value, None)
    return (mean, half_width if finite(half_width) else None) if finite(mean) else None


def finite(value: object) -> bool:
    """Whether it is a number, and no NaN or infinity."""
    return isinstance(value, int | float) and math.isfinite(value)


def evaluated(folder: Path, content: bytes) -> Evaluated:
    """From the content of its metrics.json; ValueError, in one line, if it is none."""
    path = folder / "metrics.json"
    try:
        facts = FACTS.validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"][:4])) or "metrics.json"
        raise ValueError(f"{path} cannot be read: {where}: {first['msg']}; evaluate the run again") from None
    needed = {"test_set"} if "squared_error" in facts else {"protocol", "definitions", "results", "best_of_n"}
    if missing := sorted((needed | {"test_set"}) - facts.keys()):
        raise ValueError(f"{path} has no {', '.join(missing)}: evaluate the run again")
    run = Path(str(facts.get("run") or "")).name
    name = str(run or facts.get("predictions", {}).get("source") or folder.resolve().name)
    return Evaluated(folder, facts, f"{name} ({actions})" if (actions := of_actions(facts)) else name)


def read_evaluations(folders: Sequence[Path]) -> list[Evaluated]:
    """The evaluations in these folders; runs of one name are told apart by their folder.

    Raises:
        FileNotFoundError: a folder without metrics.json.
        ValueError: no folders, or a metrics.json that cannot be read or lacks what every evaluation has.
    """
    if not folders:
        raise ValueError("there is no evaluation to report: name at least one folder with a metrics.json")
    found = []
    for folder in map(Path, folders):
        path = folder / "metrics.json"
        try:
            found.append(evaluated(folder, path.read_bytes()))
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"{path} is missing; evaluate the run first: python evaluate.py RUN") from None
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error}; evaluate the run again") from None
    names = [e.name for e in found]
    return [e if names.count(e.name) == 1 else replace(e, name=f"{e.name} ({e.folder})") for e in found]
