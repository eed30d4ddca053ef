"""The data of a run: its splits, its clips as features or frames, and the batches of each stage."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, tee
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

from modeling_mmt import MMTModel, MMTProcessor
from modeling_mmt.data.clip_cache import CachedClips, ClipSequence, MemoryBudget
from modeling_mmt.data.clips import FrameReader
from modeling_mmt.data.collator import ClipDataset, Draw, EpochBatchSampler, MMTDataCollator
from modeling_mmt.data.fingerprints import architecture, encoder_fingerprint, rows_fingerprint, weights_fingerprint
from modeling_mmt.data.tokenized import TokenizedOnce
from modeling_mmt.data.windows import SampledClips
from modeling_mmt.evaluation.processes import Group
from modeling_mmt.freezing_mmt import has_adapters
from modeling_mmt.training.corpora import Corpora
from modeling_mmt.training.layer_cache import FrozenTextCache
from modeling_mmt.training.recipe import (
    AlignmentArguments,
    DataArguments,
    StageArguments,
    statistics_columns,
)
from modeling_mmt.training.recipe_sources import Source, columns_of, english_column
from modeling_mmt.training.teacher import Teacher


class RunData:
    """The clips and captions of a run, as its processor and its model read them.

    Args:
        corpora: that they come from.
        accelerator: of the run's processes.
        model: encodes frames where its vision encoders are frozen.
        processor: of the model.
        cache: the frozen text layers' states; None where they are not kept.
        teacher: of the stage `alignment`.
    """

    def __init__(
        self,
        corpora: Corpora,
        accelerator: Accelerator,
        model: MMTModel,
        processor: MMTProcessor,
        cache: FrozenTextCache | None = None,
        teacher: Teacher | None = None,
    ):
        self.corpora, self.recipe = corpora, corpora.recipe
        self.accelerator, self.model, self.processor, self.cache = accelerator, model, processor, cache
        self.teacher = teacher
        self.tokenized = TokenizedOnce(processor)
        self.clip_budget = MemoryBudget(int(self.recipe.clip_memory * 2**30))
        self.encoded: dict[tuple[str, str | None, str], CachedClips] = {}
        self.decoded: dict[tuple[str, str | None, str, int], CachedClips] = {}

    @property
    def group(self) -> Group:
        """The run's processes, where they are several."""
        return dist.group.WORLD if self.accelerator.num_processes > 1 else None

    def contents(self, stage: StageArguments) -> dict[str, Any]:
        """What a stage reads, hashed: the encoders, how pixels are prepared, every source's rows and features."""
        english = [f"{self.recipe.data.text_column}_en"]
        statistics = statistics_columns(self.recipe)
        contents: dict[str, Any] = {
            "encoder": encoder_fingerprint(self.model.text_model.encoder, self.processor.tokenizer)
        }
        if (vision := self.model.video_model.vision_model) is not None:
            contents["vision"] = [weights_fingerprint(vision), *(architecture(e.config) for e in vision.encoders())]
            contents["pixels"] = self.processor.feature_extractor.pixels
        if self.recipe.model.starts_trained:  # the heads start from its weights too
            heads = (self.model.text_model.pooling, self.model.video_model.pooling)
            contents["heads"] = [weights_fingerprint(head) for head in heads]
        is_alignment = isinstance(stage, AlignmentArguments)
        for number, source in enumerate(stage.sources):
            home, columns = self.corpora.home(source), columns_of(source)
            columns += [english_column(source)] if is_alignment else []
            contents[f"sources[{number}]"] = self.content(home, "train", columns, source.with_video)
            if is_alignment and stage.evaluations:
                contents[f"sources[{number}], validation"] = self.content(home, "validation", columns, False)
        if is_alignment and self.teacher is not None:
            contents["teacher"] = self.teacher.fingerprint()
        if stage.evaluations and not is_alignment:
            contents["validation"] = self.content(self.recipe.data, "validation", english)
        if statistics:
            contents["standardize_inputs"] = self.content(self.recipe.data, "train", statistics)
        return contents

    def content(
        self, data: DataArguments | Source, split: str, columns: Sequence[str], with_video: bool = True
    ) -> list[str]:
        """Hashes of what is read of a split: columns, and the clips: of stores, the rows' own features, or pixels."""
        rows, columns = self.corpora.rows(data, split), ["video_id", *columns]
        if not with_video:
            return [rows_fingerprint(rows, columns)]
        if (clips := self.corpora.clip_column(data, split)) is not None:
            return [rows_fingerprint(rows, columns), clips.fingerprint()]
        if (features := self.corpora.features(data)) is not None:
            return [rows_fingerprint(rows, columns), *features.fingerprints]
        return [rows_fingerprint(rows, [*columns, "video_features"])]

    def training_clips(self, source: Source, stage: StageArguments) -> ClipDataset | SampledClips:
        """The clips that a source draws: features, or frames if those are learned from."""
        data = self.corpora.home(source)
        rows, features = self.corpora.learned_rows(source), self.corpora.features(data)
        if self.recipe.data.video_column is not None and source.with_video:
            if self.vision_is_frozen and source.augmentation is None:
                return ClipDataset(rows, self.encoded_clips(data, "train"))
            candidates = 1 if source.augmentation is None else source.augmentation.temporal_jitter
            return ClipDataset(rows, frames=self.frames(data, "train", candidates))
        if source.clip_seconds is not None:
            return self.corpora.windows(source)
        return ClipDataset(rows, features if source.with_video else None)

    def frames(self, data: DataArguments | Source, split: str, candidates: int = 1) -> CachedClips:
        """A split's clips as `MMTVideoFeatureExtractor.read` gives them, decoded once while there is room."""
        key = (str(data.dataset), data.revision, split, candidates)
        if key not in self.decoded:
            sources = self.corpora.clip_column(data, split)
            assert sources is not None
            reader = FrameReader(sources, self.processor.feature_extractor.read, candidates)
            self.decoded[key] = CachedClips(list(sources), reader, self.clip_budget)
        return self.decoded[key]

    def encoded_clips(self, data: DataArguments | Source, split: str) -> CachedClips:
        """A split's clips as the features `(F, D_v)` that the vision encoders, frozen as they are, make of them.

        Each by itself: a convolution's sums depend on what else is in the batch, and a resumed run shall not.
        """
        key = (str(data.dataset), data.revision, split)
        if key not in self.encoded:
            sources = self.frames(data, split)
            self.encoded[key] = CachedClips(list(sources), sources.make, self.clip_budget, self.encode_frames)
        return self.encoded[key]

    @torch.no_grad()
    def encode_frames(self, frames: Sequence[torch.Tensor]) -> torch.Tensor:
        """One clip's frames to the vision encoders' features `(F, D_v)`, on the CPU."""
        batch = self.processor.feature_extractor.collate([frames])
        batch = {name: value.to(self.model.device) for name, value in batch.items()}
        return self.model.video_model.features(batch["pixel_values"], batch["video_mask"], batch)[0].float().cpu()

    @property
    def vision_is_frozen(self) -> bool:
        """Whether what the vision encoders make of a clip stays as it is."""
        vision = self.model.video_model.vision_model
        return vision is None or (vision.learning_layers == 0 and not has_adapters(vision))

    def learn_vision_layers(self, number: int | None):
        """Let the last layers of the vision encoders learn, if there are any; what they made of clips is forgotten."""
        if (vision := self.model.video_model.vision_model) is None:
            return
        vision.learning_layers = self.model.config.learn_vision_layers = number
        if number != 0:
            for clips in self.encoded.values():
                clips.clear()
            self.encoded.clear()

    def samplers(
        self, stage: StageArguments, clips: Sequence[ClipDataset | SampledClips], step: int
    ) -> list[EpochBatchSampler]:
        """This process's share of each batch of each of the stage's sources, from an optimizer step on."""
        return [
            EpochBatchSampler(
                len(rows),
                stage.train_batch_size,
                seed=len(stage.sources) * self.recipe.seed + position,  # sources draw independently
                start=step * stage.gradient_accumulation_steps,
                rank=self.accelerator.process_index,
                world_size=self.accelerator.num_processes,
            )
            for position, rows in enumerate(clips)
        ]

    def batches(
        self,
        stage: StageArguments,
        clips: Sequence[ClipDataset | SampledClips],
        samplers: Sequence[EpochBatchSampler],
        num_steps: int,
        collator: Callable[[Source], Callable[..., Any]],
    ) -> list[Iterator[Any]]:
        """The batches of each source for a number of optimizer steps, as its `collator` makes them."""
        count = num_steps * stage.gradient_accumulation_steps
        return [
            self.collated(rows, sampler, source, count, collator(source))
            for rows, sampler, source in zip(clips, samplers, stage.sources, strict=True)
        ]

    def collated(
        self,
        rows: ClipDataset | SampledClips,
        sampler: EpochBatchSampler,
        source: Source,
        count: int,
        collate: Callable[..., Any],
    ) -> Iterator[Any]:
        """The next `count` batches of a source."""
        batches = (collate(batch) for batch in self.drawn(rows, islice(sampler, count)))
        cache = self.cache_of(source)
        return batches if cache is None else cache.prefetch(batches)

    def drawn(
        self, rows: ClipDataset | SampledClips, batches: Iterator[list[Draw]]
    ) -> Iterator[list[Mapping[str, Any]]]:
        """The rows of each batch; where their clips are to be decoded, `num_workers` processes do it ahead."""
        clips = rows.features if rows.frames is None else rows.frames
        if self.recipe.num_workers and isinstance(clips, CachedClips):
            batches, upcoming = tee(batches)
            ids = (rows.rows["video_id"][[row for *_, row in draws]] for draws in upcoming)
            for draws, _ in zip(batches, clips.prefetch(ids, self.recipe.num_workers), strict=True):
                yield rows.__getitems__(draws)
        else:
            yield from map(rows.__getitems__, batches)

    def collator(self, source: Source) -> MMTDataCollator:
        """The collator of a source: its fields are the source's.

        Raises:
            ValueError: captions are to be noised, and the tokenizer has no mask token.
        """
        not_its = ("weight", "dataset", "revision", "features", "clip_seconds", "named_share")
        fields = {key: value for key, value in vars(self.learned(source)).items() if key not in not_its}
        tokenize = self.tokenized if self.cache_of(source) is not None else None  # captions that come again
        return MMTDataCollator(self.processor, **fields, with_caption_keys=True, tokenize=tokenize)

    def learned(self, source: Source) -> Source:
        """The source as it is learned from: without noise, if the model's loss does not read noised copies."""
        return source if self.model.config.intra_weight else replace(source, noise_probability=0.0)

    def cache_of(self, source: Source) -> FrozenTextCache | None:
        """What keeps the frozen layers' states of a source's captions, if these come again."""
        if self.recipe.cache_windows and source.clip_seconds is not None:
            source = replace(source, clip_seconds=None)
        return self.cache if self.learned(source).draws_from_pools else None

    def to_device(self, chunk: Mapping[str, torch.Tensor], source: Source) -> dict[str, torch.Tensor]:
        """A micro-batch on the device, but for the captions that the layer cache has there by their keys."""
        stays = ("caption_keys", "input_ids" if self.cache_of(source) is not None else "caption_keys")
        device = self.accelerator.device
        return {name: value if name.endswith(stays) else value.to(device) for name, value in chunk.items()}

    def inputs(self, chunk: Mapping[str, torch.Tensor], source: Source) -> dict[str, torch.Tensor]:
        """What the model is called with: frozen layers' output in place of token ids, where captions come again."""
        cache = self.cache_of(source)
        inputs = dict(chunk) if cache is None else cache.attach(dict(chunk))
        return {name: value for name, value in inputs.items() if not name.endswith("caption_keys")}

    def view(self, **inputs) -> dict[str, torch.Tensor]:
        """The processor's tensors, with frozen layers' output in place of token ids where it is kept.

        `videos` are clips as `frames` has them.
        """
        if "videos" in inputs:
            return dict(self.processor.feature_extractor.collate(inputs["videos"]))
        if "text" not in inputs:
            return dict(self.processor(**inputs))
        batch = self.tokenized(inputs["text"])
        return dict(batch if self.cache is None else self.cache.attach(batch))

    def clips(self, split: str) -> Sequence[Any]:
        """Every clip of a split: its features `(F_i, D_v)`, or its frames where the vision encoders have learned."""
        data, vision = self.recipe.data, self.model.video_model.vision_model
        rows, features = self.corpora.rows(data, split), self.corpora.features(data)
        if vision is not None:
            if self.vision_is_frozen:
                return ClipSequence(self.encoded_clips(data, split), rows["video_id"][:])
            return ClipSequence(self.frames(data, split), rows["video_id"][:])
        return [features[key] for key in rows["video_id"][:]] if features else rows["video_features"][:]

    def encode_ahead(self, texts: list[str]):
        """Keep the frozen layers' output for captions that will be embedded, if it is kept."""
        if self.cache is not None and texts:
            progress = "frozen layers" if self.accelerator.is_main_process else None
            self.cache.fill([self.tokenized(texts)], progress)

    def save_cache(self):
        """Write the frozen layers' output that is new: one process after the other, each what is still missing."""
        if self.cache is not None and self.cache.directory is not None:
            for rank in range(self.accelerator.num_processes):
                if rank == self.accelerator.process_index:
                    self.cache.save()
                self.accelerator.wait_for_everyone()
