"""Our classes under the tests that every transformers model must pass: `make test-family` fetches and runs them."""

import sys
import unittest
from pathlib import Path
from unittest.mock import patch

import pytest
from conftest import TEXT_DIM, build_batch, build_clips, build_config, build_tokenizer
from fetch_family_suite import VERSION

from modeling_mmt import (
    MMTConfig,
    MMTModel,
    MMTProcessor,
    MMTTextModelWithProjection,
    MMTVideoFeatureExtractor,
    MMTVideoModelWithProjection,
)

SUITE = Path(__file__).resolve().parents[2] / "cache" / "transformers_tests" / VERSION
if not SUITE.is_dir():
    pytest.skip(
        "transformers' own tests are not in its wheel; `make test-family` fetches them", allow_module_level=True
    )
sys.path.append(str(SUITE))

from tests.test_configuration_common import ConfigTester  # noqa: E402
from tests.test_feature_extraction_common import FeatureExtractionSavingTestMixin  # noqa: E402
from tests.test_modeling_common import ModelTesterMixin  # noqa: E402
from tests.test_processing_common import ProcessorTesterMixin  # noqa: E402

from tests import test_modeling_common  # noqa: E402

DUAL = "a dual encoder has no hidden states of its own: its towers, tested below, have theirs"
FEATURES = "clips enter as features: there are no input embeddings to get, set or resize"
ONE_LIMIT = "the processor's max_text_length is the one limit of a caption; a tokenizer's own is no second"
SOUND = "the feature extractor takes clips' features, not sound, and no option of the suite's"


def skipped(reason):
    def test(self):
        self.skipTest(reason)

    return test


class SmallModel:
    """What the suite calls a model tester: a small configuration that learns everywhere, and inputs for it."""

    batch_size, hidden_size, num_hidden_layers, num_attention_heads = 4, TEXT_DIM, 2, 2

    def __init__(self, names, is_training=False):
        self.names, self.is_training = names, is_training
        self.seq_length = self.inputs()[names[0]].shape[1]

    def inputs(self):
        batch = build_batch(with_pairs=False, with_noise=False)
        return {name: batch[name] for name in self.names}

    def get_config(self):
        return build_config(
            hidden_size=TEXT_DIM,
            num_attention_heads=self.num_attention_heads,
            freeze_text_layers=0,
            freeze_text_embeddings=False,
            learn_logit_scale=True,
        )

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), self.inputs()


def widen_norms(config):
    config.layer_norm_eps = config.text_config.layer_norm_eps = 1.0


class FamilyTest(ModelTesterMixin):
    _is_composite = True

    def setUp(self):
        # The suite's own puts seven names of an epsilon on every configuration; ours refuses names that it lacks.
        less_flaky = patch.object(test_modeling_common, "set_config_for_less_flaky_test", widen_norms)
        self.enterContext(less_flaky)


class MMTModelTest(FamilyTest, unittest.TestCase):
    all_model_classes = (MMTModel,)
    additional_model_inputs = ("video_features", "video_mask")
    skip_test_video_features_output_shape = True  # looks for pixels

    test_attention_outputs = skipped(DUAL)
    test_hidden_states_output = skipped(DUAL)
    test_retain_grad_hidden_states_attentions = skipped(DUAL)

    def setUp(self):
        super().setUp()
        names = ("input_ids", "attention_mask", "video_features", "video_mask")
        self.model_tester = SmallModel(names, is_training=True)
        self.config_tester = ConfigTester(self, MMTConfig, has_text_modality=False, hidden_size=24, projection_dim=10)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        return {**inputs, "return_loss": True} if return_labels else inputs

    def test_config(self):
        self.config_tester.run_common_tests()


class MMTTextModelTest(FamilyTest, unittest.TestCase):
    all_model_classes = (MMTTextModelWithProjection,)

    def setUp(self):
        super().setUp()
        self.model_tester = SmallModel(("input_ids", "attention_mask"))


class MMTVideoModelTest(FamilyTest, unittest.TestCase):
    all_model_classes = (MMTVideoModelWithProjection,)

    test_model_get_set_embeddings = skipped(FEATURES)
    test_resize_tokens_embeddings = skipped(FEATURES)

    def setUp(self):
        super().setUp()
        self.model_tester = SmallModel(("video_features", "video_mask"))


class MMTProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = MMTProcessor
    videos_input_name = "video_features"

    test_processor_with_multiple_inputs = skipped(SOUND)
    test_subprocessor_defaults_3_audio = skipped(SOUND)
    test_subprocessor_defaults_preserved_by_kwargs_2_audio = skipped(ONE_LIMIT)

    @classmethod
    def setUpClass(cls):
        cls.enterClassContext(patch.object(MMTProcessor, "_auto_class", None))  # as a class inside transformers
        super().setUpClass()

    @classmethod
    def _setup_tokenizer(cls):
        return build_tokenizer()

    @classmethod
    def _setup_feature_extractor(cls):
        return MMTVideoFeatureExtractor(8, 12)

    def prepare_images_inputs(self, batch_size=None):
        return None  # clips have one name at a time

    def prepare_videos_inputs(self, batch_size=None):
        return build_clips([4, 4])


class MMTVideoFeatureExtractorTest(FeatureExtractionSavingTestMixin, unittest.TestCase):
    feature_extraction_class = MMTVideoFeatureExtractor
    feat_extract_dict = {"feature_dim": 8, "max_video_length": 12}
