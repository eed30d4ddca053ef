"""Small dual encoders of every family, saved by transformers itself with tokenizers and image processors of their own.

They know nothing of this package: `build(family, folder)` writes what a stranger's folder holds.
"""

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

CAPTIONS = [
    # in each of the nine languages: two, of one word and of several
    *("dog", "A red dog runs home through the rain.", "Hund", "Ein roter Hund läuft durch den Regen nach Hause."),
    *("chien", "Un chien rouge rentre chez lui sous la pluie.", "perro", "Un perro rojo corre a casa bajo la lluvia."),
    *("собака", "Рыжая собака бежит домой под дождём.", "pes", "Červený pes běží v dešti domů."),
    *("mbwa", "Mbwa mwekundu anakimbia nyumbani kwenye mvua.", "chó", "Một con chó đỏ chạy về nhà trong mưa."),
    *("狗", "一只红色的狗在雨中跑回家。", "The cat sleeps.", "Die Katze schläft.", "Le chat dort.", "El gato duerme."),
    *("Кошка спит.", "Kočka spí.", "Paka analala.", "Con mèo đang ngủ.", "猫在睡觉。"),
    # nearly empty, and what cleaning would change
    *(
        ".",
        "?!",
        "…",
        "-",
        "a",
        "I",
        "🐕",
        "\u200b.",
        "  two  spaces ",
        "a\ttab",
        "line\nbreak",
        "UPPER Case",
        "ﬁ ligature",
    ),
    # longer than any of them reads
    *("dog " * 100, "x" * 300, "狗" * 200, "собака бежит " * 50, "rain, " * 90, "Hund läuft. " * 40),
    *("one two three", "123 456", "naïve café", "e\u0301"),
]
assert len(CAPTIONS) == len(set(CAPTIONS)) == 50
WORDS = sorted({word for caption in CAPTIONS[:27] for word in caption.split()})
LETTERS = sorted({letter for caption in CAPTIONS for letter in caption if not letter.isspace()})
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
PICTURE = {**TEXT, "hidden_size": 40, "image_size": 32, "patch_size": 8}
WIDTH = 24  # of the joint space
LITE = {"image_size": 48, "hidden_dim": 40, "width_coefficient": 1.0, "depth_coefficient": 0.2, "depth_divisor": 4}
LITE |= {"kernel_sizes": [3, 3], "in_channels": [32, 16], "out_channels": [16, 24], "strides": [1, 2]}
LITE |= {"num_block_repeats": [1, 2], "expand_ratios": [1, 6]}


def clip_tokenizer():
    """Byte pairs, lower case; the end of a text is the largest id, which the original's argmax looks for."""
    core = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CAPTIONS, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, end_of_word_suffix="</w>")
    )
    learned = core.get_vocab()
    merges = [tuple(pair) for pair in json.loads(core.to_str())["model"]["merges"]]
    vocab = {token: index for index, token in enumerate(sorted(learned, key=learned.get))}
    vocab |= {token: len(vocab) + index for index, token in enumerate(("<|startoftext|>", "<|endoftext|>"))}
    return transformers.CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def xlm_tokenizer(max_length=77):
    """Unigrams, case kept."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -5.0) for word in WORDS[::2]] + [("▁", -6.0)] + [(letter, -8.0) for letter in LETTERS]
    return transformers.XLMRobertaTokenizer(vocab=[*pieces, ("<mask>", 0.0)], model_max_length=max_length)


def siglip_tokenizer():
    """Unigrams, lower case, an end and no start; no mask, as google/siglip's says: the padding is read."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -6.0)]
    letters = sorted({letter.lower() for letter in LETTERS if len(letter.lower()) == 1})
    pieces += [(f"▁{word}", -5.0) for word in sorted({word.lower() for word in WORDS[::2]})]
    core = Tokenizer(models.Unigram([*pieces, *((letter, -8.0) for letter in letters)], unk_id=2))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=64,
        model_input_names=["input_ids"],
    )


def siglip2_tokenizer():
    """Gemma's, in lower case; as google/siglip2's it pads on the right, and gives no mask."""
    vocab = {token: index for index, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])}
    for token in (*(f"<0x{byte:02X}>" for byte in range(256)), "▁", *sorted({letter.lower() for letter in LETTERS})):
        vocab.setdefault(token, len(vocab))
    return transformers.Siglip2Tokenizer(
        vocab=vocab, merges=[], padding_side="right", model_input_names=["input_ids"], model_max_length=64
    )


def bert_tokenizer(max_length=64, **options):
    """Word pieces, lower case."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word.lower().strip(".") for word in WORDS[::2]})]
    for letter in LETTERS:
        tokens += [letter.lower(), f"##{letter.lower()}"]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return transformers.BertTokenizer(vocab=vocab, model_max_length=max_length, **options)


def image_processor(kind, **options):
    """Of this class, without torchvision."""
    module = importlib.import_module(f"transformers.models.{kind}.image_processing_pil_{kind}")
    name = {"clip": "CLIP", "siglip": "Siglip", "siglip2": "Siglip2", "vit": "ViT", "efficientnet": "EfficientNet"}
    name |= {"chinese_clip": "ChineseCLIP"}
    return getattr(module, f"{name[kind]}ImageProcessorPil")(**options)


CROP = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
SQUARE = {"size": {"height": 32, "width": 32}}
LITE_CROP = {"size": {"height": 50, "width": 50}, "crop_size": {"height": 48, "width": 48}, "do_center_crop": True}
NAFLEX = {name: value for name, value in PICTURE.items() if name != "image_size"} | {"num_patches": 16}
cropped, square = partial(image_processor, "clip", **CROP), partial(image_processor, "vit", **SQUARE)
patches = partial(image_processor, "siglip2", patch_size=8, max_num_patches=20)
SHORT = {"padding": True, "truncation": True}
TO_64 = {"padding": "max_length", "truncation": True, "max_length": 64}
HEAD = {"projection_size": 40}
LONG = 10**30  # tokens, of a tokenizer that leaves the bound to the encoder's table of positions


@dataclass(frozen=True)
class Small:
    """How transformers builds a small model of a family.

    Args:
        classes: how the names of its classes begin: `CLIP` of `CLIPModel` and `CLIPConfig`.
        tokenizer: makes its tokenizer.
        pictures: makes its image processor.
        text: of its text half, beside `TEXT` and what the tokenizer says.
        vision: its picture half.
        config: beside the halves.
        captions: how its captions are told to be tokenized.
    """

    classes: str
    tokenizer: Callable[[], Any]
    pictures: Callable[[], Any]
    text: Mapping[str, Any] = field(default_factory=dict)
    vision: Mapping[str, Any] = field(default_factory=lambda: PICTURE)
    config: Mapping[str, Any] = field(default_factory=lambda: {"projection_dim": WIDTH})
    captions: Mapping[str, Any] = field(default_factory=lambda: SHORT)

    def parts(self, vision: Mapping[str, Any]) -> tuple[Any, Any]:
        """Model and processor; `vision` overrides sizes of the picture half."""
        tokenizer = self.tokenizer()
        told = {"vocab_size": len(tokenizer)}
        told |= {name: value for name in ENDS if (value := getattr(tokenizer, name)) is not None}
        config = self._class("Config")(
            text_config=TEXT | told | self.text, vision_config={**self.vision, **vision}, **self.config
        )
        processor = getattr(transformers, f"{self.classes}Processor", transformers.CLIPProcessor)
        return self._class("Model")(config), processor(self.pictures(), tokenizer)

    def _class(self, kind: str) -> Any:
        return getattr(transformers, self.classes + kind)


ENDS = ("bos_token_id", "eos_token_id")
BUILDS = {
    "clip": Small("CLIP", clip_tokenizer, cropped, {"eos_token_id": 2}),  # as OpenAI's checkpoints say, by argmax
    "metaclip_2": Small("MetaClip2", xlm_tokenizer, cropped, {"vocab_size": len(xlm_tokenizer()) + 50}),
    "siglip": Small(
        "Siglip", siglip_tokenizer, partial(image_processor, "siglip", **SQUARE), HEAD, config={}, captions=TO_64
    ),
    "siglip2": Small("Siglip2", siglip2_tokenizer, patches, HEAD, NAFLEX, config={}, captions=TO_64),
    "chinese_clip": Small(
        "ChineseCLIP",
        bert_tokenizer,
        partial(image_processor, "chinese_clip", **SQUARE, crop_size=CROP["crop_size"]),
        {"max_position_embeddings": 64},
    ),
    "altclip": Small(
        "AltCLIP",
        partial(xlm_tokenizer, LONG),
        cropped,
        {"project_dim": 20, "max_position_embeddings": 66},
        captions=SHORT | {"max_length": 64},
    ),
    "align": Small(
        "Align",
        partial(bert_tokenizer, 512),
        partial(image_processor, "efficientnet", **LITE_CROP),
        {"max_position_embeddings": 128},
        LITE,
        captions=TO_64,
    ),
    "vision-text-dual-encoder": Small(
        "VisionTextDualEncoder",
        bert_tokenizer,
        square,
        {"model_type": "bert", "max_position_embeddings": 64},
        PICTURE | {"model_type": "vit"},
    ),
    "aimv2": Small("Aimv2", clip_tokenizer, cropped),
    "tipsv2": Small("Tipsv2", bert_tokenizer, square, {"hidden_size": 40}, config={}),
    "clipseg": Small("CLIPSeg", clip_tokenizer, square, {"eos_token_id": 2}),  # no row of ours: by its two methods
}


def build(family: str, folder: Path, vision_config: Mapping[str, Any] | None = None):
    """Save the family's small checkpoint.

    Returns:
        Its model in eval mode, its processor, and its own options for captions.
    """
    torch.manual_seed(0)
    model, processor = BUILDS[family].parts(vision_config or {})
    _randomize(model)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor, BUILDS[family].captions


@torch.no_grad()
def _randomize(model):
    """As conftest's `randomize`; a temperature keeps its value."""
    from conftest import randomize  # not above: a stranger's process, which has no package, reads the captions here

    scalars = {name: value.clone() for name, value in model.named_parameters() if value.numel() == 1}
    for name in scalars:
        model.get_parameter(name).data = torch.zeros(1)
    randomize(model, sharpness=2).eval()
    for name, value in scalars.items():
        model.get_parameter(name).data = value


def pictures(count: int = 20) -> list[Image.Image]:
    """Pictures of odd sizes and modes."""
    generator = np.random.default_rng(0)
    sizes = [(33, 47), (200, 31), (17, 90), (64, 64), (5, 7), (1, 1), (32, 32), (131, 257), (48, 36), (90, 91)]
    modes = ["RGB", "L", "RGBA", "P", "CMYK", "1", "LA"]
    found = []
    for number in range(count):
        height, width = sizes[number % len(sizes)]
        ramp = np.linspace(0, 255, width)[None, :, None] * generator.uniform(0, 1, 4)
        noise = generator.integers(0, 100, (height, width, 4)) + generator.integers(0, 150, 4)
        pixels = ((ramp + noise) % 256).astype(np.uint8)
        mode = modes[number % len(modes)]
        if mode not in ("RGBA", "LA"):
            pixels = pixels[..., :3]
        found.append(Image.fromarray(pixels).convert(mode))
    return found
