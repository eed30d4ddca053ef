"""What a run reads: its splits, its clips as features or as frames, and the batches that a stage draws of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch.utils.data import DataLoader

from modeling_mmt import MMTModel, MMTProcessor
from modeling_mmt.data.clip_cache import InOrder, KeptClips, Room
from modeling_mmt.data.clips import ClipColumn
from modeling_mmt.data.collator import ClipDataset, EpochBatchSampler, MMTDataCollator
from modeling_mmt.data.errors import naming_input
from modeling_mmt.data.features import FeatureStores
from modeling_mmt.data.fingerprints import architecture, encoder_fingerprint, rows_fingerprint, weights_fingerprint
from modeling_mmt.data.reading import load_split, read_split
from modeling_mmt.data.windows import SampledClips, WindowSampler
from modeling_mmt.training.layer_cache import CachedProcessor, FrozenTextCache
from modeling_mmt.training.recipe import DataArguments, Recipe, RecipeError, Source, StageArguments, columns_of


@dataclass
class RunData:
    """The rows and clips of a run, as its processor and its model read them.

    Args:
        recipe: says what is read.
        accelerator: of the run's processes.
        model: encodes frames where its vision encoders are frozen.
        processor: of the model.
        cache: the frozen text layers' states; None where they are not kept.
        splits: `data.dataset`'s, by name.
        features: of `data.features`; None where clips come otherwise.
    """

    recipe: Recipe
    accelerator: Accelerator
    model: MMTModel
    processor: MMTProcessor
    cache: FrozenTextCache | None
    splits: Mapping[str, Dataset]
    features: FeatureStores | None
    opened: dict[Any, tuple[Dataset, FeatureStores | None]] = field(default_factory=dict)  # sources' own rows

    def __post_init__(self):
        """What is kept of clips that come as pixels."""
        self.room = Room(int(self.recipe.clip_memory * 2**30))
        self.encoded: dict[tuple[str, str | None, str], KeptClips] = {}
        self.decoded: dict[tuple[str, str | None, str, int], KeptClips] = {}

    def contents(self, stage: StageArguments) -> dict[str, Any]:
        """What a stage reads, hashed: the encoders, how pixels are prepared, every source's rows and features."""
        english = [f"{self.recipe.data.text_column}_en"]
        found: dict[str, Any] = {
            "encoder": encoder_fingerprint(self.model.text_model.encoder, self.processor.tokenizer)
        }
        if (vision := self.model.video_model.vision_model) is not None:
            found["vision"] = [weights_fingerprint(vision), *(architecture(e.config) for e in vision.encoders())]
            found["pixels"] = self.processor.feature_extractor.pixels
        for number, source in enumerate(stage.sources):
            rows, features = self.open_source(source)
            clips = self.source_clips(self.recipe.data if source.dataset is None else source, "train")
            found[f"sources[{number}]"] = content(rows, columns_of(source), features, clips, source.with_video)
        for name, split, read in (
            ("validation", "validation", stage.evaluations),
            ("standardize_inputs", "train", self.recipe.model.standardize_inputs),
        ):
            if read:
                clips = self.source_clips(self.recipe.data, split)
                found[name] = content(self.splits[split], english, self.features, clips)
        return found

    def open_source(self, source: Source) -> tuple[Dataset, FeatureStores | None]:
        """The rows that a source draws from, and its clips' features where these are not among the rows."""
        if source.dataset is None:
            return self.splits["train"], self.features
        key = (source.dataset, source.revision, source.with_video, *columns_of(source), *source.features)
        if key not in self.opened:
            features = FeatureStores(source.features) if source.features else None
            inside = [] if features or self.recipe.data.video_column or not source.with_video else ["video_features"]
            with naming_input(source.dataset, RecipeError):
                rows = load_split(source.dataset, source.revision, "train", [*columns_of(source), *inside])
            self.opened[key] = rows, features
        return self.opened[key]

    def training_clips(self, source: Source, stage: StageArguments) -> ClipDataset | SampledClips:
        """The clips that a source draws: features, or frames if those are learned from."""
        rows, features = self.open_source(source)
        column = self.recipe.data.video_column
        if column is not None and source.with_video:
            data = self.recipe.data if source.dataset is None else source
            if stage.learn_vision_layers == 0 and source.augmentation is None:
                return ClipDataset(rows, self.encoded_clips(data, "train"))
            candidates = 1 if source.augmentation is None else source.augmentation.temporal_jitter
            return ClipDataset(rows, frames=self.frames(data, "train", candidates))
        if source.clip_seconds is None:
            return ClipDataset(rows, features if source.with_video else None)
        if not isinstance(features, FeatureStores):
            raise ValueError("a source with clip_seconds needs features, of whole videos and with a rate")
        shortest, longest = source.clip_seconds
        window = WindowSampler(
            source.languages, source.languages_per_clip, shortest, longest, source.text_column, seed=self.recipe.seed
        )
        return SampledClips(rows, features, window)

    def source_clips(self, data: DataArguments | Source, split: str) -> ClipColumn | None:
        """A split's clips where they come as pixels, not decoded yet."""
        column = self.recipe.data.video_column
        if column is None:
            return None
        return ClipColumn(read_split(str(data.dataset), data.revision, split), column, str(data.dataset))

    def frames(self, data: DataArguments | Source, split: str, candidates: int = 1) -> KeptClips:
        """A split's clips as `MMTVideoFeatureExtractor.read` gives them, decoded once while there is room."""
        key = (str(data.dataset), data.revision, split, candidates)
        if key not in self.decoded:
            sources = self.source_clips(data, split)
            assert sources is not None
            read = self.processor.feature_extractor.read
            self.decoded[key] = KeptClips(list(sources), lambda name: read(sources[name], candidates), self.room)
        return self.decoded[key]

    def encoded_clips(self, data: DataArguments | Source, split: str) -> KeptClips:
        """A split's clips as the features `(F, D_v)` that the vision encoders, frozen as they are, make of them.

        Each by itself: a convolution's sums depend on what else is in the batch, and a resumed run shall not.
        """
        key = (str(data.dataset), data.revision, split)
        if key not in self.encoded:
            sources = self.frames(data, split)
            vision = self.model.video_model

            @torch.no_grad()
            def encode(video_id: str) -> torch.Tensor:
                batch = self.processor.feature_extractor.collate([sources.make(video_id)])
                batch = {name: value.to(self.model.device) for name, value in batch.items()}
                return vision.features(batch["pixel_values"], batch["video_mask"], batch)[0].float().cpu()

            self.encoded[key] = KeptClips(list(sources), encode, self.room)
        return self.encoded[key]

    def forget_features(self):
        """The vision encoders are about to change."""
        for clips in self.encoded.values():
            clips.forget()
        self.encoded.clear()

    def sampler(self, stage: StageArguments, position: int, num_rows: int, start: int) -> EpochBatchSampler:
        """This process's share of each batch of the stage's source at `position`, from batch `start` on."""
        return EpochBatchSampler(
            num_rows,
            stage.train_batch_size,
            seed=len(stage.sources) * self.recipe.seed + position,  # sources draw independently
            start=start,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )

    def collated(
        self, rows: ClipDataset | SampledClips, sampler: EpochBatchSampler, source: Source, left: int
    ) -> Iterator[Any]:
        """The `left` batches that are still to come of a source."""
        loader = DataLoader(
            rows,
            batch_sampler=sampler,
            collate_fn=collator(self.processor, source),
            generator=torch.Generator(),  # or the iterator draws from the generator that dropout resumes with
        )
        batches: Iterator[Any] = islice(loader, left)
        cache = self.cache_of(source)
        return batches if cache is None else cache.ahead(batches)

    def cache_of(self, source: Source) -> FrozenTextCache | None:
        """What keeps the frozen layers' states of a source's captions, if these come again."""
        return self.cache if source.draws_from_pools else None

    def view(self, **inputs) -> dict[str, torch.Tensor]:
        """The processor's tensors, with frozen layers' output in place of token ids where it is kept.

        `videos` are clips as `frames` has them.
        """
        if "videos" in inputs:
            return dict(self.processor.feature_extractor.collate(inputs["videos"]))
        processor = self.processor if self.cache is None else CachedProcessor(self.processor, self.cache)
        return dict(processor(**inputs))

    def clips(self, split: str) -> Sequence[Any]:
        """Every clip of a split: its features `(F_i, D_v)`, or its frames where the vision encoders have learned."""
        rows, data, vision = self.splits[split], self.recipe.data, self.model.video_model.vision_model
        if vision is not None:
            if vision.learning_layers == 0:
                return InOrder(self.encoded_clips(data, split), rows["video_id"][:])
            return InOrder(self.frames(data, split), rows["video_id"][:])
        return [self.features[key] for key in rows["video_id"]] if self.features else rows["video_features"][:]

    def encode_ahead(self, texts: list[str]):
        """Keep the frozen layers' output for captions that will be embedded, if it is kept."""
        if self.cache is not None:
            progress = "frozen layers" if self.accelerator.is_main_process else None
            self.cache.fill([self.processor(text=texts)], progress)

    def save_cache(self):
        """Write the frozen layers' output that is new: one process after the other, each what is still missing."""
        if self.cache is not None and self.cache.directory is not None:
            for rank in range(self.accelerator.num_processes):
                if rank == self.accelerator.process_index:
                    self.cache.save()
                self.accelerator.wait_for_everyone()


def content(
    rows: Dataset,
    columns: Sequence[str],
    features: FeatureStores | None,
    clips: ClipColumn | None,
    with_video: bool = True,
) -> list[str]:
    """Hashes of what is read of a split: columns, and the clips: of stores, the rows' own features, or pixels."""
    if not with_video:
        return [rows_fingerprint(rows, ["video_id", *columns])]
    if clips is not None:
        return [rows_fingerprint(rows, ["video_id", *columns]), clips.fingerprint()]
    if features is not None:
        return [rows_fingerprint(rows, ["video_id", *columns]), *features.fingerprints]
    return [rows_fingerprint(rows, ["video_id", *columns, "video_features"])]


def collator(processor: MMTProcessor, source: Source) -> MMTDataCollator:
    """The collator of a source: its fields are the source's."""
    not_its = ("weight", "dataset", "revision", "features", "clip_seconds")
    return MMTDataCollator(processor, **{key: value for key, value in vars(source).items() if key not in not_its})
