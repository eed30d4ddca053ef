"""An index of clips: build it from a dataset, store it on disk or on the Hub, search it in any language.

    index = SearchIndex.build(model, processor, rows, features)
    index.save("index")
    hits = SearchIndex.load("index", model).search_texts(model, processor, ["con mèo"], top=8)

An index is a folder, or a repository of type dataset on the Hub (`manifest.py` says what is in it). Its rows are a
dataset's clips, or the windows and pictures of a folder of media (`media_index.py`, which keeps it up to date): then
`file`, `start` and `end` say where a row lies, and it has a thumbnail.

Two models' embeddings have nothing to say to each other, however alike their shapes: an index whose fingerprint is not
the model's is refused. Ids are data: no file is ever named after one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset

from modeling_mmt.data.clip_cache import ClipSequence
from modeling_mmt.data.extractors import check_extractors
from modeling_mmt.data.files import locked, remove_partials, write_json, writing_folder
from modeling_mmt.data.reading import pinned_snapshot
from modeling_mmt.evaluation.embedding import embed_images, embed_texts, embed_videos
from modeling_mmt.search.engines import SearchEngine, open_engine
from modeling_mmt.search.exact import ExactSearch
from modeling_mmt.search.filters import matching_rows
from modeling_mmt.search.manifest import INDEX, SOURCE, Manifest, SearchIndexError, read_source
from modeling_mmt.search.moments import JoinRule, Moment, Timeline, search_moments
from modeling_mmt.search.segments import NO_FILES, PLACES, Rows, open_rows, with_places, write_segment

__all__ = ["INDEX", "SOURCE", "Hit", "SearchIndex", "SearchIndexError", "model_fingerprint"]

_NOT_OF_THE_MODEL = (
    "transformers_version",
    "architectures",
    "auto_map",
    "dtype",
)  # in a config; weights tell the type


class Hit(NamedTuple):
    """One clip that a query found: its row in the index, the cosine, and its id."""

    row: int
    score: float
    video_id: str


class SearchIndex:
    """Clips and their embeddings, made by one model.

    Args:
        embeddings: `(N, P)` float32 unit vectors.
        clips: N rows with a column `video_id`, without two alike; other columns filter and show. `file`, `start` and
            `end` say where a row lies in the media folder, and when in the file, in seconds from its first frame; they
            are null where that is not known, and added where they are missing.
        fingerprint: of the model, by `model_fingerprint`.
        model: its name or folder, for people.
        revision: its commit or tag, for people.
        engine: searches; None is exact, `ExactSearch`.
        thumbnails: of each row a JPEG or None; None where there are none.
        media_folder: that `file` is relative to, as it was when the index was built; None where it is not known.
        settings: how rows were made of files; None where they were not.

    Raises:
        SearchIndexError: counts differ, ids are missing or repeated, or the engine holds another number of rows.
        ValueError: an embedding is not finite or not of unit norm.
    """

    def __init__(
        self,
        embeddings: torch.Tensor,
        clips: Dataset,
        fingerprint: str,
        model: str = "",
        revision: str | None = None,
        engine: SearchEngine | None = None,
        thumbnails: Sequence[bytes | None] | None = None,
        media_folder: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        if len(embeddings) != len(clips):
            raise SearchIndexError(f"{len(embeddings)} embeddings and {len(clips)} clips; give one of each a clip")
        if "video_id" not in clips.column_names:
            raise SearchIndexError(f"clips have no column video_id; found {', '.join(clips.column_names)}")
        ids = self._ids = clips["video_id"][:]
        self._rows = {video_id: row for row, video_id in enumerate(ids)}
        if len(self._rows) != len(ids):
            twice = next(video_id for row, video_id in enumerate(ids) if self._rows[video_id] != row)
            raise SearchIndexError(f"video_id {twice!r} appears twice; a clip has one row: build the index again")
        self.engine: SearchEngine = ExactSearch(embeddings) if engine is None else engine
        if len(self.engine) != len(ids):
            raise SearchIndexError(f"the engine holds {len(self.engine)} rows, the index {len(ids)}")
        if any(name not in clips.features or clips.features[name].dtype == "null" for name in PLACES):
            clips = Dataset(with_places(clips.with_format("arrow")[:]))
        self.embeddings, self.clips, self.thumbnails = embeddings, clips, thumbnails
        self.fingerprint, self.model, self.revision = fingerprint, model, revision
        self.media_folder, self.settings = media_folder, dict(settings or {})

    def __len__(self) -> int:
        return len(self.embeddings)

    @classmethod
    def build(
        cls,
        model: Any,
        processor: Any,
        rows: Dataset,
        features: Mapping[str, Any] | Sequence[Any],
        *,
        columns: Sequence[str] = (),
        revision: str | None = None,
        progress: str | None = None,
    ) -> SearchIndex:
        """Embed every clip of a dataset.

        Args:
            model: an `MMTModel`.
            processor: its processor.
            rows: with a column `video_id`.
            features: `(F_i, D_v)` array of each `video_id`, such as a `FeatureStore`; or, for a model with vision
                encoders, what its processor reads as a video. Or such clips in the order of the rows.
            columns: of `rows` that are kept beside `video_id`, to filter by or show.
            revision: of the model, where it came from the Hub.
            progress: label of a progress bar; None shows none.

        Raises:
            ValueError: no rows, or a clip that the processor refuses.
            KeyError: a clip without features.
            ExtractorError: as `check_extractors`, of feature stores.
        """
        check_extractors(processor, getattr(features, "extractors", ()))
        clips = rows.select_columns(["video_id", *columns])
        ids = clips["video_id"][:]
        ordered = ClipSequence(features, ids) if isinstance(features, Mapping) else features
        embeddings = embed_videos(model, processor, ordered, progress=progress, ids=ids)
        return cls(embeddings, clips, model_fingerprint(model), model.config._name_or_path, revision)

    # -- kept ---------------------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike, source: Mapping[str, Any] | None = None) -> Path:
        """Write the folder, whole or not at all.

        Args:
            folder: that is made.
            source: what the clips were read from, for `source.json`.

        Raises:
            FileExistsError: something is there.
            SearchIndexError: another process is saving an index there.
        """
        folder = Path(folder)
        if folder.exists():
            raise FileExistsError(f"{folder} already exists; remove it, or save the index elsewhere")
        folder.parent.mkdir(parents=True, exist_ok=True)
        busy = SearchIndexError(f"{folder}: another process is saving an index there; wait for it")
        with locked(folder.with_name(f"{folder.name}.lock"), busy):
            remove_partials(folder)
            self._write(folder, source)
        return folder

    def _write(self, folder: Path, source: Mapping[str, Any] | None) -> None:
        with writing_folder(folder) as partial:
            thumbnails = self.thumbnails or [None] * len(self)
            rows = Rows(self.embeddings, self.clips.with_format("arrow")[:], thumbnails, NO_FILES)
            segment = write_segment(partial, 1, rows)
            dim = self.embeddings.shape[1]
            Manifest(self.fingerprint, self.model, self.revision, dim, self.settings, 1, (segment,)).write(partial)
            if source is not None or self.media_folder is not None:
                write_json(partial / SOURCE, {"media_folder": self.media_folder, **(source or {})})

    @classmethod
    def load(
        cls, folder: str | os.PathLike, model: Any | None = None, verify: bool = True, engine: str = "exact"
    ) -> SearchIndex:
        """Open a saved index; the embeddings stay on disk until they are read.

        Args:
            folder: what `save` wrote.
            model: that will ask; None asks later, with `check_model`.
            verify: compare each file's SHA-256, which reads it all; False compares sizes alone, for an index that this
                process has checked before.
            engine: that searches, and is kept beside the index, by its name in `engines.open_engine`.

        Raises:
            EngineError: no such engine, or it cannot serve this index.
            FileNotFoundError: a file is missing.
            SearchIndexError: a file was cut short or changed, or the index is another model's.
        """
        folder = Path(folder)
        manifest, (embeddings, clips, thumbnails) = _open(folder, verify)
        if not len(clips):
            raise SearchIndexError(f"{folder} holds no row yet; let `mmt index` finish, or look at its --status")
        index = cls(
            embeddings,
            Dataset(clips),
            manifest.fingerprint,
            manifest.model,
            manifest.revision,
            open_engine(engine, folder, clips["video_id"].to_pylist(), embeddings, manifest.fingerprint),
            thumbnails=thumbnails,
            media_folder=read_source(folder).get("media_folder"),
            settings=manifest.settings,
        )
        if model is not None:
            index.check_model(model)
        return index

    def thumbnail(self, row: int) -> bytes | None:
        """JPEG of a row, at most 160 pixels a side; None where the index has none."""
        return self.thumbnails[row] if self.thumbnails is not None else None

    def check_model(self, model: Any) -> None:
        """Refuse a model that did not make this index.

        Raises:
            SearchIndexError: another fingerprint.
        """
        check_fingerprint(model, self.fingerprint, self.model)

    @classmethod
    def from_hub(cls, repo_id: str, revision: str | None = None, model: Any | None = None) -> SearchIndex:
        """Download an index at a tag or commit, and open it with every byte checked.

        Args:
            repo_id: `org/name` of a dataset repository that `mmt publish` made.
            revision: tag, branch or commit; None is `main`.
            model: as `load`'s.

        Raises:
            SnapshotError: as `pinned_snapshot`.
            SearchIndexError: as `load`.
        """
        index = cls.load(pinned_snapshot(repo_id, revision=revision, repo_type="dataset"), model)
        index.media_folder = None  # whatever its author says: a folder of this machine is not theirs to name
        return index

    # -- asked --------------------------------------------------------------------------------------------------------

    def search(self, queries: torch.Tensor, top: int, where: Mapping[str, Any] | None = None) -> list[list[Hit]]:
        """The best clips of each query, best first; with the exact engine, equal ones in the order of the rows.

        Args:
            queries: `(q, P)` float32 unit vectors.
            top: clips a query, from 1 to the number of clips; a filter may leave fewer.
            where: column -> a value, or several of which one must hold; `modeling_mmt.search.filters` compares.

        Raises:
            ValueError: `top` outside the corpus, a query that is not finite or of another width, a filter on a column
                that was not kept or that leaves nothing.
        """
        scores, rows = self.engine.search(queries, top, self.allowed(where))
        return [
            [Hit(row, score, self._ids[row]) for row, score in zip(*line, strict=True) if row >= 0]
            for line in zip(rows.tolist(), scores.tolist(), strict=True)
        ]

    def search_texts(
        self, model: Any, processor: Any, texts: Sequence[str], top: int, where: Mapping[str, Any] | None = None
    ) -> list[list[Hit]]:
        """The best clips of each text, in any language. Check the model once, with `load` or `check_model`."""
        return self.search(embed_texts(model, processor, texts), top, where)

    def search_videos(
        self, model: Any, processor: Any, videos: Sequence[Any], top: int, where: Mapping[str, Any] | None = None
    ) -> list[list[Hit]]:
        """The best clips of each clip or picture, given as `embed_videos` takes them; a picture has one step."""
        return self.search(embed_videos(model, processor, videos), top, where)

    def search_images(
        self, model: Any, processor: Any, images: Sequence[Any], top: int, where: Mapping[str, Any] | None = None
    ) -> list[list[Hit]]:
        """The best clips of each picture, given as a path, bytes or a Pillow picture.

        Raises:
            ValueError: the model has no vision encoder, or a picture cannot be read.
        """
        if model.config.vision_config is None:
            raise ValueError(
                "the model has no vision encoder to look at pictures with: give their features to search_videos, or "
                "take a model of MMTModel.from_encoders"
            )
        return self.search(embed_images(model, processor, images), top, where)

    def search_clips(
        self, video_ids: Sequence[str], top: int, where: Mapping[str, Any] | None = None
    ) -> list[list[Hit]]:
        """The best clips of each clip of the index; the first is itself, or one with the same embedding.

        Raises:
            KeyError: no such clip.
        """
        return self.search(self.embeddings[[self.row(video_id) for video_id in video_ids]], top, where)

    def search_moments(
        self, queries: torch.Tensor, top: int, where: Mapping[str, Any] | None = None, rule: JoinRule | None = None
    ) -> list[list[Moment]]:
        """The best moments of each query: windows of a video joined, as `modeling_mmt.search.moments` says."""
        return search_moments(self, queries, top, where, rule)

    @cached_property
    def timeline(self) -> Timeline:
        """Which windows of a video follow one another."""
        return Timeline(self.clips, self.embeddings)

    def row(self, video_id: str) -> int:
        """Row of a clip.

        Raises:
            KeyError: no such clip.
        """
        if video_id not in self._rows:
            raise KeyError(f"no clip {video_id!r} among the {len(self)} of this index")
        return self._rows[video_id]

    def allowed(self, where: Mapping[str, Any] | None) -> torch.Tensor | None:
        """`(N,)` bool: the rows that a filter leaves; None without one."""
        return matching_rows(self.clips, where)


def model_fingerprint(model: Any) -> str:
    """SHA-256 of a model: its config, and each tensor's name, type, shape and bytes.

    Equal for a model saved and loaded again; different after a training step, in another precision, or for a config
    that computes something else with the same weights.
    """
    digest = hashlib.sha256(json.dumps(_plain(model.config.to_dict()), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_fingerprint(model: Any, expected: str, name: str) -> None:
    """Refuse a model that did not make an index.

    Args:
        model: that is to ask or to go on.
        expected: the index's fingerprint.
        name: of the index's model.

    Raises:
        SearchIndexError: another fingerprint.
    """
    fingerprint = model_fingerprint(model)
    if fingerprint != expected:
        raise SearchIndexError(
            f"the index was made by {name or 'a model'} with fingerprint {expected[:12]}..., and this model's is "
            f"{fingerprint[:12]}...; load that model, or build the index again with this one"
        )


def _plain(config: Any) -> Any:
    """A config without what says where and how it was saved."""
    if not isinstance(config, Mapping):
        return config
    return {
        str(key): _plain(value)
        for key, value in config.items()
        if not str(key).startswith("_") and key not in _NOT_OF_THE_MODEL
    }


def _open(folder: Path, verify: bool) -> tuple[Manifest, Any]:
    """A folder's manifest and rows; once more where a writer merged segments in between."""
    manifest = Manifest.read(folder)
    try:
        return manifest, open_rows(folder, manifest, verify)
    except FileNotFoundError:
        if (again := Manifest.read(folder)) == manifest:
            raise
        return again, open_rows(folder, again, verify)
