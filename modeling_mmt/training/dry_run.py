"""What a recipe needs and what is not there: `python train.py RECIPE --dry_run`.

Nothing is trained and no weights are read. Every problem is one line that says where it is; for a dataset, store or
encoder that is missing, the line after it says how it is had, from the recipe's `comes_from`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoConfig

from modeling_mmt import MMTConfig
from modeling_mmt.data.checks import blank_texts, search_problems
from modeling_mmt.data.features import FeatureStoreError, FeatureStores
from modeling_mmt.extraction.packaged_encoders import PACKAGED_ENCODERS
from modeling_mmt.training.recipe import Recipe, Source, StageArguments, columns_of


class RecipeCheck:
    """Gathers what is found and what is wrong.

    Args:
        recipe: to check the data against.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.found: list[str] = []
        self.problems: list[str] = []
        self._stores: dict[tuple[str, ...], FeatureStores | None] = {}
        self._splits: dict[tuple[str, str | None, str], Dataset | None] = {}
        self._said: set[str] = set()

    def problem(self, text: str, name: str | None = None) -> None:
        """Says it once, and where `name` comes from."""
        origin = self.recipe.comes_from.get(name or "")
        text += f"\n    it comes from: {origin}" if origin else ""
        if text not in self._said:
            self._said.add(text)
            self.problems.append(text)

    def check(self) -> None:
        """Everything that the recipe names."""
        data = self.recipe.data
        self.text_model()
        self.vision_models()
        kinds = (data.text_column, *data.other_text_columns)
        columns = [f"{kind}_{language}" for kind in kinds for language in data.languages]
        others = [data.exclude_column] if data.exclude_column else []
        features = self.stores(data.features, f"{data.dataset}: data.features") if data.features else None
        for split in ("train", "validation", data.test_split):
            if split is not None:
                rows = self.split(data.dataset, data.revision, split, [*columns, *others])
                self.coverage(rows, data.features, features, f"{data.dataset} ({split})")
                if rows is not None and split != "train":
                    for kind in kinds if split == "validation" else kinds[:1]:
                        for problem in search_problems(rows, kind, data.languages, data.exclude_column):
                            self.problem(f"{data.dataset} ({split}): {problem}")
        for name in ("pretraining", "finetuning"):
            stage = getattr(self.recipe, name)
            for number, source in enumerate(stage.sources if stage else ()):
                self.source(f"{name}.sources[{number}]", stage, source, features)

    def text_model(self) -> None:
        """Whether its configuration is there, and deep enough."""
        model = self.recipe.model
        if model.dual_encoder is not None:
            try:
                config = AutoConfig.from_pretrained(model.dual_encoder, revision=model.text_revision)
            except OSError as error:
                reason = str(error).splitlines()[0]
                self.problem(f"dual encoder {model.dual_encoder} cannot be had: {reason}", model.dual_encoder)
            else:
                self.found.append(f"dual encoder {model.dual_encoder}: {config.model_type}")
            return
        if model.text_model in PACKAGED_ENCODERS:
            self.found.append(f"text model {model.text_model}: packaged, pip fetches it on first use")
            return
        try:
            config = AutoConfig.from_pretrained(model.text_model, revision=model.text_revision)
        except OSError as error:
            reason = str(error).splitlines()[0]
            self.problem(f"text model {model.text_model} cannot be had: {reason}", model.text_model)
            return
        layer = model.config.get("text_output_layer", MMTConfig().text_output_layer)
        if layer is not None and layer > config.num_hidden_layers:
            self.problem(
                f"text model {model.text_model} has {config.num_hidden_layers} layers, the recipe reads {layer}: "
                "set model.config.text_output_layer"
            )
        self.found.append(f"text model {model.text_model}: {config.model_type}, {config.num_hidden_layers} layers")

    def vision_models(self) -> None:
        """Whether their configurations are there."""
        for name in self.recipe.model.vision_model:
            if name in PACKAGED_ENCODERS:
                self.found.append(f"vision model {name}: packaged, pip fetches it on first use")
                continue
            try:
                config = AutoConfig.from_pretrained(name, revision=self.recipe.model.vision_revision)
            except OSError as error:
                self.problem(f"vision model {name} cannot be had: {str(error).splitlines()[0]}", name)
            else:
                self.found.append(f"vision model {name}: {config.model_type}")

    def split(self, name: str, revision: str | None, split: str, columns: Sequence[str]) -> Dataset | None:
        """A split with these columns, or None and a problem."""
        key = (name, revision, split)
        if key not in self._splits:
            self._splits[key] = self._load(name, revision, split)
        rows = self._splits[key]
        for column in columns if rows is not None else ():
            if rows is not None and column not in rows.column_names:
                self.problem(f"{name} ({split}): no column {column}; it has {', '.join(rows.column_names)}", name)
        return rows

    def _load(self, name: str, revision: str | None, split: str) -> Dataset | None:
        if name in self.recipe.comes_from and not Path(name).is_dir():
            self.problem(f"dataset {name} is not there", name)
            return None
        try:
            rows = load_dataset(name, split=split, revision=revision)
        except (DatasetNotFoundError, FileNotFoundError, ConnectionError, HfHubHTTPError) as error:
            self.problem(f"dataset {name} cannot be had: {str(error).splitlines()[0]}", name)
            return None
        except DatasetGenerationError as error:
            self.problem(f"dataset {name} cannot be read: {error.__cause__ or error}", name)
            return None
        except ValueError as error:  # datasets' word for a split that is not there
            self.problem(f"{name}: {str(error).splitlines()[0]}", name)
            return None
        record = Path(name) / "build.json"
        published = json.loads(record.read_text("utf-8"))["published"].get(split) if record.is_file() else None
        self.found.append(
            f"{name} ({split}): {len(rows):,} rows" + (f", published {published:,}" if published else "")
        )
        if published and len(rows) != published:
            self.found[-1] += "  <- not the published number"
        return rows

    def stores(self, names: Sequence[str], where: str) -> FeatureStores | None:
        """The stores side by side, or None and a problem for each that is missing."""
        key = tuple(names)
        if key not in self._stores:
            self._stores[key] = None
            missing = [name for name in names if not name.startswith("absent:") and not Path(name).is_dir()]
            for name in missing:
                self.problem(f"feature store {name} is not there", name)
            if not missing:
                try:
                    stores = self._stores[key] = FeatureStores(list(names))
                    self.found += [
                        f"{store.folder}: {len(store):,} clips by {store.manifest['extractor']}, {store.dim} wide, "
                        f"{store.manifest['rate'] or 'no'} steps a second"
                        for store in stores.stores
                    ]
                except (FeatureStoreError, FileNotFoundError) as error:
                    self.problem(f"{where}: {error}")
        return self._stores[key]

    def coverage(self, rows: Dataset | None, names: Sequence[str], features: FeatureStores | None, where: str) -> None:
        """Whether every clip has features."""
        column = self.recipe.data.video_column
        if rows is None:
            return
        if column is not None:
            if column not in rows.column_names:
                self.problem(f"{where}: no column {column} to read clips from; it has {', '.join(rows.column_names)}")
            return
        if not names and "video_features" not in rows.column_names:
            self.problem(f"{where}: neither feature stores in the recipe nor a column video_features")
        for folder, problem in features.problems(rows["video_id"]) if features else ():
            self.problem(f"{where}: {problem}", folder)

    def source(self, where: str, stage: StageArguments, source: Source, features: FeatureStores | None) -> None:
        """Whether a stage has something to learn from: columns, captions, features of the model's width."""
        data = self.recipe.data
        own = source.dataset is not None
        name, revision = (source.dataset or data.dataset), (source.revision if own else data.revision)
        rows = self.split(name, revision, "train", columns_of(source))
        names = source.features if own else data.features
        stores = self.stores(names, where) if names else None
        if own and source.with_video:
            self.coverage(rows, names, stores, f"{where}: {name}")
            if stores and features and stores.dims != features.dims:
                self.problem(
                    f"{where}: streams are {stores.dims} wide, data.features {features.dims}; they must agree"
                )
        if source.clip_seconds is not None and stores is not None:
            rates = {store.manifest["rate"] for store in stores.stores}
            if len(rates) > 1 or None in rates:
                self.problem(
                    f"{where}: clip_seconds needs one rate of all its stores; they have {sorted(rates, key=str)}"
                )
        if rows is None or not set(columns_of(source)) <= set(rows.column_names):
            return
        texts = rows.select_columns([f"{source.text_column}_{language}" for language in source.languages])
        too_few = sum(sum(map(bool, row.values())) < source.languages_per_clip for row in texts)
        if too_few and source.clip_seconds is None:
            self.problem(
                f"{where}: {too_few:,} of {len(rows):,} clips of {name} have {source.text_column} in fewer than "
                f"{source.languages_per_clip} of {', '.join(source.languages)}: drop or fill them"
            )
        for column in texts.column_names if source.clip_seconds is None else ():
            for problem in blank_texts(rows, column):
                self.problem(f"{where}: {name} (train): {problem}")
        if len(rows) < stage.train_batch_size:
            self.problem(
                f"{where}: {len(rows):,} clips, the batch is {stage.train_batch_size}: lower train_batch_size"
            )


def check_recipe(recipe: Recipe) -> dict[str, Any]:
    """Prints what is there and what is missing.

    Returns:
        `found` and `problems`, a line each.
    """
    check = RecipeCheck(recipe)
    check.check()
    for title, lines in (("there", check.found), ("missing or wrong", check.problems or ["nothing"])):
        print(f"{title}:", *lines, sep="\n  ")
    return {"found": check.found, "problems": check.problems}
