"""Multilingual Multimodal Transformers: text-to-video search in many languages, on the Hugging Face stack."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor

from .configuration_mmt import MMTConfig
from .efficientnet_lite_mmt import EfficientNetLiteConfig, EfficientNetLiteModel
from .modeling_mmt import MMTModel, MMTTextModelWithProjection, MMTVideoModelWithProjection
from .pipeline_mmt import MMTSearchPipeline
from .processing_mmt import MMTProcessor, MMTVideoFeatureExtractor

__version__ = "0.1.0"
__all__ = [
    "EfficientNetLiteConfig",
    "EfficientNetLiteModel",
    "MMTConfig",
    "MMTModel",
    "MMTProcessor",
    "MMTSearchPipeline",
    "MMTTextModelWithProjection",
    "MMTVideoFeatureExtractor",
    "MMTVideoModelWithProjection",
]

AutoConfig.register("mmt", MMTConfig, exist_ok=True)
AutoConfig.register("efficientnet_lite", EfficientNetLiteConfig, exist_ok=True)
AutoModel.register(MMTConfig, MMTModel, exist_ok=True)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
AutoFeatureExtractor.register(MMTConfig, MMTVideoFeatureExtractor, exist_ok=True)
AutoProcessor.register(MMTConfig, MMTProcessor, exist_ok=True)

MMTConfig.register_for_auto_class()
MMTModel.register_for_auto_class("AutoModel")
MMTVideoFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
MMTProcessor.register_for_auto_class("AutoProcessor")
EfficientNetLiteConfig.register_for_auto_class()
EfficientNetLiteModel.register_for_auto_class("AutoModel")
