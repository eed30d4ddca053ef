"""Sampling: the same draws for any number of processes and after any interruption, balanced, bounded, honest ids."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset

from modeling_mmt.data.collator import (
    TEXT_VIEWS,
    ClipDataset,
    EpochBatchSampler,
    MMTDataCollator,
    caption_keys,
    stable_id,
)

LANGUAGES = ("en", "de")


@pytest.fixture
def make_collator(make_processor):
    def make(**fields):
        return MMTDataCollator(make_processor(), **({"languages": LANGUAGES} | fields))

    return make


def draws(rows, epochs=1, seed=0):
    clips = ClipDataset(rows)
    return [clips[(seed, epoch, row)] for epoch in range(epochs) for row in range(len(rows))]


def captions(collator, batch, prefix=""):
    tokenizer = collator.processor.tokenizer
    return [tokenizer.decode(row, skip_special_tokens=True) for row in batch[f"{prefix}input_ids"]]


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value) if torch.is_tensor(value) else found[name] == value, name


# ---- order


def test_an_epoch_is_a_permutation_of_all_rows_and_the_next_is_another():
    sampler = EpochBatchSampler(12, 4, seed=3)
    epochs = [[row for step in range(3) for _, _, row in sampler.batch(3 * epoch + step)] for epoch in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2
    assert epochs[0] != epochs[1]
    assert [epoch for step in range(6) for _, epoch, _ in sampler.batch(step)] == [0] * 12 + [1] * 12


def test_the_short_last_batch_is_dropped():
    sampler = EpochBatchSampler(11, 4, seed=0)
    assert sampler.batches_per_epoch == 2
    rows = [row for step in range(2) for _, _, row in sampler.batch(step)]
    assert len(set(rows)) == 8
    assert {epoch for _, epoch, _ in sampler.batch(2)} == {1}


def test_another_seed_gives_another_order_and_other_draws():
    one, other = EpochBatchSampler(50, 50, seed=0).batch(0), EpochBatchSampler(50, 50, seed=1).batch(0)
    assert [row for *_, row in one] != [row for *_, row in other]
    assert {seed for seed, *_ in other} == {1}


@pytest.mark.parametrize("start", [0, 1, 5, 6, 13])
def test_a_resumed_run_gets_the_batches_that_the_whole_run_would(start):
    whole = list(itertools.islice(EpochBatchSampler(20, 3, seed=7), 20))
    assert list(itertools.islice(EpochBatchSampler(20, 3, seed=7, start=start), 20 - start)) == whole[start:]


def test_a_step_asked_for_out_of_order_has_the_same_batch(monkeypatch):
    sampler = EpochBatchSampler(20, 3, seed=7)
    whole = list(itertools.islice(sampler, 20))
    for step in (13, 2, 19, 0, 5, 6, 7):
        assert sampler.batch(step) == whole[step]
    generators = []
    make = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: generators.append(seed) or make(seed))
    list(itertools.islice(EpochBatchSampler(20, 3, seed=7), 18))
    assert len(generators) == 3, "rows are put in order once an epoch: of millions it takes a while"


@pytest.mark.parametrize(("rows", "batch", "world"), [(4, 5, 1), (4, 0, 1), (9, 2, 3)])
def test_a_batch_that_cannot_be_made_is_refused(rows, batch, world):
    with pytest.raises(ValueError, match=f"batch_size is {batch}"):
        EpochBatchSampler(rows, batch, seed=0, world_size=world)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_shares_of_all_processes_are_the_whole_batch(make_collator, make_rows, world_size):
    """Order, languages, captions and noise: what a process draws for a row does not depend on how many there are."""
    clips, collator = ClipDataset(make_rows(12)), make_collator(languages_per_clip=2, noise_probability=0.4)
    shares = [
        list(itertools.islice(EpochBatchSampler(12, 7, 5, start=1, rank=rank, world_size=world_size), 3))
        for rank in range(world_size)
    ]
    for step in range(3):
        whole = EpochBatchSampler(12, 7, seed=5).batch(step + 1)
        parts = [share[step] for share in shares]
        assert sum(parts, []) == whole
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        wanted = collator([clips[draw] for draw in whole])
        first = 0
        for part in parts:
            found = collator([clips[draw] for draw in part])
            rows = slice(first, first + len(part))
            for name, value in found.items():
                if torch.is_tensor(value):  # a share may be padded less
                    full = wanted[name][rows]
                    inside = tuple(slice(size) for size in value.shape)
                    assert torch.equal(full[inside], value), name
            first += len(part)


def test_workers_give_what_the_main_process_gives(make_collator, make_rows):
    clips, collator = ClipDataset(make_rows(6)), make_collator()
    batches = [
        list(
            itertools.islice(
                torch.utils.data.DataLoader(
                    clips, batch_sampler=EpochBatchSampler(6, 3, seed=2), collate_fn=collator, num_workers=workers
                ),
                3,
            )
        )
        for workers in (0, 1)
    ]
    for found, wanted in zip(*batches, strict=True):
        assert_equal(found, wanted)


def test_draws_are_a_function_of_seed_epoch_and_row_alone(make_collator, make_rows):
    rows, collator = make_rows(), make_collator(noise_probability=0.4)
    np.random.seed(1)
    torch.manual_seed(1)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    wanted = collator(draws(rows))
    assert_equal(collator(draws(rows)), wanted)
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])
    assert captions(collator, collator(draws(rows, seed=1))) != captions(collator, wanted)
    epochs = collator(draws(rows, epochs=2))
    assert captions(collator, epochs)[:6] == captions(collator, wanted) != captions(collator, epochs)[6:]


def test_ids_do_not_depend_on_the_process():
    """Python's own `hash` of a string differs from run to run."""
    assert stable_id("con chó") == 7232831316669487883
    assert all(0 <= stable_id(str(number)) < 2**63 for number in range(100))  # fits int64


# ---- captions


def test_languages_are_drawn_evenly(make_collator, make_rows):
    collator, rows = make_collator(noise_probability=0), make_rows(10)
    epochs = 100
    german = 0
    for epoch in range(epochs):
        for text in captions(collator, collator(draws(rows, seed=0, epochs=epoch + 1)[-10:])):
            german += text.split()[0] in {"roter", "Hund", "rennt", "schnell", "heim"}
    n = 10 * epochs
    assert abs(german - n / 2) < 4 * (n / 4) ** 0.5  # four standard deviations; the seed is fixed


def test_a_language_that_a_clip_lacks_is_never_drawn(make_collator, make_rows):
    rows = make_rows(3)
    for row in rows:
        row["caption_de"] = None
    rows[1]["caption_de"], rows[2]["caption_de"] = [], ""
    collator = make_collator(noise_probability=0)
    english = {caption for row in rows for caption in row["caption_en"]}
    assert set(captions(collator, collator(draws(rows, epochs=20)))) <= english


def test_pairs_are_two_languages_of_the_same_clip(make_collator, make_rows):
    rows, collator = make_rows(), make_collator(languages_per_clip=2)
    batch = collator(draws(rows, epochs=20))
    first = Counter()
    for draw, x, y in zip(
        draws(rows, epochs=20), captions(collator, batch), captions(collator, batch, "paired_"), strict=True
    ):
        languages = [next(code for code in LANGUAGES if text in draw[f"caption_{code}"]) for text in (x, y)]
        assert sorted(languages) == sorted(LANGUAGES)
        first[languages[0]] += 1
    assert min(first.values()) > 40  # of 120: either may come first
    assert {"noised_paired_input_ids", "paired_attention_mask"} <= batch.keys()


@pytest.mark.parametrize("k", [1, 3, 5, 9])
def test_k_captions_of_a_clip_are_of_k_languages_drawn_evenly(make_collator, make_rows, k):
    codes = list("abcdefghi")
    rows = [row | {f"name_{code}": f"red {code}" for code in codes} for row in make_rows(2)]
    collator = make_collator(text_column="name", languages=codes, languages_per_clip=k, noise_probability=0.2)
    drawn = []
    collator.processor.tokenize = lambda texts, of=collator.processor.tokenize: drawn.append(texts) or of(texts)
    batch = collator(draws(rows, epochs=90))
    languages = [[text[-1] for text in of_row] for of_row in zip(*drawn, strict=True)]
    assert all(len(set(of_row)) == k for of_row in languages)
    counts = Counter(code for of_row in languages for code in of_row)
    assert all(abs(counts[code] - 180 * k / 9) < 30 for code in codes)
    assert batch["positive_ids"].shape == (180, 1 + k)
    views = {name.removesuffix("input_ids") for name in batch if name.endswith("input_ids")}
    assert views == set(TEXT_VIEWS[: 2 * k])
    assert len(batch["video_features"]) == 180  # one embedding a clip, however many captions


def test_more_captions_than_have_names_are_refused(make_collator):
    with pytest.raises(ValueError, match="languages_per_clip is 10; choose 1 to 9"):
        make_collator(languages_per_clip=10)


def test_each_caption_is_of_a_kind_that_the_clip_has_in_its_language(make_collator, make_rows):
    rows = [row | {"name_en": "red dog", "name_de": "roter Hund"} for row in make_rows(3)]
    rows[1]["name_en"], rows[2]["keywords_de"] = None, []
    collator = make_collator(
        text_column="name", other_text_columns=["keywords"], languages_per_clip=2, max_keywords=1, noise_probability=0
    )
    batch, found = collator(draws(rows, epochs=60)), {(0, 1): Counter(), (1, 1): Counter(), (2, 1): Counter()}
    for number, texts in enumerate(zip(captions(collator, batch), captions(collator, batch, "paired_"), strict=True)):
        for text in texts:
            found[number % 3, 1][{"red dog": "name_en", "roter Hund": "name_de"}.get(text, "keywords")] += 1
    assert min(found[0, 1]["name_en"], found[0, 1]["name_de"]) > 15  # 30 expected
    assert found[0, 1]["keywords"] > 30  # 60 expected
    assert found[1, 1]["name_en"] == 0 and found[1, 1]["keywords"] > 60
    assert found[2, 1]["name_de"] == 60


def test_a_plain_string_is_the_caption(make_collator, make_rows):
    rows = make_rows(2)
    for row in rows:
        row["name_en"] = f"red {row['video_id'][-1]} dog"
    collator = make_collator(text_column="name", languages=["en"])
    assert captions(collator, collator(draws(rows))) == [
        "red dog",
        "red dog",
    ]  # the digit is an unknown, special token


def test_every_caption_of_a_list_is_drawn(make_collator, make_rows):
    rows, collator = make_rows(2), make_collator(languages=["en"], noise_probability=0)
    seen = Counter(captions(collator, collator(draws(rows, epochs=40))))
    assert set(seen) == {caption for row in rows for caption in row["caption_en"]}
    assert min(seen.values()) > 8  # 20 expected


def keyword_captions(make_collator, make_rows, epochs=80, **fields):
    collator = make_collator(text_column="keywords", noise_probability=0, **fields)
    rows = make_rows(3)
    found = {row["video_id"]: [] for row in rows}
    batch = collator(draws(rows, epochs=epochs))
    for row, text in zip(draws(rows, epochs=epochs), captions(collator, batch), strict=True):
        found[row["video_id"]].append(text)
    return found


def test_keywords_are_joined_by_commas_up_to_the_bound_and_without_repeats(make_collator, make_rows):
    found = keyword_captions(make_collator, make_rows, max_keywords=3, keyword_pool_size=0)
    lists = [text.replace(" ,", ",").split(", ") for texts in found.values() for text in texts]
    assert {len(keywords) for keywords in lists} == {1, 2, 3}
    assert all(len(set(keywords)) == len(keywords) for keywords in lists)
    german = {"roter", "Hund", "rennt", "schnell", "heim"}
    assert all(set(keywords) <= german or not set(keywords) & german for keywords in lists)  # one language a caption
    assert len({tuple(keywords) for keywords in lists}) > 60  # drawn afresh


def test_a_keyword_that_is_the_name_is_never_drawn_where_names_are_excluded(make_collator, make_rows):
    rows = [row | {"name_en": "Red", "name_de": "Hund"} for row in make_rows(2)]
    for row in rows:
        row["keywords_en"] = ["red", "dog"]
    fields = {"text_column": "keywords", "max_keywords": 2, "noise_probability": 0, "languages": ["en"]}
    seen = {
        excluded: set(captions(collator, collator(draws(rows, epochs=40))))
        for excluded in (None, "name")
        for collator in [make_collator(**fields, exclude_text_column=excluded)]
    }
    assert any("red" in text for text in seen[None])
    assert seen["name"] == {"dog"}
    rows[1]["keywords_en"] = ["RED"]  # nothing is left: as if the clip had no keywords
    with pytest.raises(ValueError, match=f"clip '{rows[1]['video_id']}' has keywords in no language"):
        make_collator(**fields, exclude_text_column="name")(draws(rows))


@pytest.mark.parametrize(
    ("names", "left"), [(None, ["dog", "red"]), ([], ["dog", "red"]), (["Red", "hound"], ["dog"])], ids=str
)
def test_a_clip_may_have_no_name_or_several_where_names_are_excluded(make_collator, make_rows, names, left):
    rows = [row | {"keywords_en": ["red", "dog"], "name_en": names} for row in make_rows(2)]
    fields = {"text_column": "keywords", "max_keywords": 1, "noise_probability": 0, "languages": ["en"]}
    collator = make_collator(**fields, exclude_text_column="name")
    assert set(captions(collator, collator(draws(rows, epochs=40)))) == set(left)


def test_no_more_keywords_are_joined_than_there_are(make_collator, make_rows):
    found = keyword_captions(make_collator, make_rows, max_keywords=50, keyword_pool_size=0)
    assert max(len(text.split(",")) for texts in found.values() for text in texts) == 5


@pytest.mark.parametrize("size", [1, 4])
def test_a_keyword_pool_bounds_a_clips_captions_in_each_language(make_collator, make_rows, size):
    found = keyword_captions(make_collator, make_rows, max_keywords=3, keyword_pool_size=size)
    german = {"roter", "Hund", "rennt", "schnell", "heim"}
    pools = []
    for texts in found.values():
        for is_german in (False, True):
            pool = {text for text in texts if (text.split()[0].strip(",") in german) == is_german}
            assert 1 <= len(pool) <= size
            assert size == 1 or len(pool) > 1
            pools.append(frozenset(pool))
    assert len(set(pools)) > len(pools) / 2  # clips do not share one pool


# ---- rows of a dataset


@pytest.mark.parametrize("fields", [{}, {"text_column": "keywords", "max_keywords": 2}, {"text_column": "name"}])
def test_a_datasets_rows_give_the_batch_that_a_lists_rows_give(make_collator, make_rows, fields):
    """Nulls, empty lists, empty texts and a column of nulls alone count as no text, Arrow or not."""
    rows = [row | {"name_en": "red dog", "name_de": "Hund"} for row in make_rows(6)]
    rows[0] |= {"caption_de": None, "keywords_de": [], "name_de": ""}
    rows[1] |= {"caption_en": [], "keywords_en": None, "name_en": None}
    collator = make_collator(languages=("en", "de", "sw"), **fields)
    as_lists = [row | {"video_features": row["video_features"].tolist(), "caption_sw": None} for row in rows]
    shuffled = Dataset.from_list(as_lists[::-1]).select(range(5, -1, -1))
    assert_equal(collator(draws(shuffled, epochs=3)), collator(draws(as_lists, epochs=3)))
    assert dict(ClipDataset(shuffled)[2]) == as_lists[2]


def test_a_language_that_is_not_drawn_is_not_decoded(make_collator, make_rows):
    rows = make_rows(6)
    for row in rows:
        del row["video_features"]
    (row,) = ClipDataset(
        Dataset.from_list(rows), {f"clip-{number}": np.zeros((1, 8)) for number in range(6)}
    ).__getitems__([0])
    asked = []

    class Watched(type(row)):
        def __getitem__(self, name):
            asked.append(name)
            return super().__getitem__(name)

    make_collator(noise_probability=0)([Watched(row.columns, row.position, row.more)])
    assert len([name for name in asked if name.startswith("caption")]) == 1


def test_a_dataset_with_a_format_of_its_own_keeps_it(make_rows):
    rows = Dataset.from_list(
        [{"video_id": row["video_id"], "video_features": row["video_features"].tolist()} for row in make_rows(2)]
    )
    assert torch.is_tensor(ClipDataset(rows.with_format("torch"))[1]["video_features"])
    assert isinstance(ClipDataset(rows)[1]["video_features"], list)


# ---- noise


def noised_share(collator, batch):
    special = torch.tensor(sorted(collator.processor.tokenizer.all_special_ids))
    ids, noised = batch["input_ids"], batch["noised_input_ids"]
    changed = ids != noised
    assert not changed[torch.isin(ids, special)].any()
    assert not changed[batch["attention_mask"] == 0].any()
    assert (noised[changed] == collator.processor.tokenizer.mask_token_id).all()
    return changed.sum().item(), (~torch.isin(ids, special)).sum().item()


@pytest.mark.parametrize("pool", [0, 64])
def test_one_word_in_twenty_is_masked_and_never_a_special_token(make_collator, make_rows, pool):
    collator = make_collator(noise_pool_size=pool)
    changed, words = noised_share(collator, collator(draws(make_rows(20), epochs=60)))
    assert words > 3000
    assert abs(changed / words - 0.05) < 0.02


def test_a_noise_pool_bounds_the_copies_of_a_caption(make_collator, make_rows):
    rows = make_rows(2)
    for size in (1, 3, 0):
        collator = make_collator(languages=["en"], noise_probability=0.5, noise_pool_size=size)
        batch = collator(draws(rows, epochs=80))
        copies = {}
        for ids, noised in zip(batch["input_ids"].tolist(), batch["noised_input_ids"].tolist(), strict=True):
            copies.setdefault(tuple(ids), set()).add(tuple(noised))
        sizes = [len(found) for found in copies.values()]
        assert max(sizes) == size if size else min(sizes) > 3


def test_a_captions_noise_does_not_depend_on_its_padding(make_collator, make_rows):
    """A pool is per caption: the same caption beside a longer one must have the same copies."""
    rows = make_rows(2)
    rows[0]["name_en"] = "red dog"
    collator = make_collator(text_column="name", languages=["en"], noise_probability=0.5, noise_pool_size=1)
    short = collator(draws(rows[:1]))["noised_input_ids"]
    rows[1]["name_en"] = "red dog runs fast home red dog"
    long = collator(draws(rows))["noised_input_ids"]
    assert long.shape[1] > short.shape[1]
    assert torch.equal(long[0, : short.shape[1]], short[0])


def test_time_steps_are_zeroed_at_the_rate_and_never_all_of_a_clip(make_collator, make_rows):
    collator = make_collator(noise_probability=0.25)
    batch = collator(draws(make_rows(8), epochs=60))
    real, noised = batch["video_mask"].bool(), batch["noised_video_features"]
    zeroed = (noised == 0).all(dim=-1) & real
    kept = real & ~zeroed
    assert torch.equal(noised[kept], batch["video_features"][kept])
    assert (kept.sum(dim=1) > 0).all()
    assert abs(zeroed.sum() / real.sum() - 0.25) < 0.04


def test_without_a_mask_token_noise_is_refused_and_no_noise_is_not(make_processor, make_tokenizer, make_rows):
    processor = make_processor(make_tokenizer())
    processor.tokenizer.mask_token = None
    with pytest.raises(ValueError, match=r"noise_probability is 0.05, and the tokenizer has no mask token.*set it to"):
        MMTDataCollator(processor)
    assert "input_ids" in MMTDataCollator(processor, noise_probability=0)(draws(make_rows()))


def test_without_noise_there_are_no_noised_copies(make_collator, make_rows):
    assert not any("noised" in name for name in make_collator(noise_probability=0)(draws(make_rows())))


# ---- ids and modalities


def test_positive_ids_are_equal_for_the_same_clip_and_for_an_equal_caption(make_collator, make_rows):
    rows = make_rows(4)
    for row, name in zip(rows, ["red dog", "home", "red dog", "runs"], strict=True):
        row["name_en"], row["name_de"] = name, "heim"
    clips = ClipDataset(rows)
    collator = make_collator(text_column="name", languages=["en"])
    ids = collator([clips[(0, epoch, row)] for epoch, row in [(0, 0), (0, 1), (0, 2), (1, 1)]])["positive_ids"]
    equal = ids[:, None] == ids[None]
    assert (ids.dtype, ids.shape) == (torch.long, (4, 2))
    assert equal[..., 0].nonzero().tolist() == [[0, 0], [1, 1], [1, 3], [2, 2], [3, 1], [3, 3]]
    assert equal[..., 1].nonzero().tolist() == [[0, 0], [0, 2], [1, 1], [1, 3], [2, 0], [2, 2], [3, 1], [3, 3]]
    paired = make_collator(text_column="name", languages_per_clip=2)(draws(rows))
    assert paired["positive_ids"].shape == (4, 3)


def test_padding_on_the_left_changes_neither_keys_nor_noise(make_processor, make_tokenizer, make_rows):
    """As some dual encoders' tokenizers pad."""
    found = {}
    for side in ("right", "left"):
        processor = make_processor(make_tokenizer(padding_side=side), clean_text=False)
        fields = {"languages": LANGUAGES, "languages_per_clip": 2, "text_column": "keywords", "max_keywords": 3}
        collate = MMTDataCollator(processor, **fields, noise_probability=0.4, with_caption_keys=True)
        batch = collate(draws(make_rows(), epochs=3))
        texts = {name: batch[name] for name in batch if name.endswith("input_ids")}
        masks = {
            name: batch[f"{name.removeprefix('noised_').removesuffix('input_ids')}attention_mask"] for name in texts
        }
        found[side] = {
            name: [ids[mask.bool()].tolist() for ids, mask in zip(texts[name], masks[name], strict=True)]
            for name in texts
        }
        found[side] |= {name: batch[name].tolist() for name in batch if name.endswith("caption_keys")}
        assert (min(mask[:, 0].min() for mask in masks.values()) == 0) == (side == "left")
    assert found["left"] == found["right"]
    assert found["left"]["input_ids"] != found["left"]["noised_input_ids"]


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_captions_have_one_key_each_that_positives_and_equal_tokens_share(make_collator, make_rows, noise):
    fields = {"languages_per_clip": 2, "noise_probability": noise}
    batch = make_collator(**fields, with_caption_keys=True)(draws(make_rows(), epochs=3))
    plain = make_collator(**fields)(draws(make_rows(), epochs=3))
    assert_equal({name: value for name, value in batch.items() if not name.endswith("caption_keys")}, plain)
    assert torch.equal(batch["caption_keys"], batch["positive_ids"][:, 1])
    assert torch.equal(batch["paired_caption_keys"], batch["positive_ids"][:, 2])
    for view in TEXT_VIEWS[:4] if noise else ("", "paired_"):
        assert torch.equal(batch[f"{view}caption_keys"], caption_keys(plain, view))
    if noise:
        same = (batch["input_ids"] == batch["noised_input_ids"]).all(dim=1)
        assert torch.equal(batch["caption_keys"] == batch["noised_caption_keys"], same) and 0 < same.sum() < len(same)


def test_captions_that_the_encoder_reads_alike_are_equal(make_collator, make_rows):
    rows = make_rows(4)
    for row, name in zip(rows, ["red dog", " red  dog ", "red\ndog", "dog red"], strict=True):
        row["name_en"] = name
    clips = ClipDataset(rows)
    batch = make_collator(text_column="name", languages=["en"])([clips[(0, 0, row)] for row in range(4)])
    assert len(batch["positive_ids"][:3, 1].unique()) == 1
    assert len(batch["positive_ids"][:, 1].unique()) == 2


def test_a_clip_with_too_few_languages_is_refused_by_name(make_collator, make_rows):
    rows = make_rows(3)
    rows[1]["caption_de"] = None
    with pytest.raises(ValueError, match=r"clip 'clip-1' has caption in \['en'\] of \['en', 'de'\]; 2 needed"):
        make_collator(languages_per_clip=2)(draws(rows))
    with pytest.raises(ValueError, match="clip 'clip-0' has title in no language"):
        make_collator(text_column="title")(draws(rows))


def test_a_clip_without_features_is_refused_by_name(make_collator, make_rows):
    rows = make_rows(3)
    rows[2]["video_features"] = None
    with pytest.raises(ValueError, match="clip 'clip-2' has no video_features"):
        make_collator()(draws(rows))
    del rows[2]["video_features"]
    with pytest.raises(ValueError, match="clip 'clip-2' has no video_features"):
        make_collator()(draws(rows))


def test_without_video_no_features_are_asked_for(make_collator, make_rows):
    rows = make_rows(3)
    for row in rows:
        del row["video_features"]
    batch = make_collator(with_video=False, languages_per_clip=2)(draws(rows))
    assert not any("video" in name for name in batch)
    assert {"input_ids", "paired_input_ids", "positive_ids"} <= batch.keys()


def test_features_are_joined_by_clip(make_rows):
    rows = make_rows(3)
    store = {row["video_id"]: row.pop("video_features") for row in rows}
    clips = ClipDataset(rows, store)
    assert len(clips) == 3
    assert clips[(0, 0, 2)]["video_features"] is store["clip-2"]
    assert clips[(4, 5, 2)]["draw"] == (4, 5, 2)
    assert "video_features" not in rows[2]


@pytest.mark.parametrize("fields", [{}, {"languages_per_clip": 2}, {"languages_per_clip": 2, "with_video": False}])
def test_the_model_takes_what_the_collator_makes(make_model, make_collator, make_rows, fields):
    output = make_model()(**make_collator(noise_probability=0.3, **fields)(draws(make_rows(4))))
    assert output.loss > 0
