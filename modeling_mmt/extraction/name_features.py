"""Features of clips' names, as if each name were what a picture encoder saw: `efficientnet-lite0-names` alone.

With such a store beside a corpus's names in many languages, a model learns where pictures lie of things that it has
only read of, and that names of a thing in all languages lie together.
"""

from pathlib import Path

import numpy as np

from modeling_mmt.data.feature_store import FeatureStore
from modeling_mmt.data.feature_store_writer import write_feature_store
from modeling_mmt.data.reading import read_split
from modeling_mmt.extraction.class_names import NameSpace, text_states
from modeling_mmt.extraction.packaged_encoders import packaged_encoder


def write_name_features(dataset: str, output_dir: str | Path, encoder: str | Path, like: FeatureStore) -> None:
    """Write the features of the English names of a dataset's training clips, one step each.

    Where a picture's hold more than the classes' vectors, a name's hold what the pictures of `like` do on average.

    Args:
        dataset: whose rows have `video_id` and `name_en`.
        output_dir: of the store; must not exist.
        encoder: folder that `write_encoder` wrote.
        like: features of pictures by this encoder, which the store goes beside.
    """
    rows = read_split(dataset, None, "train")
    states = text_states(packaged_encoder("multilingual-e5-small"))(rows["name_en"][:])
    vectors = NameSpace.load(encoder).vectors(states).numpy()
    features = np.tile(like.mean(), (len(vectors), 1, 1))
    features[:, 0, : vectors.shape[1]] = vectors
    write_feature_store(
        output_dir,
        zip(rows["video_id"], features, strict=True),
        extractor=like.manifest["extractor"],
        revision=like.manifest["revision"],
        source={"texts": "name_en", "image_size": (like.manifest["source"] or {}).get("image_size")},
    )
