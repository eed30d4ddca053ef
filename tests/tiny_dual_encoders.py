"""Small dual encoders of every family, saved by transformers itself with tokenizers and image processors of their own.

They know nothing of this package: `build(family, folder)` writes what a stranger's folder holds.
"""

import importlib
import json
from pathlib import Path

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


def _parts(family, vision):
    """Model, processor, and how its captions are told to be tokenized; `vision` overrides the picture half's sizes."""
    t = transformers
    short, to_64 = (
        {"padding": True, "truncation": True},
        {"padding": "max_length", "truncation": True, "max_length": 64},
    )
    if family == "clip":
        tokenizer = clip_tokenizer()
        ends = {"eos_token_id": 2, "vocab_size": len(tokenizer)}  # 2: as OpenAI's checkpoints say, by argmax
        config = t.CLIPConfig(text_config=TEXT | ends, vision_config=PICTURE | vision, projection_dim=WIDTH)
        return t.CLIPModel(config), t.CLIPProcessor(image_processor("clip", **CROP), tokenizer), short
    if family == "metaclip_2":
        tokenizer = xlm_tokenizer()
        text = TEXT | {"eos_token_id": 2, "bos_token_id": 0, "vocab_size": len(tokenizer) + 50}  # a table with room
        config = t.MetaClip2Config(text_config=text, vision_config=PICTURE, projection_dim=WIDTH)
        return t.MetaClip2Model(config), t.CLIPProcessor(image_processor("clip", **CROP), tokenizer), short
    if family == "siglip":
        tokenizer = siglip_tokenizer()
        text = TEXT | {"vocab_size": len(tokenizer), "projection_size": 40}
        config = t.SiglipConfig(text_config=text, vision_config=PICTURE)
        return t.SiglipModel(config), t.SiglipProcessor(image_processor("siglip", **SQUARE), tokenizer), to_64
    if family == "siglip2":
        tokenizer = siglip2_tokenizer()
        text = TEXT | {"vocab_size": len(tokenizer), "projection_size": 40}
        vision = {key: value for key, value in PICTURE.items() if key != "image_size"} | {"num_patches": 16}
        config = t.Siglip2Config(text_config=text, vision_config=vision)
        pictures = image_processor("siglip2", patch_size=8, max_num_patches=20)
        return t.Siglip2Model(config), t.Siglip2Processor(pictures, tokenizer), to_64
    if family == "chinese_clip":
        tokenizer = bert_tokenizer()
        text = TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
        config = t.ChineseCLIPConfig(text_config=text, vision_config=PICTURE, projection_dim=WIDTH)
        pictures = image_processor("chinese_clip", **SQUARE, crop_size={"height": 32, "width": 32})
        return t.ChineseCLIPModel(config), t.ChineseCLIPProcessor(pictures, tokenizer), short
    if family == "altclip":
        tokenizer = xlm_tokenizer(max_length=10**30)  # the table of positions alone bounds it
        text = TEXT | {"vocab_size": len(tokenizer), "project_dim": 20, "max_position_embeddings": 66}
        config = t.AltCLIPConfig(text_config=text, vision_config=PICTURE, projection_dim=WIDTH)
        pictures = image_processor("clip", **CROP)
        return t.AltCLIPModel(config), t.AltCLIPProcessor(pictures, tokenizer), short | {"max_length": 64}
    if family == "align":
        tokenizer = bert_tokenizer(max_length=512)
        text = TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": 128}
        config = t.AlignConfig(text_config=text, vision_config=LITE, projection_dim=WIDTH)
        pictures = image_processor(
            "efficientnet",
            size={"height": 50, "width": 50},
            crop_size={"height": 48, "width": 48},
            do_center_crop=True,
        )
        return t.AlignModel(config), t.AlignProcessor(pictures, tokenizer), to_64
    if family == "vision-text-dual-encoder":
        tokenizer = bert_tokenizer()
        text = t.BertConfig(**TEXT, vocab_size=len(tokenizer), max_position_embeddings=64)
        config = t.VisionTextDualEncoderConfig.from_vision_text_configs(
            t.ViTConfig(**PICTURE), text, projection_dim=WIDTH
        )
        pictures = image_processor("vit", **SQUARE)
        return t.VisionTextDualEncoderModel(config), t.VisionTextDualEncoderProcessor(pictures, tokenizer), short
    if family == "aimv2":
        tokenizer = clip_tokenizer()
        text = TEXT | {"eos_token_id": len(tokenizer) - 1, "vocab_size": len(tokenizer)}
        config = t.Aimv2Config(text_config=text, vision_config=PICTURE, projection_dim=WIDTH)
        return t.Aimv2Model(config), t.CLIPProcessor(image_processor("clip", **CROP), tokenizer), short
    if family == "clipseg":  # no row of ours: through its two methods
        tokenizer = clip_tokenizer()
        ends = {"eos_token_id": 2, "vocab_size": len(tokenizer)}
        config = t.CLIPSegConfig(text_config=TEXT | ends, vision_config=PICTURE, projection_dim=WIDTH)
        return t.CLIPSegModel(config), t.CLIPSegProcessor(image_processor("vit", **SQUARE), tokenizer), short
    raise ValueError(family)


def build(family: str, folder: Path, vision_config: dict | None = None):
    """Save the family's small checkpoint.

    Returns:
        Its model in eval mode, its processor, and its own options for captions.
    """
    torch.manual_seed(0)
    model, processor, options = _parts(family, vision_config or {})
    _randomize(model)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor, options


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
