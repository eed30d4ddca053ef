"""The report's sections: words, tables and figures for the numbers of `report_measures.measure`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from modeling_mmt.data.languages import LANGUAGES
from modeling_mmt.evaluation.evaluate import Corpus, Evaluation
from modeling_mmt.evaluation.metrics import AVERAGES, DIRECTIONS
from modeling_mmt.report.figures import (
    gap_bars,
    heat_map,
    occurrence_histogram,
    r1_by_language,
    recall_curves,
    token_ranges,
)
from modeling_mmt.report.moment_section import moment_blocks
from modeling_mmt.report.page import Block, Card, Clip, Figure, Gallery, Heading, Page, Table, Text, Words
from modeling_mmt.report.published_results import MULTI_MSRVTT

Measures = Mapping[str, Any]


class Reporter:
    """Writes the sections about the first checkpoint, beside the others.

    Args:
        measures: of `report_measures.measure`.
        evaluations: what they were measured from, in the same order.
        corpus: what was searched.
        picture: a clip's row to its picture, or None.
        commands: how each checkpoint and this report were made: what, command.
    """

    def __init__(
        self,
        measures: Measures,
        evaluations: Sequence[Evaluation],
        corpus: Corpus,
        picture: Callable[[int], Image.Image | None],
        commands: Mapping[str, str],
    ):
        self.measures, self.corpus, self.picture, self.commands = measures, corpus, picture, commands
        self.evaluations, self.first = evaluations, evaluations[0]
        self.mine: Measures = measures["checkpoints"][self.first.name]
        self.languages: list[str] = measures["languages"]

    def page(self) -> Page:
        """The whole report."""
        dataset = self.corpus.spec.dataset.rstrip("/").rpartition("/")[2]
        page = Page(f"{self.first.name} on {dataset}: search in {len(self.languages)} languages", self.summary())
        sections: list[Callable[[], list[Block]]] = [self.search, self.others, self.depth]
        if self.mine["n_aligned"]:
            sections += [self.consistency, self.similarity, self.hubs]
        sections += [lambda: moment_blocks(self.measures["checkpoints"]), self.tokens]
        if self.mine["n_aligned"]:
            sections += [self.hardest, self.confused]
        for section in [*sections, self.published, self.made]:
            page.blocks += section()
        return page

    def summary(self) -> list[str]:
        """What a hurried reader takes along."""
        clips, cells = self.measures["n_clips"], self.mine["figures"]["all"]["t2v"]["R@1"]
        found = []
        if "en" in cells:
            found.append(f"{_percent(cells['en'])} of the English queries")
        if "avg_non_en" in cells:
            others = len(self.languages) - ("en" in cells)
            found.append(f"{_percent(cells['avg_non_en'])} of those in {_counted(others, 'other language')}")
        sentences = [
            f"Among {clips:,} clips, {self.first.name} finds the right one first for {' and '.join(found)}; "
            f"by chance it would be {100 / clips:.1f}\u00a0%. Brackets are 95\u00a0% bootstrap intervals over clips."
        ]
        closed = (self.measures["gap_closed"] or {}).get("t2v")
        if closed and closed["average"] is not None:
            share = {"value": closed["average"], "ci95": closed["ci95"]}
            sentences.append(
                f"It closes {_percent(share, 0)} of the gap abroad between {closed['zero_shot']}, fine-tuned on "
                f"English alone, and {closed['translate_train']}, trained on every language."
            )
        if "consistency" in self.mine and len(self.languages) > 1:
            found, size = self.mine["consistency"], len(self.languages)
            shared = np.array(found["overlap"])[~np.eye(size, dtype=bool)].mean()
            sentences.append(
                f"The queries of one clip in two languages share {shared:.0f}\u00a0% of their first {found['top_k']} "
                f"results; all {size} agree on the first one for {found['unanimity']:.1f}\u00a0% of the clips."
            )
        return sentences

    def search(self) -> list[Block]:
        """Every metric, both ways, by language."""
        figures = self.mine["figures"]["all"]
        rows = {}
        for name, measured in self.measures["checkpoints"].items():
            cells = measured["figures"]["all"]["t2v"]["R@1"]
            rows[name] = {
                key: (cell["value"], *cell["ci95"]) if cell["ci95"] else (cell["value"],) * 3
                for key, cell in cells.items()
            }
        blocks: list[Block] = [
            Heading("Search in each language"),
            Figure("r1_by_language", r1_by_language(rows, tuple(AVERAGES)), "R@1 by language and checkpoint"),
        ]
        for direction, words in DIRECTIONS.items():
            metrics = list(figures[direction])[1:]
            keys, gap = list(figures[direction]["R@1"]), self.mine["gap_to_english"][direction]
            gap = gap | ({"avg_non_en": float(np.mean(list(gap.values())))} if gap else {})
            cells = [
                [
                    AVERAGES.get(key, key),
                    _with_interval(figures[direction]["R@1"][key]),
                    _signed(gap[key]) if key in gap else None,
                    *(_with_interval(figures[direction][metric][key]) for metric in metrics),
                ]
                for key in keys
            ]
            strong = [number for number, key in enumerate(keys) if key in AVERAGES]
            blocks += [
                Text(f"{words.capitalize()}:"),
                Table(["language", "R@1", "− en", *metrics], cells, strong),
            ]
        for part, by_direction in self.mine["figures"].items():
            if part != "all":
                keys = list(by_direction["t2v"]["R@1"])
                num_clips = len(self.corpus.rows) - int(self.corpus.parts[part].sum())
                blocks += [
                    Text(f"{part.capitalize().replace('_', ' ', 1)} ({num_clips:,} clips), R@1:"),
                    Table(
                        ["direction", *(AVERAGES.get(key, key) for key in keys)],
                        [
                            [DIRECTIONS[w], *(f"{by_direction[w]['R@1'][key]['value']:.1f}" for key in keys)]
                            for w in DIRECTIONS
                        ],
                    ),
                ]
        return blocks

    def others(self) -> list[Block]:
        """Beside the other checkpoints: values, paired tests, how much of the gap is closed."""
        if len(self.evaluations) == 1:
            return []
        found = self.measures["checkpoints"]
        keys = list(self.mine["figures"]["all"]["t2v"]["R@1"])
        rows = [
            [name, *(f"{measured['figures']['all']['t2v']['R@1'][key]['value']:.1f}" for key in keys)]
            for name, measured in found.items()
        ]
        tests = [
            [
                f"{test['a']} − {test['b']}",
                DIRECTIONS[test["way"]],
                test["scope"],
                f"{_signed(test['difference'])} [{_signed(test['ci95'][0])}, {_signed(test['ci95'][1])}]",
                _probability(test["p"]),
                _probability(test["p_holm"]),
            ]
            for test in self.measures["comparisons"]
        ]
        blocks: list[Block] = [
            Heading("Beside other checkpoints"),
            Text("Text to video, R@1:"),
            Table(["checkpoint", *(AVERAGES.get(key, key) for key in keys)], rows, [0]),
            Text("Difference in R@1 on the same clips:"),
            Table(
                ["checkpoints", "direction", "languages", "difference", "p", "p (Holm)"],
                tests,
                [number for number, test in enumerate(self.measures["comparisons"]) if test["p_holm"] < 0.05],
                "p: two-sided, signs of each clip's difference flipped at random. Holm: adjusted for all tests of "
                "this table; bold below 0.05. One training run each: another seed may differ by more than other clips "
                "would.",
            ),
        ]
        if self.measures["gap_closed"]:
            blocks += self.gap()
        return blocks

    def gap(self) -> list[Block]:
        """Where the checkpoint stands between zero-shot and training on every language."""
        closed = self.measures["gap_closed"]["t2v"]
        names = (closed["zero_shot"], self.first.name, closed["translate_train"])
        foreign = list(closed["languages"])
        low, here, high = (
            {key: self.measures["checkpoints"][name]["figures"]["all"]["t2v"]["R@1"][key]["value"] for key in foreign}
            for name in names
        )
        return [
            Text(f"How much of the gap between {names[0]} and {names[2]} is closed, widest gap first:"),
            Figure(
                "gap_closed",
                gap_bars(low, here, high, names, closed["languages"]),
                f"R@1 of {', '.join(names)} in each language but English",
                f"100 % where {names[1]} reaches {names[2]}. In a single language the share rests on few clips.",
            ),
        ]

    def depth(self) -> list[Block]:
        """Recall at every depth."""
        curves = {language: of for language, of in self.first.ranks["all"]["t2v"].items()}
        return [
            Heading("How deep to look"),
            Figure(
                "recall_curves",
                recall_curves(curves, self.measures["n_clips"]),
                "Share of queries whose clip is among the first k, by language",
            ),
        ]

    def consistency(self) -> list[Block]:
        """Whether the queries of one clip find the same clips."""
        found = self.mine["consistency"]
        agreed = found["agreement"]
        rows = [
            [
                name,
                *(f"{measured['consistency']['agreement'][key]:.0f}" for key in agreed if key != found["reference"]),
                f"{measured['consistency']['unanimity']:.1f}",
                f"{measured['consistency']['mean_rank_variance']:,.0f}",
            ]
            for name, measured in self.measures["checkpoints"].items()
        ]
        return [
            Heading("Consistency across languages"),
            Text(
                "Do the queries of one clip find the same clips, right or wrong? Below, the share of the first "
                f"{found['top_k']} results that two languages' queries have in common; the table says for how many "
                f"clips a language's first result is also the {_called(found['reference'])} query's."
            ),
            Figure(
                "overlap",
                heat_map(
                    np.array(found["overlap"]), self.languages, f"Shared among the first {found['top_k']}, %", 0, True
                ),
                "Share of results in common, language by language",
            ),
            Table(
                [
                    "first result as in " + found["reference"] + ", %",
                    *(key for key in agreed if key != found["reference"]),
                    "all agree, %",
                    "MRV",
                ],
                rows,
                [0],
                "MRV: variance over languages of the right clip's rank, averaged over clips; 0 if languages make no "
                "difference.",
            ),
        ]

    def similarity(self) -> list[Block]:
        """Texts of one clip beside each other."""
        found = self.mine["text_similarity"]
        different = [value for row in found["different_clips"] for value in row if value is not None]
        note = f"Texts of different clips: {np.mean(different):+.2f} on average." if different else ""
        return [
            Heading("Texts across languages"),
            Figure(
                "text_similarity",
                heat_map(
                    np.array(found["same_clip"]), self.languages, "Mean cosine, two languages, one clip", 2, True
                ),
                "Mean cosine of the texts of one clip, language by language",
                note,
            ),
        ]

    def hubs(self) -> list[Block]:
        """Whether few clips crowd the results."""
        counts = {language: np.array(of) for language, of in self.mine["occurrences"].items()}
        depth = self.mine["consistency"]["top_k"]
        rows = [
            [label, *(f"{measured['hubness'][key][field]:.{digits}f}" for key in self.languages)]
            for field, label, digits in (("skewness", "skewness", 2), ("anti_hubs", "in no result, %", 1))
            for measured in [self.mine]
        ]
        rows.append(["largest hub, % of queries", *(self._largest(key) for key in self.languages)])
        total = self.mine["n_aligned"] * len(self.languages)
        cards = [
            Card(
                [
                    self.clip(
                        hub["row"], f"{hub['count']} of {total:,} queries, {100 * hub['count'] / total:.0f}\u00a0%"
                    )
                ]
            )
            for hub in self.mine["hubs"]
        ]
        return [
            Heading("Hubs"),
            Text(
                f"A hub is a clip that is among the first {depth} results of many queries, whatever they ask; an "
                "anti-hub is in none. Skewness of the number of results a clip is in: near 0 if results are spread "
                "evenly, above 1 where hubs take other clips' places."
            ),
            Figure(
                "hubness",
                occurrence_histogram(counts, depth, self.mine["n_aligned"]),
                "Histogram of how often a clip is among the first results, all languages",
            ),
            Table([f"first {depth} results", *self.languages], rows),
            Text("The largest hubs:"),
            Gallery(cards),
        ]

    def _largest(self, language: str) -> str:
        return f"{100 * self.mine['hubness'][language]['largest'] / self.mine['n_aligned']:.0f}"

    def tokens(self) -> list[Block]:
        """How the tokenizer treats each language."""
        english = self.mine["tokens"].get("en", {}).get("mean")
        rows = [
            [
                language,
                f"{of['median']:.0f}",
                f"{of['p95']:.0f}",
                f"{of['longest']}",
                f"{of['mean'] / english:.2f}" if english else None,
                f"{of['cut']:.1f}",
            ]
            for language, of in self.mine["tokens"].items()
        ]
        limit = self.first.max_text_length
        return [
            Heading("Tokens and truncation"),
            Figure("tokens", token_ranges(self.first.tokens, limit), "Tokens a caption by language"),
            Table(
                ["language", "median", "95 %", "longest", "mean / en", "cut, %"],
                rows,
                (),
                f"Cut: over {limit} tokens.",
            ),
        ]

    def hardest(self) -> list[Block]:
        """Clips that no language finds."""
        cards = []
        for clip in self.mine["hardest"]:
            wrong = clip["found"].get("en", next(iter(clip["found"].values())))
            ranks = " · ".join(f"{language}\u00a0{rank:.0f}" for language, rank in clip["ranks"].items())
            clips = [self.clip(clip["row"], "asked for"), self.clip(wrong, "came first")]
            cards.append(Card(clips, note=f"Ranks: {ranks}"))
        return [
            Heading("The hardest clips"),
            Text(
                "Lowest mean of 1 / rank over the languages. Beside each, what its "
                f"{_called('en' if 'en' in self.languages else self.languages[0])} query found first."
            ),
            Gallery(cards, "→"),
        ]

    def confused(self) -> list[Block]:
        """Wrong clips that come first in many languages."""
        cards = []
        for pair in self.mine["confusions"]:
            lines = [(language, self.words(pair["asked"], language)) for language in pair["languages"]]
            many = f"{len(pair['languages'])} of {_counted(len(self.languages), 'language')}"
            clips = [self.clip(pair["asked"], "asked for"), self.clip(pair["found"], "came first")]
            cards.append(Card(clips, lines, many))
        return [
            Heading("Confusions"),
            Text("Wrong clips that came first, in most languages first, with the queries that found them."),
            Gallery(cards, "→"),
        ]

    def published(self) -> list[Block]:
        """The paper's table beside ours."""
        columns = [language for language in LANGUAGES if language in self.languages]
        rows: list[list[str | Words | None]] = []
        for name, measured in self.measures["checkpoints"].items():
            cells = measured["figures"]["all"]["t2v"]["R@1"]
            average = np.mean([cells[language]["value"] for language in columns]) if columns else None
            rows.append(
                [
                    name,
                    "this report",
                    *(f"{cells[key]['value']:.1f}" if key in cells else None for key in LANGUAGES),
                    None if average is None or len(columns) < len(LANGUAGES) else f"{average:.1f}",
                ]
            )
        for name, values in MULTI_MSRVTT.items():
            rows.append([name, "published", *(f"{value:.1f}" for value in values)])
        return [
            Heading("The paper's figures, on other data"),
            Text(
                "R@1, text to video. The rows marked published are other people's figures on other data: "
                "Multi-MSR-VTT, 1,000 clips of real video with long captions (Huang et al., NAACL 2021). They show "
                "what pre-training did there. They are not to be compared with the rows of this report, which search "
                "other clips by other texts."
            ),
            Table(["model", "from", *LANGUAGES, "avg"], rows, list(range(len(self.evaluations)))),
        ]

    def made(self) -> list[Block]:
        """What was run, and what the words mean."""
        spec = self.corpus.spec
        about = f"{spec.dataset}{f' at {spec.revision}' if spec.revision else ''}, split {spec.split}"
        return [
            Heading("How it was made"),
            Text(
                f"Searched: {about}; queries: {spec.text_column}. R@k: percent of queries whose clip is among the "
                "first k. MedR: median rank. MRR: mean of 1 / rank, in percent. Tied clips share the expected rank of "
                "a shuffle. Video to text: the best-ranked of a clip's captions. Intervals: 10,000 bootstrap samples "
                "over clips, each with all its captions."
            ),
            Table(["what", "command"], [[what, command] for what, command in self.commands.items()]),
        ]

    def clip(self, row: int, line: str = "") -> Clip:
        """A clip as it is shown: its picture, its English text (or its id), and a line about it."""
        words = self.words(row, "en") if "en" in self.languages else None
        return Clip(self.picture(row), words.text if words and words.text else self.corpus.rows["video_id"][row], line)

    def words(self, row: int, language: str) -> Words:
        """The first caption of a clip in a language; empty where there is none."""
        owners = self.corpus.clip_of[language]
        text = self.corpus.captions[language][owners.index(row)] if row in owners else ""
        return Words("".join(character if character.isprintable() else " " for character in text), language)


def _with_interval(cell: Mapping[str, Any]) -> str:
    if cell["ci95"] is None:
        return f"{cell['value']:.1f}"
    return f"{cell['value']:.1f} [{cell['ci95'][0]:.1f}, {cell['ci95'][1]:.1f}]"


def _percent(cell: Mapping[str, Any], digits: int = 1) -> str:
    value = f"{cell['value']:.{digits}f}\u00a0%"
    return value if cell["ci95"] is None else f"{value} [{', '.join(f'{end:.{digits}f}' for end in cell['ci95'])}]"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _probability(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _called(language: str) -> str:
    return "English" if language == "en" else language
