"""EfficientNet-Lite: SAME padding against a naive computation, shapes, Auto classes."""

import math

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModel

from modeling_mmt import EfficientNetLiteConfig, EfficientNetLiteModel
from modeling_mmt.efficientnet_lite_mmt import EfficientNetLiteBlock, SamePaddingConv2d


def tiny_config(**overrides):
    fields = {
        "stem_dim": 4,
        "stage_dims": [4, 6, 8],
        "stage_depths": [1, 2, 1],
        "stage_strides": [1, 2, 2],
        "stage_kernels": [3, 5, 3],
        "expand_ratios": [1, 2, 3],
        "hidden_size": 12,
    }
    return EfficientNetLiteConfig(**(fields | overrides))


def tiny_model(**overrides):
    torch.manual_seed(0)
    model = EfficientNetLiteModel(tiny_config(**overrides)).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "running_var" in name:
                value.uniform_(0.5, 2)
            elif value.dim() == 4:
                value.normal_(std=1.5 * value[0].numel() ** -0.5)
            elif value.is_floating_point():
                value.normal_(std=0.3).add_(1 if name.endswith("weight") else 0)
    return model


def naive_same_convolution(picture, weight, stride):
    """TensorFlow's rule, one output at a time; a pixel outside the picture is zero."""
    (height, width), kernel = picture.shape[-2:], weight.shape[-1]
    out = torch.zeros(weight.shape[0], math.ceil(height / stride), math.ceil(width / stride), dtype=picture.dtype)
    top = max((out.shape[1] - 1) * stride + kernel - height, 0) // 2
    left = max((out.shape[2] - 1) * stride + kernel - width, 0) // 2
    for y in range(out.shape[1]):
        for x in range(out.shape[2]):
            for dy in range(kernel):
                for dx in range(kernel):
                    row, column = y * stride + dy - top, x * stride + dx - left
                    if 0 <= row < height and 0 <= column < width:
                        out[:, y, x] += weight[:, :, dy, dx] @ picture[:, row, column]
    return out


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(6, 6), (7, 6), (5, 9), (1, 2)])
def test_same_padding_equals_a_naive_convolution(kernel, stride, size):
    torch.manual_seed(0)
    convolution = SamePaddingConv2d(2, 3, kernel, stride=stride, bias=False, dtype=torch.float64)
    picture = torch.randn(2, *size, dtype=torch.float64)
    with torch.no_grad():
        wanted = naive_same_convolution(picture, convolution.weight, stride)
        torch.testing.assert_close(convolution(picture[None])[0], wanted)


def test_the_odd_pixel_of_padding_goes_to_the_bottom_and_the_right():
    convolution = SamePaddingConv2d(1, 1, 3, stride=2, bias=False)
    torch.nn.init.ones_(convolution.weight)
    picture = torch.arange(16.0).view(1, 1, 4, 4)
    padded = functional.pad(picture, (0, 1, 0, 1))
    torch.testing.assert_close(convolution(picture), functional.conv2d(padded, convolution.weight, stride=2))
    symmetric = functional.conv2d(picture, convolution.weight, stride=2, padding=1)
    assert (convolution(picture) - symmetric).abs().max() > 1


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (9, 64), (1, 1)])
def test_any_picture_size_gives_one_vector(height, width):
    model = tiny_model()
    with torch.no_grad():
        output = model(torch.randn(2, 3, height, width))
    assert output.last_hidden_state.shape == (2, 12, math.ceil(height / 8), math.ceil(width / 8))
    assert output.pooler_output.shape == (2, 12)
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state.flatten(2).mean(dim=-1))


def test_the_default_is_lite0():
    """The published count is 4,652,008 with the classifier of 1,000 labels, which has 1,281,000 of them."""
    with torch.device("meta"):
        model = EfficientNetLiteModel(EfficientNetLiteConfig())
    assert sum(p.numel() for p in model.parameters()) == 4_652_008 - 1_281_000
    assert model(torch.empty(1, 3, 224, 224, device="meta")).last_hidden_state.shape == (1, 1280, 7, 7)


def test_a_picture_does_not_depend_on_its_batch_mates():
    model, pictures = tiny_model(), torch.randn(3, 3, 24, 24)
    with torch.no_grad():
        together = model(pictures).pooler_output
        torch.testing.assert_close(model(pictures[1:2]).pooler_output, together[1:2])
    assert torch.pdist(together).min() > 1e-2


@pytest.mark.parametrize(("dim_in", "dim_out", "stride"), [(4, 4, 1), (4, 6, 1), (4, 4, 2)])
def test_a_block_has_a_skip_only_where_the_shape_is_kept(dim_in, dim_out, stride):
    block = EfficientNetLiteBlock(tiny_config(), dim_in, dim_out, 3, stride, 2).eval()
    with torch.no_grad():
        block.layers[-1].weight.zero_()  # the last norm: the branch gives zero
        picture = torch.randn(1, dim_in, 6, 6)
        output = block(picture)
    assert torch.equal(output, picture) if (dim_in == dim_out and stride == 1) else (output == 0).all()


def test_a_saved_model_loads_equal_through_the_auto_classes(tmp_path):
    model, pictures = tiny_model(), torch.randn(2, 3, 17, 23)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is EfficientNetLiteModel
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == loaded.config.to_dict()
    assert loaded.config.stage_kernels == [3, 5, 3]
    with torch.no_grad():
        assert torch.equal(loaded(pictures).pooler_output, model(pictures).pooler_output)


def test_return_dict_false_gives_a_tuple():
    model, pictures = tiny_model(), torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        hidden, pooled = model(pictures, return_dict=False)
        assert torch.equal(pooled, model(pictures).pooler_output)
    assert hidden.shape == (1, 12, 2, 2)
