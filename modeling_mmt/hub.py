"""The card of a checkpoint: words from the template, numbers from the run."""

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .retrieval import average_over_languages

METRICS = ("R@1", "R@5", "R@10", "MedR", "MRR")
DIRECTIONS = {"t2v": "text-to-video", "v2t": "video-to-text"}
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "safetensors")
NOT_STATED = "not stated"


def write_card(
    folder: str | os.PathLike,
    template: str | os.PathLike,
    *,
    model_id: str,
    recipe: Mapping[str, Any],
    config: Any,
    metrics: Mapping[str, Any],
    extractors: Sequence[Mapping[str, Any]],
    seconds: float,
    revision: str = "main",
) -> Path:
    """Write `README.md` beside a checkpoint.

    Args:
        folder: the checkpoint's.
        template: `model_card.md`; its head lists the variables.
        model_id: `org/name` on the Hub, or the folder.
        recipe: plain values of the run, `train.Recipe`'s; `card` holds names and licences.
        config: the model's `MMTConfig`.
        metrics: what `train.main` returns.
        extractors: manifests of the feature stores.
        seconds: of training.
        revision: to pin.

    Returns:
        The card's path.
    """
    data, told = recipe["data"], recipe["card"]
    split = data["test_split"] or "validation"
    figures = metrics["figures"][data["test_split"] and "test" or "validation"]
    results = _tables(figures["all"])
    excluded = next((part for name, part in figures.items() if name != "all"), None)
    dataset = told.get("dataset_name", data["dataset"])
    stages = [name for name in ("pretraining", "finetuning") if recipe[name]]
    languages = list(figures["all"]["t2v"])
    card_data = ModelCardData(
        language=languages,
        license=told.get("weights_license"),
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=["text-to-video-retrieval", "multilingual", "mmt"],
        base_model=told.get("base_model"),
        model_name=model_id,
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
        template_path=str(template),
        model_id=model_id,
        revision=revision,
        languages=languages,
        text_encoder={
            "name": recipe["model"]["text_model"],
            "revision": recipe["model"]["text_revision"],
            "license": told.get("text_license", NOT_STATED),
            "output_layer": config.text_config.num_hidden_layers,
            "frozen_layers": config.freeze_text_layers,
        },
        video={
            "extractor": ", ".join(store["extractor"] for store in extractors) or "the dataset's own features",
            "revision": ", ".join(str(store["revision"]) for store in extractors),
            "license": told.get("video_license", NOT_STATED),
            "rate": extractors[0]["rate"] if extractors else None,
            "dims": config.video_feature_dims,
            "max_length": config.max_video_length,
        },
        dataset={
            "name": dataset,
            "revision": data["revision"],
            "license": told.get("dataset_license", NOT_STATED),
            "split": split,
            "n_queries": metrics["n_clips"],
            "n_clips": metrics["n_clips"],
            "description": told.get("dataset_description", ""),
        },
        results=results,
        without_flags=_tables(excluded) if excluded else None,
        training={
            "pretraining": _told_sources(recipe["pretraining"]) if recipe["pretraining"] else "nothing",
            "finetuning": _told_sources(recipe["finetuning"]) if recipe["finetuning"] else "nothing",
            "seed": recipe["seed"],
            "steps": sum(metrics[name]["steps"] for name in stages),
            "seconds": seconds,
            "machine": f"{os.cpu_count()} CPU cores ({platform.machine()})",
            "recipe": "recipe.json",
        },
        results_command=f"python train.py recipe.json --seed {recipe['seed']}",
        versions={name: version(name) for name in PACKAGES},
        weights_license=told.get("weights_license", NOT_STATED),
    )
    path = Path(folder) / "README.md"
    card.save(path)
    return path


def _tables(part: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    return {
        DIRECTIONS[way]: {
            metric: average_over_languages({language: float(values[metric]) for language, values in of.items()})
            for metric in METRICS
        }
        for way, of in part.items()
    }


def _told_sources(stage: Mapping[str, Any]) -> str:
    return " and ".join(f"{source['text_column']} in {', '.join(source['languages'])}" for source in stage["sources"])
