"""An index of clips: build it from a dataset, keep it on disk or on the Hub, ask it in any language.

    index = SearchIndex.build(model, processor, rows, features)
    index.save("index")
    hits = SearchIndex.load("index", model).search_texts(model, processor, ["con mèo"], top=8)

An index is a folder, or a repository of type dataset on the Hub:

    embeddings.safetensors   `embeddings` `(N, P)` float32, unit norm, row i is clip i; read memory-mapped
    clips.parquet            `video_id` and the columns that were kept, row i is clip i; what filters and shows
    index.json               the model: name, revision and fingerprint; each file's size and SHA-256

Two models' embeddings have nothing to say to each other, however alike their shapes: an index whose fingerprint is not
the model's is refused. Ids are data: no file is ever named after one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from huggingface_hub import HfApi, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from modeling_mmt.data.clip_cache import ClipSequence
from modeling_mmt.data.errors import InputError
from modeling_mmt.data.extractors import check_extractors
from modeling_mmt.data.files import file_sha256, locked, remove_partials, write_json, writing_folder
from modeling_mmt.evaluation.embedding import embed_images, embed_texts, embed_videos
from modeling_mmt.search.engines import SearchEngine
from modeling_mmt.search.exact import ExactSearch

FORMAT = 1
EMBEDDINGS, CLIPS, INDEX = "embeddings.safetensors", "clips.parquet", "index.json"
SOURCE = "source.json"  # beside them where it is known: what the clips were read from, for who builds it again
FIELDS = ("format", "fingerprint", "model", "revision", "num_clips", "dim", "files")
_NOT_OF_THE_MODEL = (
    "transformers_version",
    "architectures",
    "auto_map",
    "dtype",
)  # in a config; weights tell the type


class SearchIndexError(InputError):
    """An index is not as it must be, or not this model's; the message says where and what helps."""


class Hit(NamedTuple):
    """One clip that a query found: its row in the index, the cosine, and its id."""

    row: int
    score: float
    video_id: str


class SearchIndex:
    """Clips and their embeddings, made by one model.

    Args:
        embeddings: `(N, P)` float32 unit vectors.
        clips: N rows with a column `video_id`, without two alike; other columns filter and show.
        fingerprint: of the model, by `model_fingerprint`.
        model: its name or folder, for people.
        revision: its commit or tag, for people.
        engine: searches; None is exact, `ExactSearch`.

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
    ):
        if len(embeddings) != len(clips):
            raise SearchIndexError(f"{len(embeddings)} embeddings and {len(clips)} clips; give one of each a clip")
        if "video_id" not in clips.column_names:
            raise SearchIndexError(f"clips have no column video_id; found {', '.join(clips.column_names)}")
        ids = self._ids = clips["video_id"][:]
        self._rows = {video_id: row for row, video_id in enumerate(ids)}
        if len(self._rows) != len(ids):
            twice = next(video_id for row, video_id in enumerate(ids) if self._rows[video_id] != row)
            raise SearchIndexError(f"video_id {twice!r} appears twice; a clip has one row")
        self.engine: SearchEngine = ExactSearch(embeddings) if engine is None else engine
        if len(self.engine) != len(ids):
            raise SearchIndexError(f"the engine holds {len(self.engine)} rows, the index {len(ids)}")
        self.embeddings, self.clips = embeddings, clips
        self.fingerprint, self.model, self.revision = fingerprint, model, revision

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
            save_file({"embeddings": self.embeddings.contiguous()}, partial / EMBEDDINGS)
            self.clips.to_parquet(partial / CLIPS)
            content = {
                "format": FORMAT,
                "fingerprint": self.fingerprint,
                "model": self.model,
                "revision": self.revision,
                "num_clips": len(self),
                "dim": self.embeddings.shape[1],
                "files": {
                    name: {"num_bytes": (partial / name).stat().st_size, "sha256": file_sha256(partial / name)}
                    for name in (EMBEDDINGS, CLIPS)
                },
            }
            write_json(partial / INDEX, content)
            if source is not None:
                write_json(partial / SOURCE, source)

    @classmethod
    def load(cls, folder: str | os.PathLike, model: Any | None = None, verify: bool = True) -> SearchIndex:
        """Open a saved index; the embeddings stay on disk until they are read.

        Args:
            folder: what `save` wrote.
            model: that will ask; None asks later, with `check_model`.
            verify: compare each file's SHA-256, which reads it all; False compares sizes alone, for an index that this
                process has checked before.

        Raises:
            FileNotFoundError: a file is not there.
            SearchIndexError: a file was cut short or changed, or the index is another model's.
        """
        folder = Path(folder)
        content = _read_description(folder)
        for name in (EMBEDDINGS, CLIPS):
            _check_file(folder / name, content["files"].get(name), verify)
        try:
            embeddings = load_file(folder / EMBEDDINGS)["embeddings"]
            table = pq.read_table(folder / CLIPS, memory_map=True)
            table.validate(full=True)
            clips = Dataset(table)
        except (SafetensorError, pa.ArrowException, KeyError, OSError) as error:
            raise SearchIndexError(f"{folder}: unreadable ({error}); build or download the index again") from error
        expected = (content["num_clips"], content["dim"])
        if tuple(embeddings.shape) != expected:
            raise SearchIndexError(f"{folder / EMBEDDINGS}: shape {tuple(embeddings.shape)}, {INDEX} says {expected}")
        index = cls(embeddings, clips, content["fingerprint"], content["model"], content["revision"])
        if model is not None:
            index.check_model(model)
        return index

    def check_model(self, model: Any) -> None:
        """Refuse a model that did not make this index.

        Raises:
            SearchIndexError: another fingerprint.
        """
        fingerprint = model_fingerprint(model)
        if fingerprint != self.fingerprint:
            raise SearchIndexError(
                f"the index was made by {self.model or 'a model'} with fingerprint {self.fingerprint[:12]}..., and "
                f"this model's is {fingerprint[:12]}...; load that model, or build the index again with this one"
            )

    def push_to_hub(self, repo_id: str, folder: str | os.PathLike, *, private: bool | None = None) -> str:
        """Upload a saved index as a dataset repository; returns the commit, to pin.

        Args:
            repo_id: `owner/name`; made if need be.
            folder: where `save` wrote this index.
            private: of a new repository; None is the Hub's default.
        """
        if _read_description(Path(folder))["fingerprint"] != self.fingerprint:
            raise SearchIndexError(f"{folder} holds another model's index; save this one and give its folder")
        api = HfApi()
        api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=Path(folder),
            allow_patterns=[EMBEDDINGS, CLIPS, INDEX],
            commit_message=f"Index of {len(self)} clips",
        )
        return done.oid

    @classmethod
    def from_hub(cls, repo_id: str, revision: str, model: Any | None = None) -> SearchIndex:
        """Download an index at a tag or commit, and open it with every byte checked."""
        folder = snapshot_download(
            repo_id, repo_type="dataset", revision=revision, allow_patterns=[EMBEDDINGS, CLIPS, INDEX]
        )
        return cls.load(folder, model)

    # -- asked --------------------------------------------------------------------------------------------------------

    def search(self, queries: torch.Tensor, top: int, where: Mapping[str, Any] | None = None) -> list[list[Hit]]:
        """The best clips of each query, best first; with the exact engine, equal ones in the order of the rows.

        Args:
            queries: `(q, P)` float32 unit vectors.
            top: clips a query, from 1 to the number of clips; a filter may leave fewer.
            where: column -> a value, or a list of values of which one must hold; all columns must agree.

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
        if not where:
            return None
        mask = torch.ones(len(self), dtype=torch.bool)
        for column, wanted in where.items():
            if column not in self.clips.column_names:
                raise ValueError(
                    f"the index has no column {column!r} to filter by; it kept {', '.join(self.clips.column_names)}"
                )
            values = wanted if isinstance(wanted, list | tuple | set | frozenset) else (wanted,)
            mask &= torch.tensor([value in values for value in self.clips[column][:]])
        return mask


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


def _plain(config: Any) -> Any:
    """A config without what says where and how it was saved."""
    if not isinstance(config, Mapping):
        return config
    return {
        str(key): _plain(value)
        for key, value in config.items()
        if not str(key).startswith("_") and key not in _NOT_OF_THE_MODEL
    }


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; {folder} is not a search index: build one")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SearchIndexError(f"{path}: not JSON ({error}); build or download the index again") from error
    for field in FIELDS:
        if not isinstance(content, dict) or field not in content:
            raise SearchIndexError(f"{path}: field {field!r} is missing; build the index again")
    if content["format"] != FORMAT:
        raise SearchIndexError(f"{path}: format is {content['format']!r}, and this version reads {FORMAT}")
    return content


def _check_file(path: Path, entry: Mapping[str, Any] | None, verify: bool) -> None:
    if entry is None or not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; build or download the index again")
    if path.stat().st_size != entry["num_bytes"]:
        raise SearchIndexError(
            f"{path}: {path.stat().st_size} bytes, {INDEX} says {entry['num_bytes']}; the file was cut short or "
            "changed: build or download the index again"
        )
    if verify and file_sha256(path) != entry["sha256"]:
        raise SearchIndexError(f"{path}: its SHA-256 is not {INDEX}'s; build or download the index again")
