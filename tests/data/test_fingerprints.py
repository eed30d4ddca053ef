"""Hashes by content: the same values give the same one wherever they lie, any other value another one."""

import pytest
from datasets import Dataset, concatenate_datasets
from tiny_corpus import write_split

from modeling_mmt.data.fingerprints import encoder_fingerprint, rows_fingerprint
from modeling_mmt.data.reading import load_split

ROWS = [
    {
        "video_id": f"clip {n}",
        "caption_en": None if n % 7 == 0 else f"a caption {n}",
        "keywords_en": [f"word {n}"] * (n % 3),
        "video_features": [[0.5 * n, 1.5]] * (1 + n % 2),
    }
    for n in range(600)
]
COLUMNS = list(ROWS[0])


def changed(row, **values):
    return [*ROWS[:row], ROWS[row] | values, *ROWS[row + 1 :]]


def test_the_same_rows_have_one_fingerprint_however_they_are_stored(tmp_path):
    whole = Dataset.from_list(ROWS)
    wanted = rows_fingerprint(whole, COLUMNS)
    pieces = concatenate_datasets([whole.select(range(101)), whole.select(range(101, 600))])
    write_split(tmp_path / "there", "train", ROWS)
    read = load_split(str(tmp_path / "there"), None, "train", [])
    for same in (pieces, read, whole.add_column("other", [1] * 600), whole.select(list(range(600)))):
        assert rows_fingerprint(same, COLUMNS[::-1]) == wanted


@pytest.mark.parametrize(
    "other",
    [
        changed(300, caption_en="a caption 301"),
        changed(300, caption_en=None),
        changed(7, caption_en=""),
        changed(0, keywords_en=["word 0"]),
        changed(4, keywords_en=["wor", "d 4"]),
        changed(599, video_features=[[0.0, 1.5]]),
        ROWS[:-1],
        [ROWS[1], ROWS[0], *ROWS[2:]],
        [{("name_en" if key == "caption_en" else key): value for key, value in row.items()} for row in ROWS],
    ],
    ids="text null empty longer split feature fewer order column".split(),
)
def test_any_other_rows_have_another_fingerprint(other):
    assert rows_fingerprint(Dataset.from_list(other), list(other[0])) != rows_fingerprint(
        Dataset.from_list(ROWS), COLUMNS
    )


def test_an_encoder_is_known_by_its_configuration_weights_and_tokenizer(make_model, make_text_config, make_tokenizer):
    def fingerprint(tokenizer=None, **text):
        model = make_model(make_text_config(**text))
        return encoder_fingerprint(model.text_model.encoder, tokenizer or make_tokenizer())

    assert fingerprint() == fingerprint()
    model = make_model()
    before = encoder_fingerprint(model.text_model.encoder, make_tokenizer())
    model.video_projection.output.weight.data += 1  # not the encoder's
    assert encoder_fingerprint(model.text_model.encoder, make_tokenizer()) == before
    next(model.text_model.encoder.parameters()).data[0, 0] += 1
    other_mask = make_tokenizer()
    other_mask.mask_token = "<unk>"
    others = {
        encoder_fingerprint(model.text_model.encoder, make_tokenizer()),
        fingerprint(layer_norm_eps=1e-3),
        fingerprint(make_tokenizer([*make_tokenizer().get_vocab(), "another"])),
        fingerprint(other_mask),
    }
    assert len(others | {before}) == 5
