"""`mmt` called as a shell calls it, and a checkpoint to call it on."""

import json

from conftest import build_config, build_text_config, build_tokenizer, randomize
from tiny_corpus import RECIPE, VOCABULARY

import mmt
from modeling_mmt import MMTModel, MMTProcessor, MMTVideoFeatureExtractor


def build_checkpoint(corpus, folder, **recipe):
    """An untrained model beside a recipe that names the corpus."""
    text = build_text_config(num_hidden_layers=2, vocab_size=len(VOCABULARY))
    model = randomize(MMTModel(build_config(text, video_feature_dims=[6, 6], freeze_text_layers=1)))
    model.save_pretrained(folder)
    MMTProcessor(MMTVideoFeatureExtractor(12, 12), build_tokenizer(VOCABULARY)).save_pretrained(folder)
    data = {"revision": None, "test_split": "test", **RECIPE["data"], "dataset": str(corpus / "corpus")}
    data |= {"features": [str(corpus / name) for name in ("colours", "animals")]}
    (folder / "recipe.json").write_text(json.dumps({"data": data | recipe, "seed": 0}), encoding="utf-8")
    return folder


def call(capsys, *argv):
    """Exit code, standard output, standard error."""
    try:
        code = mmt.main([str(word) for word in argv])
    except SystemExit as stopped:  # argparse
        code = stopped.code
    output = capsys.readouterr()
    return code, output.out, output.err
