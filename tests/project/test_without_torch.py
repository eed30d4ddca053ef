"""The page "Search without torch": its code finds what the package finds, in a process that has no torch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("onnxscript", reason="an optional peer: extra `plugins`")
pytest.importorskip("onnxruntime", reason="an optional peer: extra `plugins`")

from command_line import call  # noqa: E402
from conftest import build_model, build_text_config, build_tokenizer  # noqa: E402
from tiny_corpus import VOCABULARY  # noqa: E402

from modeling_mmt import MMTProcessor, MMTVideoFeatureExtractor  # noqa: E402
from modeling_mmt.evaluation.embedding import embed_texts  # noqa: E402
from modeling_mmt.evaluation.evaluate import EvalSpec, open_corpus  # noqa: E402
from modeling_mmt.plugins.onnx_export import INT8, export  # noqa: E402
from modeling_mmt.search.index import SearchIndex  # noqa: E402

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "without_torch.md").read_text(encoding="utf-8")
(CODE,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
CLASSES = CODE[: CODE.index("\ntower, index")]
QUERIES = ["red  dog", "weißer\tWal", "blue fish " * 30, "rosa"]  # white space, and one that is cut
ASK = """
import sys
folder, index, file, queries = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
tower = TextTower(folder, file)
embeds = [tower(queries).tolist(), [tower([query])[0].tolist() for query in queries]]
print(json.dumps({"embeds": embeds, "hits": Index(index).search(tower(queries), 3)}))
assert not {"torch", "transformers", "modeling_mmt", "datasets"} & {*sys.modules}
"""


@pytest.fixture(scope="module")
def work(corpus, tmp_path_factory):
    """A checkpoint whose captions have a prefix and are cut, exported, and an index of the tiny corpus's clips."""
    folder = tmp_path_factory.mktemp("without_torch")
    model = build_model(build_text_config(vocab_size=len(VOCABULARY)), sharpness=2, video_feature_dims=[6, 6])
    processor = MMTProcessor(
        MMTVideoFeatureExtractor(12, 12), build_tokenizer(VOCABULARY), text_prefix="grey ", max_text_length=9
    )
    model.save_pretrained(folder / "runs" / "mmp_en")
    processor.save_pretrained(folder / "runs" / "mmp_en")
    export(folder / "runs" / "mmp_en", folder / "onnx" / "mmp_en")
    rows = open_corpus(EvalSpec(str(corpus / "corpus_with_features")))
    index = SearchIndex.build(model, processor, rows.rows, rows.clips)
    index.save(folder / "index")
    return folder, model, processor, index


def run(code, *words, cwd=None):
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_process_without_torch_finds_what_the_package_finds(work):
    folder, model, processor, index = work
    told = json.loads(
        run(CLASSES + ASK, folder / "onnx" / "mmp_en", folder / "index", "text_model.onnx", json.dumps(QUERIES))
    )
    wanted = embed_texts(model, processor, QUERIES)
    for embeds in told["embeds"]:
        torch.testing.assert_close(torch.tensor(embeds), wanted, rtol=0, atol=1e-5)
    for mine, theirs in zip(told["hits"], index.search(wanted, 3), strict=True):
        assert [video_id for video_id, _ in mine] == [hit.video_id for hit in theirs]
        assert [score for _, score in mine] == pytest.approx([hit.score for hit in theirs], abs=1e-5)


def test_the_prefix_and_the_length_matter(work):
    """Or the test above would pass without them."""
    _, model, processor, _ = work
    plain = MMTProcessor(processor.feature_extractor, build_tokenizer(VOCABULARY), max_text_length=9)
    longer = MMTProcessor(
        processor.feature_extractor, build_tokenizer(VOCABULARY), text_prefix="grey ", max_text_length=20
    )
    wanted = embed_texts(model, processor, QUERIES)
    assert (embed_texts(model, plain, QUERIES) - wanted).abs().amax(dim=1).min() > 1e-2
    assert (embed_texts(model, longer, QUERIES[2:3]) - wanted[2:3]).abs().max() > 1e-2


def test_the_int8_tower_takes_the_same_inputs(work):
    folder, *_ = work
    told = json.loads(run(CLASSES + ASK, folder / "onnx" / "mmp_en", folder / "index", INT8, json.dumps(QUERIES)))
    batch, alone = told["embeds"]
    assert batch == alone  # whatever stands beside it


def test_the_page_runs_as_it_stands(work):
    folder, *_ = work
    lines = run(CODE, cwd=folder).splitlines()
    assert len(lines) == 12 and lines[0] == "con mèo" and all("clip-" in line for line in lines[1:6])


def test_the_commands_of_the_page_are_the_programs(work, capsys):
    folder, *_ = work
    (commands,) = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for line in commands.splitlines():
        assert call(capsys, *line.split()[1:2], "--help")[0] == 0
        assert all(option in call(capsys, line.split()[1], "--help")[1] for option in re.findall(r"--\w+", line))
