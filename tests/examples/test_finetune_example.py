"""`examples/finetune_with_trainer.py` on one process and on two, whole and by LoRA, and what it saves."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import call
from datasets import load_dataset
from huggingface_hub import HfApi
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, Trainer

from modeling_mmt.data.extractors import Extractor, record_extractors, recorded_extractors
from modeling_mmt.data.feature_store_writer import write_feature_store
from modeling_mmt.hub.publish import publish
from modeling_mmt.training.trainer import MMTTrainer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
pytest.importorskip("peft", reason="an optional peer: extra `plugins`")
import finetune_with_trainer  # noqa: E402

COMMON = ["--text_column", "caption", "--languages", "en", "de", "--max_steps", "8", "--learning_rate", "0.01"]
COMMON += ["--max_grad_norm", "0", "--lr_scheduler_type", "constant", "--optim", "sgd", "--logging_steps", "1"]
COMMON += ["--report_to", "none", "--use_cpu", "--disable_tqdm", "True", "--save_strategy", "no", "--seed", "3"]
LEARNING = ["--max_steps", "20", "--optim", "adamw_torch"]


@pytest.fixture(scope="module")
def start(corpus, tmp_path_factory):
    """A checkpoint whose text encoder and features are the tiny corpus's."""
    from conftest import build_model, build_text_config, build_tokenizer
    from tiny_corpus import VOCABULARY

    from modeling_mmt import MMTProcessor, MMTVideoFeatureExtractor

    folder = tmp_path_factory.mktemp("start")
    model = build_model(build_text_config(vocab_size=len(VOCABULARY)), sharpness=1, video_feature_dims=[6, 6])
    model.save_pretrained(folder)
    MMTProcessor(MMTVideoFeatureExtractor(12, 12), build_tokenizer(VOCABULARY)).save_pretrained(folder)
    return folder


def arguments(corpus, start, output, batch_size, *more):
    data = ["--dataset", str(corpus / "corpus_with_features"), "--features", ""]
    return [
        *("--model", str(start), "--output_dir", str(output), "--per_device_train_batch_size", str(batch_size)),
        *data,
        *COMMON,
        *more,
    ]


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_one_process_learns_with_the_plain_trainer_and_saves_a_whole_checkpoint(corpus, start, tmp_path):
    trainer = finetune_with_trainer.main(arguments(corpus, start, tmp_path, 16, *LEARNING))
    assert type(trainer) is Trainer
    assert sum(losses(trainer)[-5:]) < sum(losses(trainer)[:5])
    moved = changed(weights(start), weights(tmp_path))
    assert {"text_projection.output.weight", "video_projection.output.weight"} <= moved
    assert not [name for name in moved if "encoder.layer.0" in name or "embeddings.word" in name]  # frozen
    model, processor = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    inputs = processor(["red dog"], [corpus_clip()])
    with torch.no_grad():
        found = model.eval()(**inputs).logits_per_text
        wanted = trainer.model.eval()(**inputs).logits_per_text
    torch.testing.assert_close(found, wanted)


def corpus_clip():
    return torch.ones(2, 12)


def test_what_it_saves_is_evaluated_searched_and_published_as_a_run_of_mmt(hub, corpus, start, tmp_path, capsys):
    stores = ["--dataset", str(corpus / "corpus"), "--features", str(tmp_path / "both")]
    rows = load_dataset(str(corpus / "corpus_with_features"))
    clips = [(row["video_id"], np.array(row["video_features"])) for split in rows.values() for row in split]
    source = {"image_size": 128, "num_frames": 4}
    write_feature_store(tmp_path / "both", clips, extractor="made up", revision="1", source=source)
    trainer = finetune_with_trainer.main([*arguments(corpus, start, tmp_path / "mine", 16), *stores])
    folder = tmp_path / "mine"
    figures = json.loads((folder / "metrics.json").read_text())["figures"]["validation"]
    capsys.readouterr()
    code, out, _ = call(capsys, "evaluate", folder, "--json")
    assert code == 0 and json.loads(out)["figures"] == figures
    assert call(capsys, "search", folder, "red dog", "--top", "3")[0] == 0
    assert recorded_extractors(AutoProcessor.from_pretrained(folder)) == [
        Extractor(12, "made up", "1", image_size=128, num_frames=4)
    ]
    card = (folder / "README.md").read_text()
    assert f"Pre-training: **the checkpoint {start.name}**" in card and "unknown dataset" not in card
    assert f"base_model: {start}" in card or f"base_model: {start.name}" in card
    assert f"{trainer.state.global_step} steps" in card and "caption in en, de" in card
    publish(folder, "org/mine", tag="v1.0")
    published = json.loads(Path(HfApi().hf_hub_download("org/mine", "recipe.json")).read_text())
    assert published["model"]["checkpoint"] == start.name and str(tmp_path) not in json.dumps(published)


def test_features_of_another_extractor_than_the_checkpoints_are_refused(corpus, start, tmp_path, capsys):
    folder = tmp_path / "start"
    shutil.copytree(start, folder)
    processor = AutoProcessor.from_pretrained(folder)
    record_extractors(processor, [Extractor(12, "lite0", image_size=128)])
    processor.save_pretrained(folder)
    clips = [(f"clip-{number}", np.ones((1, 12))) for number in range(64)]
    write_feature_store(tmp_path / "s", clips, extractor="lite0", revision="1", source={"image_size": 224})
    stores = ["--dataset", str(corpus / "corpus"), "--features", str(tmp_path / "s")]
    with pytest.raises(SystemExit) as stopped:
        finetune_with_trainer.main([*arguments(corpus, folder, tmp_path / "out", 4), *stores])
    err = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and "image_size is 224, not 128" in err and "--image_size 128" in err


RELOAD = """
import sys
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor

torch.set_num_threads(1)
for revision in sys.argv[1:]:
    pin = {"revision": revision, "trust_remote_code": True}
    model, processor = AutoModel.from_pretrained("org/mine", **pin), AutoProcessor.from_pretrained("org/mine", **pin)
    with torch.no_grad():
        found = model.eval()(**processor(["red dog", "Hund"], [torch.ones(2, 12), torch.ones(3, 12) / 2]))
    embeds = {name: found[name].contiguous() for name in ("text_embeds", "video_embeds")}
    save_file(embeds, f"{revision}.safetensors")
"""


@pytest.mark.parametrize("more", [[], pytest.param(["--lora"], marks=pytest.mark.slow)], ids=["whole", "lora"])
def test_what_is_pushed_comes_back_bit_for_bit_by_its_revision_in_a_process_without_the_package(
    hub, corpus, start, tmp_path, more
):
    more = [*more, "--push_to_hub", "--hub_model_id", "org/mine", "--max_steps", "3"]
    trainer = finetune_with_trainer.main(arguments(corpus, start, tmp_path / "out", 16, *more))
    api = HfApi()
    pushed = api.model_info("org/mine").sha
    there = set(api.list_repo_files("org/mine"))
    assert (tmp_path / "out" / "training_args.bin").is_file() and len(api.list_repo_commits("org/mine")) == 2
    assert {"README.md", "config.json", "model.safetensors", "modeling_mmt.py", "tokenizer.json"} <= there
    assert {Path(name).suffix for name in there} <= {".json", ".md", ".py", ".safetensors", ""}, there  # no pickle
    api.create_tag("org/mine", tag="v1.0")
    api.upload_file(path_or_fileobj=start / "model.safetensors", path_in_repo="model.safetensors", repo_id="org/mine")
    expected = {}
    inputs = trainer.processing_class(["red dog", "Hund"], [torch.ones(2, 12), torch.ones(3, 12) / 2])
    with torch.no_grad():
        expected["v1.0"] = expected[pushed] = trainer.model.eval()(**inputs)
        expected["main"] = AutoModel.from_pretrained(start).eval()(**inputs)
    assert not torch.equal(expected["v1.0"]["text_embeds"], expected["main"]["text_embeds"])
    environment = {**os.environ, **hub.environment(tmp_path / "elsewhere"), "OMP_NUM_THREADS": "1"}
    del environment["HF_TOKEN"]
    done = subprocess.run(
        [sys.executable, "-c", 'import sys; sys.modules["modeling_mmt"] = None\n' + RELOAD, *expected],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for revision, wanted in expected.items():
        for name, value in load_file(tmp_path / f"{revision}.safetensors").items():
            assert torch.equal(value, wanted[name]), (revision, name)


def test_lora_moves_the_encoder_everywhere_and_leaves_an_ordinary_checkpoint(corpus, start, tmp_path):
    trainer = finetune_with_trainer.main(arguments(corpus, start, tmp_path, 16, "--lora", *LEARNING))
    assert sum(losses(trainer)[-5:]) < sum(losses(trainer)[:5])
    before, after = weights(start), weights(tmp_path)
    assert before.keys() == after.keys()  # merged: no trace of LoRA
    moved = changed(before, after)
    attention = {f"text_model.encoder.encoder.layer.{i}.attention.self.query.weight" for i in range(3)}
    assert attention <= moved
    assert "video_projection.output.weight" in moved
    assert not [name for name in moved if "text_model.encoder" in name and "attention.self" not in name]
    update = after[min(attention)] - before[min(attention)]
    assert 1 <= torch.linalg.matrix_rank(update, rtol=1e-3) <= 8
    model, processor = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    inputs = processor(["red dog"], [corpus_clip()])
    with torch.no_grad():
        torch.testing.assert_close(
            model.eval()(**inputs).logits_per_text, trainer.model.eval()(**inputs).logits_per_text
        )


@pytest.mark.parametrize("more", [[], pytest.param(["--lora"], marks=pytest.mark.slow)], ids=["whole", "lora"])
def test_two_processes_take_the_step_of_one_with_the_whole_batch(corpus, start, tmp_path, more):
    """Nothing is drawn: one caption a clip, no noise, no dropout, and the whole training split is one batch."""
    size = 40
    pinned = ["--max_steps", "1", "--languages", "en", "--noise_probability", "0", *more]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(ROOT / "examples" / "finetune_with_trainer.py")]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *arguments(corpus, start, tmp_path / "two", size // 2, *pinned)],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one = finetune_with_trainer.main(arguments(corpus, start, tmp_path / "one", size, *pinned))
    assert not isinstance(one, MMTTrainer)
    before, after_one, after_two = weights(start), weights(tmp_path / "one"), weights(tmp_path / "two")
    moved = changed(before, after_one)
    assert len(moved) > 10
    assert after_two.keys() == after_one.keys()
    apart = sum((after_two[n] - after_one[n]).double().square().sum() for n in moved) ** 0.5
    distance = sum((after_one[n] - before[n]).double().square().sum() for n in moved) ** 0.5
    assert apart < 1e-3 * distance


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--model", "nope"], "no checkpoint in nope, which does not exist; give the folder"),
        (["--dataset", "no/where/at/all"], "no/where/at/all"),
        (["--features", "nope"], "nope is not a finished feature store"),
        (["--text_column", "title"], r"corpus_with_features \(train\): no column title_en; found .*caption_en"),
        (["--languages", "xx"], r"\(train\): no column caption_xx; found"),
        (["--features", "one"], r"\(train\): 39 of 40 clips are not in .*one, the first"),
    ],
    ids="model dataset store column language clips".split(),
)
def test_what_is_not_there_is_one_line_and_exit_code_2(corpus, start, tmp_path, monkeypatch, capsys, changes, message):
    monkeypatch.chdir(tmp_path)
    one = [("clip-0", np.ones((2, 12), dtype=np.float32))]
    write_feature_store(tmp_path / "one", one, extractor="made up", revision="1")
    with pytest.raises(SystemExit) as stopped:
        finetune_with_trainer.main(arguments(corpus, start, tmp_path / "out", 4, *changes))
    err = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and re.search(message, err)
