"""What a saved folder is to a stranger: its own code, loaded by a process that cannot import the package."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_mmt import EfficientNetLiteConfig, EfficientNetLiteModel, MMTModel
from modeling_mmt.configuration_mmt import SENTENCE_TRANSFORMERS_FILES

MODEL_CODE = {
    *(f"{name}_mmt.py" for name in ("configuration", "loss", "modeling", "pipeline", "pooling", "processing")),
    *(f"{name}_mmt.py" for name in ("dual_encoder", "efficientnet_lite", "freezing", "frames", "image_processing")),
    *(
        f"{name}_mmt.py"
        for name in ("inputs", "picture_formats", "pictures", "sentence_encoder", "video_decoding", "video_packets")
    ),
    *(f"{name}_mmt.py" for name in ("video_streams", "vision_configuration", "vision_encoders")),
}
STRANGER = """
import json, sys
sys.modules["modeling_mmt"] = None  # an installed copy is out of reach too
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoProcessor

torch.set_num_threads(1)
folder, pictures = sys.argv[1:]
remote = {"trust_remote_code": True}
try:
    import modeling_mmt
    raise SystemExit("the package can be imported")
except ImportError:
    pass
config = AutoConfig.from_pretrained(folder, **remote)
model, info = AutoModel.from_pretrained(folder, output_loading_info=True, **remote)
processor = AutoProcessor.from_pretrained(folder, **remote)
clips = list(load_file("clips.safetensors").values())
with torch.no_grad():
    output = model(**processor(["red dog runs", "heim"], clips), return_loss=True)
save_file({name: value.contiguous() for name, value in output.items()}, "outputs.safetensors")
model.save_pretrained("again")
processor.save_pretrained("again")
encoder = AutoModel.from_pretrained(pictures, **remote)
with torch.no_grad():
    pooled = encoder(load_file("pictures.safetensors")["pictures"]).pooler_output
save_file({"pooled": pooled}, "pooled.safetensors")
print(json.dumps({
    "classes": [type(x).__name__ for x in (config, model, processor, encoder)],
    "modules": [type(x).__module__ for x in (config, model, processor, encoder)],
    "config": config.to_dict(),
    "problems": [sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")],
    "frozen": sorted(name for name, p in model.named_parameters() if not p.requires_grad),
    "text_prefix": processor.text_prefix,
}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from conftest import build_model, build_processor

    path = tmp_path_factory.mktemp("published") / "mmt-tiny"
    build_model(pooling="mean", norm_placement="pre", projection_skip=True).save_pretrained(path)
    build_processor(text_prefix="query: ", max_text_length=9).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "lite-tiny"
    fields = {"stage_dims": [4, 6], "stage_depths": [1, 1], "stage_strides": [1, 2], "stage_kernels": [3, 5]}
    torch.manual_seed(0)
    EfficientNetLiteModel(
        EfficientNetLiteConfig(stem_dim=4, hidden_size=12, expand_ratios=[1, 2], **fields)
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def stranger(folder, encoder_folder, tmp_path_factory):
    """What the other process printed, and the folder it worked in."""
    from conftest import build_clips

    work = tmp_path_factory.mktemp("stranger")
    clips = {str(index): torch.from_numpy(clip) for index, clip in enumerate(build_clips([3, 5]))}
    save_file(clips, work / "clips.safetensors")
    torch.manual_seed(1)
    save_file({"pictures": torch.randn(2, 3, 24, 24)}, work / "pictures.safetensors")
    outside = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(folder), str(encoder_folder)],
        cwd=work,
        env=outside | {"HF_HOME": str(work / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), work


def python_files(path):
    return {file.name for file in Path(path).glob("*.py")}


def test_the_saved_folder_holds_exactly_the_shipped_files(folder, encoder_folder):
    assert python_files(folder) == MODEL_CODE
    assert {file.name for file in folder.iterdir()} - MODEL_CODE == {
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        *(Path(name).parts[0] for name in SENTENCE_TRANSFORMERS_FILES),
    }
    assert python_files(encoder_folder) == {"efficientnet_lite_mmt.py"}


def test_the_auto_map_names_every_auto_class(folder):
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert auto_map == {"AutoConfig": "configuration_mmt.MMTConfig", "AutoModel": "modeling_mmt.MMTModel"}
    processor = json.loads((folder / "processor_config.json").read_text())
    assert processor["auto_map"]["AutoProcessor"] == "processing_mmt.MMTProcessor"


def test_what_the_auto_map_names_imports_all_that_it_needs_by_itself(folder):
    """transformers 5.6 copies a file's own imports beside it, and not theirs."""

    def siblings(name):
        tree = ast.parse((folder / f"{name}.py").read_text())
        return {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level}

    for entry in ("configuration_mmt", "modeling_mmt", "processing_mmt"):
        assert set().union(*(siblings(name) for name in siblings(entry))) <= siblings(entry), entry


def test_shipped_files_import_only_torch_transformers_the_standard_library_and_each_other(folder, encoder_folder):
    allowed = {"torch", "transformers", "huggingface_hub"} | sys.stdlib_module_names
    for path in [*folder.glob("*.py"), *encoder_folder.glob("*.py")]:
        source = path.read_text()
        relative = 0
        tree = ast.parse(source)
        tries = [node for node in ast.walk(tree) if isinstance(node, ast.Try)]  # the loader skips what stands in one
        optional = {inner for node in tries for statement in node.body for inner in ast.walk(statement)}
        for node in ast.walk(tree):
            if node in optional:
                continue
            if isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= allowed, path.name
            elif isinstance(node, ast.ImportFrom) and node.level:
                relative += 1
                assert (node.level, f"{node.module}.py" in python_files(path.parent)) == (1, True), path.name
            elif isinstance(node, ast.ImportFrom):
                assert node.module.partition(".")[0] in allowed, path.name
        # The Hub's scanner reads docstrings too: it must not find more than Python does.
        assert len(re.findall(r"^\s*(?:from|import)\s+\.", source, flags=re.MULTILINE)) == relative, path.name


def test_a_stranger_gets_our_classes_from_the_folder(stranger):
    found, _ = stranger
    assert found["classes"] == ["MMTConfig", "MMTModel", "MMTProcessor", "EfficientNetLiteModel"]
    assert all(module.startswith("transformers_modules.") for module in found["modules"])
    assert found["problems"] == [[], [], []]
    assert found["text_prefix"] == "query: "


def test_a_stranger_gets_the_same_embeddings_bit_for_bit(stranger, folder, make_clips, make_processor):
    _, work = stranger
    model = MMTModel.from_pretrained(folder)
    processor = make_processor(text_prefix="query: ", max_text_length=9)
    with torch.no_grad():
        wanted = model(**processor(["red dog runs", "heim"], make_clips([3, 5])), return_loss=True)
    found = load_file(work / "outputs.safetensors")
    assert found.keys() == set(wanted.keys()) > {"loss", "text_embeds", "video_embeds"}
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
    assert torch.pdist(found["text_embeds"]) > 0.05


def test_a_stranger_gets_the_same_frame_vectors_bit_for_bit(stranger, encoder_folder):
    _, work = stranger
    with torch.no_grad():
        wanted = EfficientNetLiteModel.from_pretrained(encoder_folder)(
            load_file(work / "pictures.safetensors")["pictures"]
        ).pooler_output
    assert torch.equal(load_file(work / "pooled.safetensors")["pooled"], wanted)


def test_a_stranger_s_model_is_frozen_where_ours_is(stranger, folder):
    found, _ = stranger
    model = MMTModel.from_pretrained(folder)
    assert found["frozen"] == sorted(name for name, p in model.named_parameters() if not p.requires_grad)
    assert len(found["frozen"]) > 10


def test_what_a_stranger_saves_again_carries_its_code_and_weights(stranger, folder):
    _, work = stranger
    again = work / "again"
    assert python_files(again) == MODEL_CODE
    for name in MODEL_CODE:
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name
    auto_map = json.loads((again / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModel"] == "modeling_mmt.MMTModel"
    assert auto_map["AutoConfig"] == "configuration_mmt.MMTConfig"
    ours, theirs = load_file(folder / "model.safetensors"), load_file(again / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())
