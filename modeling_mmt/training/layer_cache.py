"""The frozen layers' output for each caption, computed once.

With the embeddings and all layers below frozen and in eval mode (the paper's default), a caption's states at the first
learning layer never change. They are computed once, held in memory within a stated bound, and written to disk under
the frozen weights' fingerprint, so that a later run, or another row of a table, starts with them.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm

from modeling_mmt.data.collator import TEXT_VIEWS, caption_keys, mask_name
from modeling_mmt.data.files import remove_leftovers
from modeling_mmt.data.fingerprints import architecture, update_with_weights
from modeling_mmt.data.weights import save_tensors

logger = logging.getLogger(__name__)

Captions = dict[int, torch.Tensor]  # token ids (length,), or their states (length, H_text), by `caption_keys`
LENGTH_STEP = 4  # captions are padded to multiples of it, on which their states' last bits depend


class FrozenTextCache:
    """Captions to the frozen layers' states; a caption is known by its key (`collator.caption_keys`).

    Args:
        text_model: an `MMTTextModel`; `check_frozen_states` refuses, by name, a setting where caching would be wrong.
        directory: where states are kept between runs, in a folder of the frozen weights' fingerprint; `None`: nowhere.
        max_bytes: bound on the states held in memory. A caption beyond it is encoded each time it comes: slower, never
            different.
        batch_tokens: tokens, padding included, that the encoder sees at once while filling: always as many, but for a
            caption that is longer.
        padding_side: where the processor pads captions.

    Raises:
        ValueError: the setting is refused, or a shard on disk does not fit the fingerprint it lies under.
    """

    def __init__(
        self,
        text_model: Any,
        directory: str | os.PathLike | None = None,
        max_bytes: int = 8 * 2**30,
        batch_tokens: int = 512,
        padding_side: str = "right",
    ):
        text_model.check_frozen_states()
        self.text_model = text_model
        self.batch_tokens = batch_tokens
        self.on_left = padding_side == "left"
        self.fingerprint = frozen_fingerprint(text_model) + "-left" * self.on_left
        text_config = text_model.config.text_config
        self.width = text_model.config.text_feature_dim
        self.padding = getattr(text_config, "pad_token_id", None) or 0
        self.max_length = getattr(text_config, "max_position_embeddings", None) or LENGTH_STEP
        self.max_rows = max_bytes // (4 * self.width)
        self.directory = None if directory is None else Path(directory) / self.fingerprint
        self._states = torch.empty(0, self.width)  # (rows, H_text): every kept caption's states, one after another
        self._rows: dict[int, slice] = {}  # of each caption
        self._num_rows = 0
        self._unsaved: Captions = {}
        self._shards: set[Path] = set()  # on disk, whose captions are kept or not to be saved again
        self._warned = False
        if self.directory is not None and self.directory.is_dir():
            remove_leftovers(self.directory)
            for path in sorted(self.directory.glob("*.safetensors")):
                self._load(path)

    def __len__(self) -> int:
        """Number of captions in memory."""
        return len(self._rows)

    def attach(self, batch: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Replace each `*input_ids` of a collated batch by its `*text_states`, in place, and return the batch."""
        overflow = self._fill(self._missing([batch]))
        for view in _views(batch):
            keys = caption_keys(batch, view).tolist()
            batch.pop(f"{view}caption_keys", None)
            length = batch.pop(f"{view}input_ids").shape[1]
            batch[f"{view}text_states"] = self._gather(keys, length, overflow)
        return batch

    def fill(self, batches: Iterable[Mapping[str, Any]], progress: str | None = None):
        """Encode what `attach` will ask for, for all of these batches at once: few rows are then padding.

        Args:
            batches: collated batches; only their tokens are read.
            progress: label of a progress bar, shown after two seconds; None shows none.
        """
        if not self._warned:  # else the cache is full, and what is encoded now would be encoded again
            self._fill(self._missing(batches), progress, until_full=True)

    def prefetch(
        self, batches: Iterable[MutableMapping[str, Any]], count: int = 16, max_bytes: int = 2**28
    ) -> Iterator[MutableMapping[str, Any]]:
        """The same batches, untouched, each yielded when what it asks for is kept: faster, never different.

        Args:
            batches: collated batches.
            count: batches held at most.
            max_bytes: of the tensors held; one batch is, whatever its size.
        """
        window: list[MutableMapping[str, Any]] = []
        size = 0
        for batch in batches:
            window.append(batch)
            size += sum(value.nbytes for value in batch.values() if isinstance(value, torch.Tensor))
            if len(window) == count or size >= max_bytes:
                self.fill(window)
                yield from window
                window, size = [], 0
        self.fill(window)
        yield from window

    def save(self):
        """Write what no shard in the folder has yet as one more: whole or not at all.

        A run does not need its cache: where it cannot be written a warning says so, and the next call tries again.
        """
        if self.directory is None or not self._unsaved:
            return
        try:
            for path in sorted(set(self.directory.glob("*.safetensors")) - self._shards):  # of another process, or run
                lengths, ids, _ = self._read(path)
                for key, _ in _keyed(ids.split(lengths.tolist())):
                    self._unsaved.pop(key, None)
            if self._unsaved:
                self._write()
        except (OSError, ValueError, SafetensorError) as error:
            logger.warning("%s: the layer cache was not written (%s)", self.directory, error)

    def _write(self):
        assert self.directory is not None
        tensors = {
            "lengths": torch.tensor([len(caption) for caption in self._unsaved.values()]),
            "input_ids": torch.cat(list(self._unsaved.values())),
            "states": torch.cat([self._states[self._rows[key]] for key in self._unsaved]),
        }
        digest = sha256(tensors["input_ids"].numpy().tobytes()).hexdigest()[:16]
        path = self.directory / f"states-{digest}.safetensors"
        save_tensors(path, tensors, {"fingerprint": self.fingerprint, "crc32": _crc32(tensors)})
        self._shards.add(path)
        self._unsaved = {}

    def _read(self, path: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A shard's lengths, token ids and states; one that does not fit is refused."""
        try:
            with safe_open(path, framework="pt") as shard:
                metadata = shard.metadata() or {}
                tensors = {name: shard.get_tensor(name) for name in ("lengths", "input_ids", "states")}
        except SafetensorError as error:
            raise ValueError(f"{path}: not a readable shard of the layer cache ({error}); delete the file") from error
        lengths, ids, states = tensors.values()
        fingerprint = metadata.get("fingerprint")
        if (
            fingerprint != self.fingerprint
            or states.shape != (int(lengths.sum()), self.width)
            or len(ids) != len(states)
        ):
            raise ValueError(f"{path}: fingerprint {fingerprint} does not fit these frozen weights; delete the file")
        if metadata.get("crc32") != _crc32(tensors):
            raise ValueError(f"{path}: its content does not match its checksum; delete the file")
        self._shards.add(path)
        return lengths, ids, states

    def _load(self, path: Path):
        lengths, ids, states = self._read(path)
        sizes = lengths.tolist()
        for (key, _), rows in zip(_keyed(ids.split(sizes)), states.split(sizes), strict=True):
            self._store(key, rows)

    def _missing(self, batches: Iterable[Mapping[str, Any]]) -> Captions:
        """The token ids of the captions that are not in the cache yet."""
        missing: Captions = {}
        for batch in batches:
            for view in _views(batch):
                ids, keys = batch[f"{view}input_ids"], caption_keys(batch, view).tolist()
                mask = batch[mask_name(view)]
                for row, key in enumerate(keys):
                    if key not in self._rows and key not in missing:
                        missing[key] = ids[row, mask[row].bool()].cpu()
        return missing

    def _fill(self, missing: Captions, progress: str | None = None, until_full: bool = False) -> Captions:
        """Encode captions; return the states that did not fit the bound, or with `until_full` stop there.

        The encoder sees batches of one shape for each length, filled up with padding: matrix products of one shape
        give a row the same bits wherever it lies, so that a caption's states do not depend on what came with it, and a
        resumed run, or two processes that share a folder, read what they would have computed (but for the last bits,
        on a processor without AVX-512, where MKL's rounding depends on the row's place). Autocast is off: states
        that a half-precision run leaves in the folder are those that any other run would have computed.
        """
        overflow: Captions = {}
        device = self.text_model.device
        for chunk, length in tqdm(self._chunks(missing), progress, disable=progress is None, delay=2, leave=False):
            ids = torch.full((self._count(length), length), self.padding)
            mask = torch.zeros_like(ids)
            mask[:, -1 if self.on_left else 0] = 1  # attention of a row without a caption has somewhere to look
            for row, key in enumerate(chunk):
                places = self._places(len(missing[key]), length)
                ids[row, places] = missing[key]
                mask[row, places] = 1
            with torch.autocast(device.type, enabled=False):
                states = self.text_model.frozen_states(ids.to(device), mask.to(device)).float().cpu()
            for key, state in zip(chunk, states, strict=False):  # rows beyond the captions are padding
                state = state[self._places(len(missing[key]), length)]
                if self._store(key, state):
                    self._unsaved[key] = missing[key]
                else:
                    overflow[key] = state
            if overflow and until_full:
                break
        return overflow

    def _chunks(self, captions: Captions) -> list[tuple[Sequence[int], int]]:
        """Captions, shortest first, cut to what the encoder sees at once, and the length that these are padded to."""
        chunks: list[tuple[Sequence[int], int]] = []
        by_length = sorted(captions, key=lambda key: (len(captions[key]), key))
        for length, group in groupby(by_length, key=lambda key: self._padded_length(len(captions[key]))):
            waiting, count = list(group), self._count(length)
            chunks += [(waiting[first : first + count], length) for first in range(0, len(waiting), count)]
        return chunks

    def _count(self, length: int) -> int:
        return max(1, self.batch_tokens // length)

    def _padded_length(self, length: int) -> int:
        return max(length, min(-(-length // LENGTH_STEP) * LENGTH_STEP, self.max_length))

    def _store(self, key: int, states: torch.Tensor) -> bool:
        if key in self._rows:
            return True
        end = self._num_rows + len(states)
        if end > self.max_rows:
            if not self._warned:
                logger.warning("layer cache full at %d captions; further ones are encoded each time", len(self))
                self._warned = True
            return False
        if end > len(self._states):
            with torch.inference_mode(False):  # or rows added outside of an evaluation could not be written to it
                grown = torch.empty(min(max(end, 2 * len(self._states), 2**14), self.max_rows), self.width)
            grown[: self._num_rows] = self._states[: self._num_rows]
            self._states = grown
        self._rows[key] = slice(self._num_rows, end)
        self._states[self._rows[key]] = states
        self._num_rows = end
        return True

    def _gather(self, keys: Sequence[int], length: int, overflow: Captions) -> torch.Tensor:
        batch = torch.zeros(len(keys), length, self.width)
        for row, key in enumerate(keys):
            states = self._states[self._rows[key]] if key in self._rows else overflow[key]
            if self.text_model.encoder_pooling == "tokens":
                batch[row, self._places(len(states), length)] = states
            else:  # one vector, which stands at every place
                batch[row] = states[0]
        return batch.to(self.text_model.device)

    def _places(self, count: int, length: int) -> slice:
        """Of a caption's tokens in a padded row."""
        return slice(length - count, length) if self.on_left else slice(count)


class CachedProcessor:
    """A processor whose captions come out as the frozen layers' states; for evaluation during training.

    Args:
        processor: an `MMTProcessor`.
        cache: of the model that will be called.
    """

    def __init__(self, processor: Any, cache: FrozenTextCache):
        self.processor, self.cache = processor, cache

    def __call__(self, **kwargs) -> MutableMapping[str, Any]:
        """As `MMTProcessor.__call__`, with `text_states` in place of `input_ids`."""
        return self.cache.attach(self.processor(**kwargs))


def frozen_fingerprint(text_model: Any) -> str:
    """SHA-256 of everything that the frozen states depend on: the encoder's configuration, layers and weights."""
    config = text_model.config
    digest = sha256(architecture(config.text_config).encode())
    digest.update(f"{config.freeze_text_layers} {config.freeze_text_embeddings} {LENGTH_STEP}".encode())
    update_with_weights(digest, text_model.frozen_modules())
    return digest.hexdigest()[:32]


def frozen_vision_fingerprint(vision_model: Any) -> str:
    """SHA-256 of what the vision encoders' features depend on and no checkpoint holds: all that does not learn."""
    digest = sha256(f"{vision_model.learning_layers}".encode())
    learning = {name for name, parameter in vision_model.named_parameters() if parameter.requires_grad}
    for name, tensor in sorted(vision_model.state_dict().items()):
        if name not in learning:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _crc32(tensors: Mapping[str, torch.Tensor]) -> str:
    value = 0
    for name in ("lengths", "input_ids", "states"):
        value = crc32(tensors[name].contiguous().numpy().data, value)
    return str(value)


def _keyed(captions: Iterable[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
    """Token ids with their keys."""
    for ids in captions:
        yield int(caption_keys({"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]})), ids


def _views(batch: Mapping[str, Any]) -> list[str]:
    return [view for view in TEXT_VIEWS if batch.get(f"{view}input_ids") is not None]
