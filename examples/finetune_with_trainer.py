"""Fine-tune a checkpoint on your own clips with `transformers.Trainer`; on several processes with exact negatives.

    python examples/finetune_with_trainer.py --output_dir runs/mine --lora
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 examples/finetune_with_trainer.py --output_dir runs/mine

The dataset has `video_id`, captions `<text_column>_<language>`, and clips in a column `video_features` or in a feature
store. `--lora` trains low-rank updates of the text encoder's attention in place of its upper layers, and merges them
into the saved weights, which load as any checkpoint does. All of TrainingArguments' options are taken.

Recipe, figures and card are written beside the weights, so that `mmt evaluate`, `search`, `report` and `publish` take
the result as one of `mmt train`. `--push_to_hub --hub_model_id org/name` publishes it in one commit when it is done;
load it by its revision. `Trainer.push_to_hub` is not used: it uploads `training_args.bin`, a pickle, which stays in
`output_dir`.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoProcessor, HfArgumentParser, Trainer, TrainingArguments, set_seed

import modeling_mmt  # noqa: F401  registers the model with AutoModel
from modeling_mmt.data.checks import blank_texts, feature_problems
from modeling_mmt.data.collator import ClipDataset, MMTDataCollator
from modeling_mmt.data.extractors import check_extractors, record_extractors
from modeling_mmt.data.feature_store import FeatureStores
from modeling_mmt.data.files import write_json
from modeling_mmt.data.reading import load_split
from modeling_mmt.evaluation.checkpoint_recipe import RECIPE, recipe_file
from modeling_mmt.evaluation.evaluate import EvalSpec, check_checkpoint, evaluate, open_checkpoint, open_corpus
from modeling_mmt.hub.card import METRICS_FILE, write_card
from modeling_mmt.hub.publish import publish
from modeling_mmt.training.recipe import DataArguments, Recipe, Source, StageArguments
from modeling_mmt.training.stage import machine
from modeling_mmt.training.trainer import MMTTrainer


@dataclass
class Finetuning:
    """What is fine-tuned on what."""

    model: str = field(default="runs/demo/mmp_en", metadata={"help": "checkpoint: a folder, or a name on the Hub"})
    revision: str | None = field(default=None, metadata={"help": "tag or commit of a name on the Hub"})
    dataset: str = field(default="datasets_scripts/emoji9", metadata={"help": "folder, or name on the Hub"})
    features: str = field(
        default="runs/features/emoji9-lite0-128", metadata={"help": "store; '': the column `video_features`"}
    )
    text_column: str = field(default="name", metadata={"help": "kind of caption"})
    languages: list[str] = field(default_factory=lambda: ["en"], metadata={"help": "to train on"})
    noise_probability: float = field(
        default=0.05, metadata={"help": "of masked tokens and zeroed steps; 0: no copies"}
    )
    lora: bool = field(default=False, metadata={"help": "train low-rank updates of the text encoder"})


def open_inputs(ours: Finetuning) -> tuple[Any, Any, dict[str, ClipDataset], FeatureStores | None]:
    """Model, processor, the clips of each split, and the feature store.

    Raises:
        OSError: checkpoint, dataset or feature store does not exist.
        ValueError: a column is missing, a row cannot be learned from, or the features are another extractor's.
    """
    check_checkpoint(ours.model)
    hub = {"revision": ours.revision} if ours.revision else {}
    features = FeatureStores([ours.features]) if ours.features else None
    texts = [f"{ours.text_column}_{language}" for language in ours.languages]
    columns = [*texts, *([] if ours.features else ["video_features"])]
    clips = {}
    for split in ("train", "validation"):
        rows = load_split(ours.dataset, None, split, columns)
        problems = [problem for column in texts for problem in blank_texts(rows, column)]
        if features is None:
            problems += feature_problems(rows)
        else:
            problems += [problem for _, problem in features.problems(rows["video_id"][:])]
        for problem in problems:
            raise ValueError(f"{ours.dataset} ({split}): {problem}")
        clips[split] = ClipDataset(rows.select_columns(["video_id", *columns]), features)
    model, processor = AutoModel.from_pretrained(ours.model, **hub), AutoProcessor.from_pretrained(ours.model, **hub)
    if features is not None:
        check_extractors(processor, features.extractors, [ours.features])
        record_extractors(processor, features.extractors)
    return model, processor, clips, features


def recipe_of(ours: Finetuning, trainer: Trainer, model: Any) -> dict[str, Any]:
    """What was trained on what, as `mmt` reads it: the start's recipe, if it has one, with the data of this run."""
    arguments, path = trainer.args, recipe_file(ours.model, ours.revision)
    start = json.loads(path.read_text(encoding="utf-8")) if path else {}
    stage = StageArguments(
        [Source(ours.text_column, languages=ours.languages, noise_probability=ours.noise_probability)],
        num_train_epochs=max(1, round(trainer.state.epoch or 1)),
        train_batch_size=max(2, arguments.train_batch_size * arguments.world_size),
        learning_rate=arguments.learning_rate,
    )
    data = DataArguments(
        ours.dataset,
        features=[ours.features] if ours.features else [],
        text_column=ours.text_column,
        languages=ours.languages,
        test_split=None,
    )
    recipe = asdict(Recipe(data, finetuning=stage, seed=arguments.seed, output_dir=str(arguments.output_dir)))
    encoder = {"text_model": model.config.text_config.model_type} | start.get("model", {})
    recipe["model"] |= encoder | {"checkpoint": ours.model}
    recipe["card"] = start.get("card", {}) | {"base_model": ours.model}
    return recipe


def write_results(ours: Finetuning, trainer: Trainer, features: FeatureStores | None, seconds: float):
    """Recipe, figures on validation and card beside the weights, as `mmt train` writes them."""
    folder = Path(str(trainer.args.output_dir))
    model, processor = open_checkpoint(str(folder))
    recipe = recipe_of(ours, trainer, model)
    asked = {name: recipe["data"][name] for name in ("dataset", "features", "text_column", "languages")}
    corpus = open_corpus(EvalSpec(**asked, split="validation"))
    manifests = [store.manifest for store in features.stores] if features else []
    metrics = {
        "figures": {"validation": evaluate(model, processor, corpus).figures},
        "finetuning": {
            "steps": trainer.state.global_step,
            "seconds": seconds,
            "machine": machine(trainer.accelerator),
        },
        "n_clips": len(corpus.rows),
        "video_extractors": [{key: of[key] for key in ("extractor", "revision", "rate", "dim")} for of in manifests],
        "command": f"mmt evaluate {folder.name}",
    }
    write_json(folder / METRICS_FILE, metrics)
    write_json(folder / RECIPE, recipe)
    write_card(folder)


def main(argv: list[str] | None = None) -> Trainer:
    """Train, and save the model with its processor; returns the trainer."""
    parser = HfArgumentParser([Finetuning, TrainingArguments])  # type: ignore[list-item]
    ours, arguments = parser.parse_args_into_dataclasses(argv)
    arguments.remove_unused_columns = False  # the collator reads the rows' own columns
    arguments.label_names = []
    push, arguments.push_to_hub = arguments.push_to_hub, False  # by `publish` below, which sends no pickle
    set_seed(arguments.seed)
    try:
        model, processor, clips, features = open_inputs(ours)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {' '.join(str(error).split())}\n")
    if ours.lora:  # the pooling heads and projections learn too, whole
        heads = ["text_model.pooling", "text_projection", "video_model", "video_projection"]
        attention = r"text_model\.encoder\..*\.(query|key|value|q_proj|k_proj|v_proj|q_lin|k_lin|v_lin)"
        model = get_peft_model(model, LoraConfig(r=8, target_modules=attention, modules_to_save=heads))
    trainer = (MMTTrainer if arguments.world_size > 1 else Trainer)(
        model=model,
        args=arguments,
        data_collator=MMTDataCollator(
            processor, ours.text_column, ours.languages, noise_probability=ours.noise_probability
        ),
        train_dataset=clips["train"],
        eval_dataset=clips["validation"],
        processing_class=processor,
    )
    start = time.monotonic()
    trainer.train()
    if ours.lora:
        trainer.model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    trainer.save_model()
    if trainer.is_world_process_zero():
        write_results(ours, trainer, features, time.monotonic() - start)
    if push and trainer.is_world_process_zero():
        trainer.init_hf_repo(arguments.hub_token)
        publish(arguments.output_dir, str(trainer.hub_model_id), revision=arguments.hub_revision or "main")
    trainer.model_wrapped = trainer.accelerator.unwrap_model(trainer.model)
    trainer.accelerator.free_memory()  # what still holds a process group may wait for ever as it goes
    trainer.accelerator.end_training()  # no process leaves while another still writes
    return trainer


if __name__ == "__main__":
    main()
