"""The card of a checkpoint: words from the template, numbers from the run."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from modeling_mmt.configuration_mmt import MMTConfig
from modeling_mmt.evaluation.checkpoint_recipe import RECIPE
from modeling_mmt.evaluation.metrics import DIRECTIONS, SHOWN_METRICS, average_over_languages

TEMPLATE = Path(__file__).with_name("model_card.md")
METRICS_FILE = "metrics.json"
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "safetensors")
STARTS = ("checkpoint", "dual_encoder", "text_model")  # of a recipe's model: the first that is there reads the texts
NOT_STATED = "not stated"
PICTURES = (
    "picture.png",
    "picture.webp",
    "picture.jpg",
)  # of results, such as a contact sheet; the card shows the first
CAT = {  # what the widget compares: one sentence in each language
    "en": "a cat is sleeping",
    "de": "eine Katze schläft",
    "fr": "un chat dort",
    "cs": "kočka spí",
    "zh": "一只猫在睡觉",
    "ru": "кошка спит",
    "vi": "một con mèo đang ngủ",
    "sw": "paka amelala",
    "es": "un gato duerme",
}
OTHERS = ("a red bicycle", "a train in the snow")  # and two that mean something else
HOME = re.compile(r"~[\w.-]*(/|$)")  # `~/clips`, `~ann/clips`; not "~1,600 clips, see https://..."
HUB_NAME = re.compile(r"([\w-][\w.-]*/)?[\w-][\w.-]*")


def write_card(folder: str | os.PathLike, *, model_id: str | None = None, revision: str = "main") -> list[Path]:
    """Write `README.md` beside a checkpoint, and the figures as the Hub's evaluation results.

    Args:
        folder: the checkpoint's; what `mmt train` writes there is read: `config.json`, `recipe.json`, `metrics.json`.
        model_id: `org/name` on the Hub; None is the folder's name.
        revision: to pin.

    Returns:
        What was written: the card and, where the dataset is on the Hub, `.eval_results/NAME.yaml`.
    """
    folder = Path(folder)
    model_id = model_id or folder.resolve().name
    config = MMTConfig.from_pretrained(folder)
    recipe, metrics = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (RECIPE, METRICS_FILE))
    extractors = metrics["video_extractors"]
    public_recipe = without_local_paths(recipe)
    data, card_fields = public_recipe["data"], public_recipe["card"]
    split = data["test_split"] or "validation"
    figures = metrics["figures"][data["test_split"] and "test" or "validation"]
    results = _tables(figures["all"])
    excluded = next((part for name, part in figures.items() if name != "all"), None)
    dataset = card_fields.get("dataset_name", data["dataset"])
    stages = [name for name in ("alignment", "pretraining", "finetuning") if recipe.get(name)]
    languages = list(figures["all"]["t2v"])
    card_data = ModelCardData(
        language=languages,
        license=card_fields.get("weights_license"),
        library_name="transformers",
        pipeline_tag="sentence-similarity",  # by sentence-transformers; the Hub has no tag of video search
        tags=["sentence-transformers", "text-to-video-retrieval", "multilingual", "mmt"],
        base_model=card_fields.get("base_model"),
        model_name=model_id,
        widget=_widget(languages),
        eval_results=[
            EvalResult(
                task_type="text-to-video-retrieval",
                dataset_type=dataset,
                dataset_name=dataset,
                dataset_split=split,
                dataset_config=language,
                metric_type="recall_at_1",
                metric_name=f"text-to-video R@1 ({language})",
                metric_value=round(figures["all"]["t2v"][language]["R@1"], 2),
            )
            for language in languages
        ],
    )
    card = ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        model_id=model_id,
        revision=revision,
        picture=next((name for name in PICTURES if (folder / name).is_file()), None),
        languages=languages,
        text_encoder={
            "name": next(filter(None, map(public_recipe["model"].get, STARTS))),
            "revision": public_recipe["model"].get("checkpoint_revision") or public_recipe["model"]["text_revision"],
            "license": card_fields.get("text_license", NOT_STATED),
            "output_layer": config.num_text_layers,
            "frozen_layers": config.freeze_text_layers,
        },
        video={
            "extractor": ", ".join(store["extractor"] for store in extractors) or "the dataset's own features",
            "revision": ", ".join(str(store["revision"]) for store in extractors),
            "license": card_fields.get("video_license", NOT_STATED),
            "from_pixels": config.vision_config is not None,
            "learns": _learning_layers(config),
            "rate": extractors[0]["rate"] if extractors else None,
            "dims": config.video_feature_dims,
            "max_length": config.max_video_length,
        },
        dataset={
            "name": dataset,
            "revision": data["revision"],
            "license": card_fields.get("dataset_license", NOT_STATED),
            "split": split,
            "n_clips": metrics["n_clips"],
            "description": card_fields.get("dataset_description", ""),
        },
        results=results,
        without_flags=_tables(excluded) if excluded else None,
        training={
            "alignment": _sources_text(recipe["alignment"]) if recipe.get("alignment") else "",
            "pretraining": _start_text(public_recipe),
            "finetuning": _sources_text(recipe["finetuning"]) if recipe["finetuning"] else "nothing",
            "seed": recipe["seed"],
            "steps": sum(metrics[name]["steps"] for name in stages),
            "seconds": sum(metrics[name]["seconds"] for name in stages),
            "machine": " and ".join(dict.fromkeys(metrics[name].get("machine", NOT_STATED) for name in stages)),
            "recipe": "recipe.json",
        },
        results_command=metrics.get("command", f"mmt train recipe.json --seed {recipe['seed']}"),
        versions={name: version(name) for name in PACKAGES},
        weights_license=card_fields.get("weights_license", NOT_STATED),
    )
    card.save(folder / "README.md")
    return [folder / "README.md", *_write_eval_results(folder, recipe, figures["all"]["t2v"])]


def _widget(languages: Sequence[str]) -> list[dict[str, Any]]:
    """An example of `sentence-similarity` for the page: translations should be nearer than other sentences."""
    translations = [CAT[language] for language in languages if language in CAT and language != "en"]
    return [{"source_sentence": CAT["en"], "sentences": [*translations[:3], *OTHERS]}]


def _learning_layers(config: MMTConfig) -> str:
    if config.vision_config is None or config.learn_vision_layers == 0:
        return ""
    return "all of it" if config.learn_vision_layers is None else f"last {config.learn_vision_layers} layers"


def without_local_paths(value: Any) -> Any:
    """JSON's values, such as a recipe's, that name no folder of this machine above the working directory.

    An absolute path becomes relative to the working directory, and one outside it becomes its last part.
    """
    if isinstance(value, Mapping):
        return {key: without_local_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_local_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    value = value.removeprefix("file://")
    path: PurePath = Path(value)
    if path.is_relative_to(Path.cwd()):
        return path.relative_to(Path.cwd()).as_posix()
    if PureWindowsPath(value).is_absolute():
        path = PureWindowsPath(value)
    return path.name if path.is_absolute() or HOME.match(value) else value


def _write_eval_results(folder: Path, recipe: Mapping[str, Any], figures: Mapping[str, Any]) -> list[Path]:
    """The form that took `model-index`'s place; it can only name datasets that are on the Hub."""
    data = recipe["data"]
    dataset_id = recipe["card"].get("dataset_id") or ("" if Path(data["dataset"]).exists() else data["dataset"])
    if not HUB_NAME.fullmatch(dataset_id):
        return []
    entries = [
        EvalResultEntry(
            dataset_id=dataset_id,
            task_id=f"text_to_video_{language}",
            value=round(float(values["R@1"]), 2),
            dataset_revision=data["revision"],
            notes=f"R@1 in percent, {data['text_column']} in {language}, split {data['test_split'] or 'validation'}",
        )
        for language, values in figures.items()
    ]
    path = folder / ".eval_results" / f"{dataset_id.replace('/', '--')}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False), encoding="utf-8")
    return [path]


def _tables(part: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    return {
        DIRECTIONS[direction].replace(" ", "-"): {
            metric: average_over_languages({language: float(values[metric]) for language, values in of.items()})
            for metric in SHOWN_METRICS
        }
        for direction, of in part.items()
    }


def _start_text(recipe: Mapping[str, Any]) -> str:
    """What came before fine-tuning."""
    checkpoint = recipe["model"].get("checkpoint")
    parts = [f"the checkpoint {checkpoint}"] if checkpoint else []
    parts += [_sources_text(recipe["pretraining"])] if recipe["pretraining"] else []
    return ", then ".join(parts) or "nothing"


def _sources_text(stage: Mapping[str, Any]) -> str:
    sources = []
    for source in stage["sources"]:
        kinds = [source["text_column"], *source.get("other_text_columns", [])]
        share = source.get("named_share", 1)
        named = f" of {100 * share:g} % of the clips" if share < 1 else ""
        sources.append(f"{' or '.join(kinds)}{named} in {', '.join(source['languages'])}")
    return " and ".join(sources)
