"""The notebooks run from the first cell to the last on tiny checkpoints, and are committed with what they printed."""

import os
from pathlib import Path

import pytest
from conftest import VOCABULARY, build_config, build_text_config, build_tokenizer, randomize
from local_hub import LocalHub
from tiny_media import save_encoder, save_pixel_checkpoint
from tiny_vision import LITE

from modeling_mmt import MMTModel, MMTProcessor, MMTVideoFeatureExtractor

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "examples" / "notebooks"
NAMES = ["own_videos.ipynb", "fine_tune_and_publish.ipynb"]
WORDS = ["smiling", "face", "woman", "man", "person", "cat", "umbrella", "heart", "with", "fire", "cloud"]

nbformat = pytest.importorskip("nbformat", reason="extra `notebooks`")
nbclient = pytest.importorskip("nbclient", reason="extra `notebooks`")


def outputs_of(cell) -> str:
    shown = [output for output in cell.outputs if output.get("name") != "stderr"]
    return "".join(output.get("text", output.get("data", {}).get("text/plain", "")) for output in shown)


@pytest.fixture
def executed(tmp_path, monkeypatch):
    """Runs a notebook with other parameters in an empty folder and the tests' Hub; returns what it printed."""

    def execute(name, **parameters):
        notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
        (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
        changes = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
        assert set(parameters) <= {line.partition(" =")[0] for line in cell.source.splitlines()}
        cell.source += "\n" + changes
        client = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}})
        with LocalHub(tmp_path / "hub") as hub:
            for key, value in hub.environment(tmp_path / "home", token=True).items():
                monkeypatch.setenv(key, value)
            monkeypatch.setenv("PYTHONPATH", str(ROOT))
            monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
            monkeypatch.setenv("OMP_NUM_THREADS", "1")
            client.execute()
            assert hub.refused == []
        return [outputs_of(cell) for cell in notebook.cells if cell.cell_type == "code"]

    return execute


def test_own_videos_are_indexed_searched_and_the_index_brought_up_to_date(executed, tmp_path):
    model = save_pixel_checkpoint(tmp_path / "model")
    _, films, indexed, found, shown, updated = executed("own_videos.ipynb", MODEL=str(model))
    assert films == "['animals.mp4', 'traffic.mp4', 'weather.mp4']"
    assert indexed == "3 files, 15 windows\n"  # of 4 seconds, every 2, in 12
    assert found.count(".mp4") >= 6 and "con mèo" in found
    assert "<PIL.Image.Image image mode=RGB size=576x96" in shown
    assert updated == "added 1, dropped 1\n"


def test_25_captions_are_learned_from_published_and_loaded_by_their_tag(executed, tmp_path):
    save_encoder(tmp_path / "encoder")
    words = [*VOCABULARY, *WORDS]
    text = build_text_config(vocab_size=len(words))
    width = LITE["hidden_size"]
    randomize(MMTModel(build_config(text, video_feature_dims=[width]))).save_pretrained(tmp_path / "model")
    MMTProcessor(MMTVideoFeatureExtractor(width, 12), build_tokenizer(words)).save_pretrained(tmp_path / "model")
    places = {"MODEL": str(tmp_path / "model"), "ENCODER": str(tmp_path / "encoder"), "IMAGE_SIZE": "16"}
    _, table, built, _, measured, published, loaded = executed("fine_tune_and_publish.ipynb", **places)
    assert table.startswith("file_name,split,en,vi\n")
    assert "25 clips" in built and "train: 17 rows" in built
    assert "R@1" in measured and "vi" in measured
    assert published.startswith("org/name is at v1.0, commit ")
    assert loaded == "(2, 3) cosines: captions x clips\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_valid_and_committed_with_what_it_printed(name):
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(map(bool, map(outputs_of, cells))) >= 4
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert (NOTEBOOKS / name).stat().st_size < 200_000
    text = (NOTEBOOKS / name).read_text(encoding="utf-8")
    assert os.path.expanduser("~") not in text and "/tmp/" not in text


def test_every_notebook_is_run():
    assert sorted(path.name for path in NOTEBOOKS.glob("*.ipynb")) == sorted(NAMES)
