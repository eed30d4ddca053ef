"""The update of an index: examine, decode, encode and embed files, write segments, merge them."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from tqdm import tqdm

from modeling_mmt.data.cluster import ClusterPool, check_answers, check_read_here_too
from modeling_mmt.data.errors import InputError
from modeling_mmt.data.files import write_json
from modeling_mmt.evaluation.evaluate import open_checkpoint
from modeling_mmt.extraction.encoders import StepEncoder
from modeling_mmt.extraction.workers import WorkerPool, start_imports
from modeling_mmt.search.index import check_fingerprint, model_fingerprint
from modeling_mmt.search.index_folder import IndexFolder, StoredFile
from modeling_mmt.search.manifest import SOURCE, Manifest, SearchIndexError
from modeling_mmt.search.media_encoder import MediaEncoder, load_encoders, own_encoders, recorded_encoders
from modeling_mmt.search.media_encoding import EncodedFile, FilesEncoder, GroupEncoder, groups_of
from modeling_mmt.search.media_files import MediaFile
from modeling_mmt.search.media_status import IndexOptions, IndexReport, source_of, status_of
from modeling_mmt.search.media_windows import MediaReader, WindowRule, clip_id, with_defaults
from modeling_mmt.search.segments import FILE_SCHEMA, NO_CLIPS, Rows

ROWS_A_SEGMENT, SECONDS_A_SEGMENT = 4096, 60.0  # what a killed run loses at most, and the group that it is at


def bring_in_step(
    media: Path, folder: Path, index: IndexFolder | None, found: Mapping[str, MediaFile], options: IndexOptions
) -> IndexReport:
    """`update_index`, once it is known that there is something to do; the caller holds the lock."""
    if index is not None and not status_of(index, found).to_encode:
        options = replace(options, cluster=None, device="cpu")  # nodes and cards have nothing to do
    name = options.model or (index.manifest.model if index else "")
    name = os.path.abspath(name) if Path(name).exists() else name
    revision = options.revision or (index.manifest.revision if index else None)
    if options.cluster is None:
        start_imports(MediaReader)
    else:
        check_answers(options.cluster)
    model, processor = open_checkpoint(name, revision)
    device = "cpu" if options.cluster else options.device  # of this machine; nodes have their own
    try:
        model.to(device)  # type: ignore[arg-type]  # transformers' wrapper has a type of its own
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        if reason.startswith("Expected one of"):  # every kind of device that torch has ever had
            reason = "torch has no device of this name"
        raise InputError(
            f"--device {options.device} cannot be used ({reason}); give cpu, or a device of this machine, such as cuda"
        ) from error
    if index is not None:
        check_fingerprint(model, index.manifest.fingerprint, index.manifest.model)
    stored = index.manifest.settings["encoders"] if index is not None else None
    encoders, recorded = _encoders(model, processor, name, revision, options, stored, device)
    workers, cards = options.num_workers or 1, int(options.device.startswith("cuda"))  # of a task
    with ClusterPool(options.cluster, workers, cards) if options.cluster else nullcontext() as nodes:
        if index is None:
            chosen = {key: value for key, value in options.rule.items() if value is not None}
            settings = {**with_defaults(chosen), "encoders": recorded}
            _reader(settings, encoders)  # which refuses what it cannot do
            dim = model.config.projection_dim
            Manifest(model_fingerprint(model), name, revision, dim, settings).write(folder)
            index = IndexFolder(folder)
        elif stored != recorded:
            raise SearchIndexError(
                f"{folder} was made with the encoders {stored}, and these are {recorded}; leave --encoder and "
                "--image_size out, or name a new folder"
            )
        else:
            index.rename_model(name, revision)  # it may lie elsewhere by now
        write_json(folder / SOURCE, source_of(media, name))
        index.clean()
        update = _Update(index, MediaEncoder(model, processor, encoders, options.batch_size), options, nodes)
        return update.run(found)


def _encoders(
    model: Any,
    processor: Any,
    name: str,
    revision: str | None,
    options: IndexOptions,
    stored: list[dict[str, Any]] | None,
    device: str,
) -> tuple[list[StepEncoder], list[dict[str, Any]]]:
    """What makes steps of frames, and how the manifest names it (`stored`); encoders inside the model need no name."""
    if own := own_encoders(model, processor):
        if options.encoders or options.image_size:
            raise InputError(f"{name} has its vision encoders inside; leave --encoder and --image_size out")
        return own, []
    if options.encoders:
        given = {"revision": None, "image_size": options.image_size, "crop": True}
        recorded = [{"name": encoder, **given} for encoder in options.encoders]
    else:
        recorded = [dict(one) for one in stored or recorded_encoders(processor, name, revision)]
    encoders = load_encoders(recorded, device)
    for one, encoder in zip(recorded, encoders, strict=True):
        one |= {"revision": encoder.revision, "image_size": encoder.image_size}
    return encoders, recorded


def _reader(settings: Mapping[str, Any], encoders: Sequence[StepEncoder]) -> MediaReader:
    rule = WindowRule(settings["window"], settings["stride"], settings["shots"])
    return MediaReader([one.prepare for one in encoders], settings["frames_per_second"], rule)


class _Update:
    """One run: files in their order through workers, encoders and model; what is finished is written now and then."""

    def __init__(
        self, index: IndexFolder, encoder: MediaEncoder, options: IndexOptions, nodes: ClusterPool | None = None
    ):
        self.index, self.encoder, self.options, self.nodes = index, encoder, options, nodes
        self.settings = index.manifest.settings
        self.report = IndexReport()
        self.known = {file.sha256: file for file in index.files.values() if file.sha256 and file.reason is None}
        self.group_of: dict[str, int] = {}  # number of a file's group
        self.unfinished: defaultdict[int, list[Rows]] = defaultdict(list)  # rows of groups by their numbers
        self.pending: list[Rows] = []  # of groups that are finished
        self.written_at = time.monotonic()

    def run(self, found: Mapping[str, MediaFile]) -> IndexReport:
        """Do all that `status_of` names."""
        status = status_of(self.index, found)
        todo = [found[name] for name in status.to_encode]
        with self._bar(len(todo)) as self.bar:
            try:
                groups = list(groups_of(todo))
                self.group_of = {media.file: number for number, group in enumerate(groups) for media in group}
                for finished in self._encoded_here(groups) if self.nodes is None else self._encoded_there(groups):
                    self._keep(finished)
            finally:
                self._write()  # whole groups are kept, whatever ends this run
        self.index.commit(gone=status.gone)
        self.report.dropped = len(status.gone)
        self.index.compact()
        failed = [file for file in self.index.files.values() if file.reason is not None]
        if failed and not self.index.num_clips:
            raise InputError(
                f"none of the {len(failed)} files can be read; the first is {failed[0].file}: {failed[0].reason}"
            )
        return self.report

    def _bar(self, total: int) -> tqdm:
        return tqdm(total=total, desc="indexed", unit="file", disable=not self.options.progress, smoothing=0.05)

    def _encoded_here(self, groups: Sequence[Sequence[MediaFile]]) -> Iterator[int]:
        """By this process; yields how many groups are finished."""
        reader = _reader(self.settings, self.encoder.encoders)
        with WorkerPool(reader, self.options.num_workers or os.cpu_count() or 1, self.options.timeout) as pool:
            yield from FilesEncoder(pool, self.encoder, reader.rate, self.known, self._take).run(groups)

    def _encoded_there(self, groups: Sequence[Sequence[MediaFile]]) -> Iterator[int]:
        """By the nodes, a task a group; what comes back is taken in their order."""
        assert (nodes := self.nodes) is not None
        reader = _reader(self.settings, self.encoder.encoders)
        on_node = "cuda" if nodes.num_gpus else self.options.device  # a task sees its own card alone
        encoder = GroupEncoder(reader, self.encoder, on_node, self.known, nodes.num_cpus, self.options.timeout)
        for number, (group, encoded) in enumerate(zip(groups, nodes.map(encoder, groups), strict=True), start=1):
            for media, one in zip(group, encoded, strict=True):
                check_read_here_too(one.unread)
                self._take(media, one)
            yield number

    def _take(self, media: MediaFile, encoded: EncodedFile) -> None:
        """A file that is finished."""
        planned = encoded.planned
        if planned is None or encoded.reason is not None:
            self._fail(media, planned and planned.sha256, str(encoded.reason))
            return
        if encoded.embeddings is None:
            self._recognise(media, self.known[planned.sha256])
            return
        rows = [
            {"video_id": clip_id(media.file, span), "file": media.file, "start": span[0], "end": span[1]}
            for span in planned.spans
        ]
        clips = pa.Table.from_pylist(rows or [{"video_id": media.file, "file": media.file}], NO_CLIPS.schema)
        files = self._files(media, planned.sha256, len(clips))
        self.report.seconds_of_video += planned.duration or 0.0
        self._put(Rows(encoded.embeddings, clips, list(encoded.thumbnails), files))

    def _recognise(self, media: MediaFile, known: StoredFile) -> None:
        """A file whose content is known: its rows are those, under its name."""
        self.report.recognised += 1
        self._put(self.index.rows_of(known, self._files(media, known.sha256, known.num_clips)))

    def _fail(self, media: MediaFile, content: str | None, reason: str) -> None:
        """A file that cannot be read."""
        files = self._files(media, content, 0, reason.replace(media.path, media.file))
        self._put(Rows(torch.empty(0, self.index.manifest.dim), NO_CLIPS, [], files))

    def _files(self, media: MediaFile, content: str | None, num_clips: int, reason: str | None = None) -> pa.Table:
        values = (media.file, media.size, media.mtime_ns, content, num_clips, reason)
        return pa.Table.from_pylist([dict(zip(FILE_SCHEMA.names, values, strict=True))], FILE_SCHEMA)

    def _put(self, rows: Rows) -> None:
        """Keep a finished file's rows."""
        file = rows.files["file"][0].as_py()
        is_new = file not in self.index.files
        is_read = rows.files["reason"][0].as_py() is None
        self.report.failed += not is_read
        self.report.added += is_new and is_read
        self.report.replaced += not is_new and is_read
        self.unfinished[self.group_of[file]].append(rows)
        self.bar.update()

    def _keep(self, finished: int) -> None:
        """Write the rows of the groups that are finished, now and then."""
        for number in sorted(number for number in self.unfinished if number < finished):
            self.pending += self.unfinished.pop(number)
        many = sum(len(one.clips) for one in self.pending) >= ROWS_A_SEGMENT
        if many or time.monotonic() - self.written_at > SECONDS_A_SEGMENT:
            self._write()

    def _write(self) -> None:
        pending, self.pending = self.pending, []  # before the commit: one that is interrupted is not made twice
        if pending:
            self.index.commit(Rows.join(pending))
        self.written_at = time.monotonic()
