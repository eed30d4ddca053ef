"""`modeling_mmt.search.exact`: the ids are those of a float64 search, whatever the screen."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_mmt.search import exact as exact_search
from modeling_mmt.search.exact import SCREENS, ExactSearch


def unit(*shape, seed=0, decimals=None):
    vectors = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    if decimals is not None:
        vectors = vectors.round(decimals=decimals)
        vectors[:, 0] += (vectors == 0).all(dim=1)
    return torch.nn.functional.normalize(vectors, dim=-1)


def naive(corpus, queries, top, allowed=None):
    """All float64 inner products, sorted by Python."""
    found = []
    for query in queries.double():
        scores = np.einsum("ij,ij->i", corpus.double(), query.expand(corpus.shape)).tolist()
        rows = [row for row in range(len(corpus)) if allowed is None or allowed[row]]
        found.append(sorted(rows, key=lambda row: (-scores[row], row))[:top])  # noqa: B023
    return torch.tensor(found)


@pytest.fixture
def small_blocks(monkeypatch):
    """So that a few hundred rows make several blocks, the last of them short."""
    monkeypatch.setattr(exact_search, "SCORES_AT_ONCE", 1 << 10)


@pytest.mark.parametrize("screen", SCREENS)
@settings(max_examples=15, deadline=None)
@given(
    num_rows=st.integers(1, 300),
    num_queries=st.integers(1, 9),
    width=st.integers(1, 40),
    data=st.data(),
    decimals=st.sampled_from([None, 0]),
)
def test_every_screen_finds_the_rows_of_a_float64_search_ties_included(
    screen, num_rows, num_queries, width, data, decimals
):
    top = data.draw(st.integers(1, num_rows))
    corpus, queries = unit(num_rows, width, decimals=decimals), unit(num_queries, width, seed=1, decimals=decimals)
    scores, rows = ExactSearch(corpus, screen).search(queries, top)
    assert rows.tolist() == naive(corpus, queries, top).tolist()
    torch.testing.assert_close(
        scores, (corpus[rows].double() * queries.double()[:, None]).sum(dim=2), rtol=0, atol=1e-15
    )


@pytest.mark.parametrize("screen", SCREENS)
def test_blocks_and_groups_do_not_change_the_result(screen, small_blocks):
    corpus, queries = unit(5000, 24), unit(3, 24, seed=1)
    search = ExactSearch(corpus, screen)
    for top in (1, 10, 200):
        assert search.search(queries, top)[1].tolist() == naive(corpus, queries, top).tolist()


@pytest.mark.parametrize("screen", SCREENS)
def test_copies_of_a_row_come_in_the_order_of_the_rows(screen, small_blocks):
    corpus = unit(3000, 16)
    corpus[[7, 900, 901, 2999]] = corpus[7].clone()
    assert ExactSearch(corpus, screen).search(corpus[7:8], 4)[1].tolist() == [[7, 900, 901, 2999]]


@pytest.mark.parametrize("screen", SCREENS)
def test_rows_that_differ_by_less_than_the_screen_can_tell_are_still_put_in_order(screen, small_blocks):
    """A corpus in a cone of 1e-3: the screens of few bits see nearly one point."""
    corpus = torch.nn.functional.normalize(unit(1, 64) + 1e-3 * unit(4000, 64, seed=2), dim=1)
    queries = torch.nn.functional.normalize(unit(1, 64) + 1e-3 * unit(2, 64, seed=3), dim=1)
    search = ExactSearch(corpus, screen)
    assert search.search(queries, 10)[1].tolist() == naive(corpus, queries, 10).tolist()


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("width", [3, 64, 512])
def test_no_score_lies_outside_its_bounds(screen, width):
    """The proof's premise, on rows with outliers, for which one scale fits badly."""
    corpus, queries = unit(2000, width), unit(5, width, seed=1)
    corpus[::50] = torch.nn.functional.normalize(corpus[::50] + 20 * torch.eye(width)[0], dim=1)
    queries[0] = torch.eye(width)[0]
    exact = queries.double() @ corpus.double().T
    made = exact_search._make_screen(corpus, screen)
    tightness = []
    for block in exact_search._blocks(queries, made, screen, 1, None):
        scores = block.scores.double() * block.scale.double()[:, :, None]
        wrong = (scores.flatten(1)[:, : block.num_rows] - exact[:, block.start : block.start + block.num_rows]).abs()
        bound = block.error.double().repeat_interleave(block.scores.shape[2], dim=1)[:, : block.num_rows]
        assert (wrong <= bound).all()
        tightness.append((wrong / bound).max())
    assert max(tightness) > 1e-3  # a bound of any size would pass else


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("share", [0.02, 0.5])
def test_only_allowed_rows_are_found(screen, share, small_blocks):
    corpus, queries = unit(1500, 16), unit(2, 16, seed=1)
    allowed = torch.rand(1500, generator=torch.Generator().manual_seed(3)) < share
    rows = ExactSearch(corpus, screen).search(queries, 20, allowed)[1]
    assert rows.tolist() == naive(corpus, queries, 20, allowed.tolist()).tolist()


@pytest.mark.parametrize("num_allowed", [3, 300])
def test_a_filter_that_leaves_less_than_top_gives_what_it_leaves(num_allowed):
    allowed = torch.zeros(1000, dtype=torch.bool)
    allowed[:num_allowed] = True
    scores, rows = ExactSearch(unit(1000, 8)).search(unit(2, 8, seed=1), 400, allowed)
    assert rows.shape == scores.shape == (2, num_allowed)
    assert allowed[rows].all()


def test_a_screen_of_few_bits_settles_few_rows():
    corpus, queries = unit(50_000, 128), unit(4, 128, seed=1)
    for screen, most in {"float32": 20, "float16": 40, "bfloat16": 200, "int8": 1000}.items():
        search = ExactSearch(corpus, screen)
        search.search(queries, 10)
        assert 4 * 10 <= search.last_survivors <= 4 * most, screen


def test_auto_takes_int8_for_few_queries_and_float32_products_for_many():
    small, large = ExactSearch(unit(100, 4)), ExactSearch(unit(exact_search.SMALL_CORPUS, 4))
    assert [small.choose_screen(1), large.choose_screen(1), large.choose_screen(1024)] == [
        "float32",
        "int8",
        "float32",
    ]


# Many queries, by torch's product and top-k


@pytest.fixture(params=["torch", "faiss"])
def many(monkeypatch, request):
    """So that a few queries are many, in slices of 7, and 2,112 rows a block; whether or not FAISS is there."""
    if request.param == "torch":
        monkeypatch.setattr(exact_search, "_faiss", lambda: None)
    else:
        pytest.importorskip("faiss", reason="an optional library: extra `search`")
    monkeypatch.setattr(exact_search, "MANY_QUERIES", 2)
    monkeypatch.setattr(exact_search, "QUERIES_AT_ONCE", 7)
    monkeypatch.setattr(exact_search, "PRODUCTS_AT_ONCE", 7 * 2112)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    num_rows=st.integers(1, 300),
    num_queries=st.integers(2, 9),
    width=st.integers(1, 40),
    share=st.sampled_from([None, 0.5]),
    data=st.data(),
    decimals=st.sampled_from([None, 0]),  # 0: many ties, more than a list holds
)
def test_many_queries_find_the_rows_of_a_float64_search(many, num_rows, num_queries, width, share, data, decimals):
    corpus, queries = unit(num_rows, width, decimals=decimals), unit(num_queries, width, seed=1, decimals=decimals)
    allowed = None if share is None else torch.rand(num_rows, generator=torch.Generator().manual_seed(3)) < share
    if allowed is not None:
        allowed[0] = True
    top = data.draw(st.integers(1, num_rows))
    rows = ExactSearch(corpus).search(queries, top, allowed)[1]
    assert rows.tolist() == naive(corpus, queries, top, None if allowed is None else allowed.tolist()).tolist()


@pytest.mark.parametrize("share", [None, 0.5])
@pytest.mark.parametrize("num_rows", [2112, 5000])
def test_blocks_groups_and_slices_do_not_change_what_many_queries_find(many, num_rows, share):
    corpus, queries = unit(num_rows, 24), unit(9, 24, seed=1)
    allowed = None if share is None else torch.rand(num_rows, generator=torch.Generator().manual_seed(3)) < share
    search = ExactSearch(corpus)
    scores, rows = search.search(queries, 10, allowed)
    assert rows.tolist() == naive(corpus, queries, 10, None if allowed is None else allowed.tolist()).tolist()
    assert search.last_survivors < 9 * 12 and not search._screens  # settled from the lists alone


def test_more_ties_than_a_list_holds_are_screened(many):
    corpus = unit(400, 8)
    corpus[100:200] = corpus[100]
    queries = torch.cat([corpus[100:101], unit(3, 8, seed=1)])
    search = ExactSearch(corpus, "float32")
    assert search.search(queries, 5)[1].tolist() == naive(corpus, queries, 5).tolist()
    assert search._screens


@pytest.mark.parametrize("width", [3, 64, 512])
def test_no_product_lies_outside_its_bound(width):
    corpus, queries = unit(2000, width) * 1.0009, unit(20, width, seed=1)
    corpus[0] = queries[0]  # sums of equal signs lose the most
    true = queries.double() @ corpus.double().T
    found, rows = exact_search._largest_products(queries, corpus, 50, None)  # FAISS's, where it is installed
    for wrong in (true - queries @ corpus.T, true.gather(1, rows) - found):
        assert 1e-3 < wrong.abs().max() / exact_search._product_error(width) <= 1


def test_many_queries_hold_a_bounded_block_of_products(monkeypatch):
    monkeypatch.setattr(exact_search, "_faiss", lambda: None)
    monkeypatch.setattr(exact_search, "PRODUCTS_AT_ONCE", 1 << 16)
    sizes = []
    product = torch.mm

    def measured(*args, out):
        sizes.append(out.numel())
        return product(*args, out=out)

    monkeypatch.setattr(torch, "mm", measured)
    ExactSearch(unit(20_000, 4)).search(unit(3000, 4, seed=1), 5)
    assert len(sizes) > 3 * 300 and max(sizes) <= 1 << 16


def test_a_corpus_of_one_is_found():
    corpus = unit(1, 5)
    scores, rows = ExactSearch(corpus).search(-corpus, 1)
    assert rows.tolist() == [[0]]
    assert scores.item() == pytest.approx(-1, abs=1e-6)


NAN = torch.tensor([[1.0, 0.0], [float("nan"), 0.0]])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ExactSearch(NAN), "embeddings row 1 holds a NaN"),
        (lambda: ExactSearch(torch.tensor([[1.0, 0.0], [3.0, 4.0]])), "embeddings row 1 has norm 5; divide by it"),
        (lambda: ExactSearch(torch.zeros(0, 2)), "give a float32 matrix"),
        (lambda: ExactSearch(unit(3, 2).double()), "give a float32 matrix"),
        (lambda: ExactSearch(unit(3, 2), "int4"), "screen is 'int4'; choose auto"),
        (lambda: ExactSearch(unit(3, 2)).search(unit(1, 2), 4), "top is 4; there are 3 clips"),
        (lambda: ExactSearch(unit(3, 2)).search(unit(1, 2), 0), "top is 0; there are 3 clips"),
        (lambda: ExactSearch(unit(3, 2)).search(unit(1, 3), 1), r"expected \(at least one, 2\)"),
        (lambda: ExactSearch(unit(3, 2)).search(NAN, 1), "queries row 1 holds a NaN"),
        (lambda: ExactSearch(unit(3, 2)).search(unit(1, 2), 1, torch.zeros(3, dtype=torch.bool)), "leaves no clip"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("num_queries", [1, 2, exact_search.MANY_QUERIES])
def test_a_program_that_allows_coarser_products_has_exact_search_still_and_keeps_its_choice(monkeypatch, num_queries):
    """On a processor with bfloat16 products the bounds would not hold; other threads may rely on what they allowed."""
    monkeypatch.setattr(exact_search, "_faiss", lambda: None)
    rows, queries = unit(300, 8), unit(num_queries, 8, seed=1)
    wanted = ExactSearch(rows, "float32").search(queries, 3)
    allowed = []

    def multiply(*operands, out=None):
        allowed.append(torch.get_float32_matmul_precision())
        return np_matmul(*operands, out=out)

    np_matmul = np.matmul
    monkeypatch.setattr(np, "matmul", multiply)
    monkeypatch.setattr(torch, "mm", lambda *_, **__: pytest.fail("multiplied as the program allows"))
    torch.set_float32_matmul_precision("medium")
    try:
        scores, found = ExactSearch(rows, "float32").search(queries, 3)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(allowed) == {"medium"}
    assert torch.equal(scores, wanted[0]) and torch.equal(found, wanted[1])


LARGEST_PRODUCTS = """
import torch
from modeling_mmt.search.exact import LARGEST, _product

for width in (2, 64, 257):
    for count in (1, 2, 40):
        for sign in (-1, 1):
            rows = torch.full((200, width), LARGEST, dtype=torch.int8)
            rows[::2] = -LARGEST
            queries = torch.full((count, width), sign * LARGEST, dtype=torch.int8)
            found, exact = _product(queries, rows, "int8"), queries.double() @ rows.double().T
            assert (found == exact).all(), (width, count, sign, found[0, :2], exact[0, :2])
"""


@pytest.mark.parametrize("processor", ["SSE41", "AVX2", "AVX512_CORE", "ALL"])
def test_int8_products_are_exact_on_processors_that_add_them_up_in_16_bits(processor):
    """oneDNN chooses its kernels when torch is imported, for the processor or what it is told of one."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": processor, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", LARGEST_PRODUCTS], env=environment, check=True)
