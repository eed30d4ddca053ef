"""The extractor of each feature stream, recorded in a checkpoint and compared with the features it is given.

A feature store's manifest says it (`FeatureStore.extractors`). Training writes it into the checkpoint's
`processor_config.json`, as `feature_extractor.extractors`; a version of this package that does not know the field
keeps it unread. Features of another extractor, revision, size or sampling have the right width and no meaning, so they
are refused by name; what one side does not say is not compared.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from modeling_mmt.data.errors import InputError

TEXTS = ("extractor", "revision")


class ExtractorError(InputError):
    """Features were not made as those that a checkpoint was trained on; names the store, the field and the remedy."""


@dataclass(frozen=True)
class Extractor:
    """What made one stream of features; None is not known.

    Args:
        dim: D_v, the width of a step.
        extractor: name of the encoder: packaged, on the Hub, or of its folder.
        revision: its commit on the Hub, or `sha256:` and its weights' hash.
        image_size: side of a frame in pixels.
        num_frames: of a clip, spread evenly.
        frames_per_second: or frames per second of video.

    Raises:
        ValueError: a value is of another type; names the field.
    """

    dim: int
    extractor: str | None = None
    revision: str | None = None
    image_size: int | None = None
    num_frames: int | None = None
    frames_per_second: float | None = None

    def __post_init__(self):
        """Check the types: a checkpoint may come from anywhere."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not _fits(field.name, value):
                kind = "text" if field.name in TEXTS else "positive number"
                raise ValueError(
                    f"{field.name} is {value!r}; give a {kind}{'' if field.name == 'dim' else ', or null'}"
                )

    @classmethod
    def of_manifest(cls, manifest: dict[str, Any]) -> "Extractor":
        """What a feature store's manifest says."""
        source = manifest.get("source")
        source = source if isinstance(source, Mapping) else {}
        says = manifest | {name: source.get(name) for name in ("image_size", "num_frames", "frames_per_second")}
        names = [field.name for field in fields(cls)]  # what converted stores say there in other words is not known
        known: dict[str, Any] = {name: says[name] for name in names if _fits(name, says[name])}
        return cls(**known)

    @property
    def sampling(self) -> str | None:
        """Which frames of a clip, in words."""
        if self.num_frames is not None:
            return f"{self.num_frames} frames"
        return None if self.frames_per_second is None else f"{self.frames_per_second:g} frames a second"

    @property
    def command(self) -> str:
        """How `mmt extract` makes such features."""
        options = {name: getattr(self, name) for name in ("image_size", "num_frames", "frames_per_second")}
        words = [f"--{name} {value}" for name, value in {"encoder": self.extractor, **options}.items() if value]
        return " ".join(["mmt extract SOURCE --output_dir FOLDER", *words])

    def differences(self, other: "Extractor", with_sampling: bool = True) -> Iterator[str]:
        """Names each field in which `other` was made differently, with both values."""
        for name in ("dim", "extractor", "revision", "image_size", *(["sampling"] if with_sampling else [])):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs and mine is not None and theirs is not None:
                yield f"{name} is {theirs}, not {mine}"


def _fits(name: str, value: Any) -> bool:
    if value is None:
        return name != "dim"
    if name in TEXTS:
        return isinstance(value, str)
    kinds = int | float if name == "frames_per_second" else int
    return isinstance(value, kinds) and not isinstance(value, bool) and 0 < value < math.inf


def encoder_name(name: str) -> str:
    """What an encoder is called in a store or a checkpoint: of a path, which is this machine's, the last part."""
    return Path(name).name if Path(name).is_dir() or name.endswith(".pth") else name


def recorded_extractors(processor: Any) -> list[Extractor]:
    """What made the features that a checkpoint was trained on, a stream after the other.

    Args:
        processor: of the checkpoint.

    Returns:
        Empty where it was not recorded: the features lay in the rows, or an earlier version trained it.

    Raises:
        ExtractorError: the record is not as training writes it.
    """
    recorded = getattr(getattr(processor, "feature_extractor", None), "extractors", None) or []
    names = {field.name for field in fields(Extractor)}
    try:
        return [Extractor(**{name: stream[name] for name in names & {*stream}}) for stream in recorded]
    except (TypeError, ValueError) as error:
        raise ExtractorError(
            f"processor_config.json: feature_extractor.extractors is {recorded!r} ({error}); download the checkpoint "
            "again, or set it to null"
        ) from error


def record_extractors(processor: Any, extractors: Sequence[Extractor]) -> None:
    """Write down in a processor what made the features that its model is trained on."""
    processor.feature_extractor.extractors = [asdict(extractor) for extractor in extractors] or None


def check_extractors(processor: Any, extractors: Sequence[Extractor], names: Sequence[str] = ()) -> None:
    """Refuse features that were made in another way than those that a checkpoint was trained on.

    Args:
        processor: of the checkpoint.
        extractors: of the features' streams, such as `FeatureStores.extractors`; empty: not known.
        names: of the streams, for the message, such as their stores' folders.

    Raises:
        ExtractorError: names the stream, what differs, and how to make the right features.
    """
    recorded = recorded_extractors(processor)
    if not recorded or not extractors:
        return
    if len(recorded) != len(extractors):
        made = ", ".join(str(stream.extractor) for stream in recorded)
        raise ExtractorError(
            f"features: {len(extractors)} streams, but the checkpoint was trained on {len(recorded)}: give {made}"
        )
    for number, (mine, theirs) in enumerate(zip(recorded, extractors, strict=True)):
        name = names[number] if names else f"stream {number} of the features"
        for difference in mine.differences(theirs):
            raise ExtractorError(
                f"{name}: {difference} as of the features that the checkpoint was trained on; give such features: "
                f"{mine.command}"
            )
