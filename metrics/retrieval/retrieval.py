"""Retrieval metric for `evaluate`: R@1, R@5, R@10, median and mean rank, MRR, with a stated rule for ties.

The arithmetic is `modeling_mmt.evaluation.ranks`; this file is its `evaluate.Metric` face. One module a line: the
scanner of `evaluate` does not understand `import a, b`.
"""

import datasets
import evaluate
import numpy as np

from modeling_mmt.evaluation.metrics import retrieval_metrics
from modeling_mmt.evaluation.ranks import ranks, ranks_from_scores
from modeling_mmt.evaluation.relevance import relevance, relevance_from_scores

_DESCRIPTION = """
Cross-modal retrieval: how high does the correct item stand in the ranking of each query?
R@1, R@5, R@10 and MRR in percent (0 to 100), median (MedR) and mean (MeanR) rank from 1; where queries have several
correct items, mean average precision (mAP) and nDCG@10 over all of them, in percent. Ties take the expected rank
under a random order (the average rank), or the expected value; a score that is not finite is an error.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: one list of floats for each query: its embedding, if `gallery_embeds` is given; else its scores
        against every gallery item (larger = better). Stored as float32.
    references: for each query the row of the correct gallery item, an integer; or a list of integers if several items
        are correct: of ranks the best-ranked one counts, of mAP and nDCG@10 all do.
    gallery_embeds (array, optional): `(gallery items, width)` embeddings, scored by inner product in blocks: memory
        stays proportional to the number of items, and queries may be added batch by batch, or by several processes.
    return_ranks (bool, optional): whether to return each query's rank too.
Returns:
    A dictionary: 'R@1', 'R@5', 'R@10', 'MRR' in percent; 'MedR', 'MeanR' as ranks; where references are lists also
    'mAP' and 'nDCG@10' in percent; with `return_ranks` also 'ranks', one float a query, 1 = best.
Examples:
    >>> import evaluate
    >>> metric = evaluate.load("metrics/retrieval")
    >>> metric.compute(predictions=[[0.9, 0.1], [0.8, 0.3]], references=[0, 1])
    {'R@1': 50.0, 'R@5': 100.0, 'R@10': 100.0, 'MedR': 1.5, 'MeanR': 1.5, 'MRR': 75.0}
"""

_CITATION = """
@inproceedings{huang2021multilingual,
  title={Multilingual Multimodal Pre-training for Zero-Shot Cross-Lingual Transfer of Vision-Language Models},
  author={Huang, Po-Yao and Patrick, Mandela and Hu, Junjie and Neubig, Graham and Metze, Florian and
          Hauptmann, Alexander},
  booktitle={Proceedings of NAACL-HLT},
  year={2021}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Retrieval(evaluate.Metric):
    """`evaluate` metric: see the description above."""

    def _info(self):
        vector = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=[
                datasets.Features({"predictions": vector, "references": datasets.Value("int64")}),
                datasets.Features({"predictions": vector, "references": datasets.Sequence(datasets.Value("int64"))}),
            ],
        )

    def _compute(self, predictions, references, gallery_embeds=None, return_ranks=False):
        predictions = np.asarray(predictions, dtype=np.float32)
        if gallery_embeds is None:
            found = ranks_from_scores(predictions, references)
        else:
            found = ranks(predictions, gallery_embeds, references)
        result = retrieval_metrics(found) | ({"ranks": found} if return_ranks else {})
        if any(np.ndim(items) for items in references):  # several correct items
            if gallery_embeds is None:
                values = relevance_from_scores(predictions, references)
            else:
                values = relevance(predictions, gallery_embeds, references)
            result |= {name: float(of.mean()) for name, of in values.items()}
        return result
