"""S3D and R(2+1)D with random weights under the published files' names; no real file was at hand."""

import torch
from pytest import fixture, mark, raises
from torch import nn
from torch.nn import functional

from modeling_mmt.extraction.video_backbones import S3D, BackboneError, R2Plus1D34, load_backbone


def conv_bn(conv, bn, out, into, *kernel):
    shapes = {f"{conv}.weight": (out, into, *kernel)}
    shapes |= {f"{bn}.{name}": (out,) for name in ("weight", "bias", "running_mean", "running_var")}
    return shapes | {f"{bn}.num_batches_tracked": ()}


def s3d_shapes():
    """Names and shapes of s3d_howto100m.pth, by the description in its repository (s3dg.py at b8cd0bb)."""

    def one(name, into, out, kernel=(1, 1, 1)):
        return conv_bn(f"{name}.conv1", f"{name}.bn1", out, into, *kernel)

    def separable(name, into, out):
        first = conv_bn(f"{name}.conv1", f"{name}.bn1", out, into, 1, 3, 3)
        return first | conv_bn(f"{name}.conv2", f"{name}.bn2", out, out, 3, 1, 1)

    def linear(name, into, out):
        return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}

    shapes = one("conv1", 24, 64, (2, 4, 4)) | one("conv_2b", 64, 64) | separable("conv_2c", 64, 192)
    shapes |= linear("gating.fc", 192, 192)
    blocks = {
        "3b": (192, 64, 96, 128, 16, 32, 32), "3c": (256, 128, 128, 192, 32, 96, 64),
        "4b": (480, 192, 96, 208, 16, 48, 64), "4c": (512, 160, 112, 224, 24, 64, 64),
        "4d": (512, 128, 128, 256, 24, 64, 64), "4e": (512, 112, 144, 288, 32, 64, 64),
        "4f": (528, 256, 160, 320, 32, 128, 128), "5b": (832, 256, 160, 320, 32, 128, 128),
        "5c": (832, 384, 192, 384, 48, 128, 128),
    }  # fmt: skip
    for block, (into, b0, b1a, b1b, b2a, b2b, b3) in blocks.items():
        name = f"mixed_{block}"
        shapes |= one(f"{name}.conv_b0", into, b0) | one(f"{name}.conv_b1_a", into, b1a)
        shapes |= separable(f"{name}.conv_b1_b", b1a, b1b) | one(f"{name}.conv_b2_a", into, b2a)
        shapes |= separable(f"{name}.conv_b2_b", b2a, b2b) | one(f"{name}.conv_b3_b", into, b3)
        for branch, width in enumerate((b0, b1b, b2b, b3)):
            shapes |= linear(f"{name}.gating_b{branch}.fc", width, width)
    shapes |= linear("fc", 1024, 512) | linear("text_module.fc1", 300, 2048) | linear("text_module.fc2", 2048, 512)
    return shapes | {"text_module.word_embd.weight": (66250, 300)}


def r2plus1d_shapes(num_classes=359):
    """Names and shapes of r2plus1d_34_clip32_ig65m_from_scratch.pth (ig65m/models.py at fc749e2, torchvision 0.4)."""
    shapes = conv_bn("stem.0", "stem.1", 45, 3, 1, 7, 7) | conv_bn("stem.3", "stem.4", 64, 45, 3, 1, 1)
    into = 64
    widths = {64: 144, 128: 288, 256: 576, 512: 1152}
    first_widths = {128: 230, 256: 460, 512: 921}  # where a stage begins
    for layer, (depth, out) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for block in range(depth):
            name = f"layer{layer}.{block}"
            between = first_widths.get(out, 144) if block == 0 else widths[out]
            for conv, source, width in (("conv1", into, between), ("conv2", out, widths[out])):
                shapes |= conv_bn(f"{name}.{conv}.0.0", f"{name}.{conv}.0.1", width, source, 1, 3, 3)
                shapes |= conv_bn(f"{name}.{conv}.0.3", f"{name}.{conv}.1", out, width, 3, 1, 1)
            if into != out:
                shapes |= conv_bn(f"{name}.downsample.0", f"{name}.downsample.1", out, into, 1, 1, 1)
            into = out
    return shapes | {"fc.weight": (num_classes, 512), "fc.bias": (num_classes,)}


def random_weights(shapes):
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(7)
        elif len(shape) == 1:
            weights[name] = torch.rand(shape, generator=generator) + (0.5 if "var" in name or "weight" in name else 0)
        elif "text_module" in name:
            weights[name] = torch.zeros(()).expand(shape)  # as large as the file's, and no memory
        else:
            weights[name] = (
                torch.randn(shape, generator=generator) * (2 / (torch.Size(shape).numel() / shape[0])) ** 0.5
            )
    return weights


@fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for name, shapes in (("s3d", s3d_shapes()), ("r2plus1d", r2plus1d_shapes())):
        torch.save(random_weights(shapes), folder / f"{name}.pth")
    return folder


def convolve(weights, name, bn, hidden, eps, **how):
    hidden = functional.conv3d(hidden, weights[f"{name}.weight"], **how)
    mean, var, gain, bias = (weights[f"{bn}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    return functional.batch_norm(hidden, mean, var, gain, bias, eps=eps)


def test_r2plus1d_is_its_weights_run_by_hand(files):
    model, weights = load_backbone(files / "r2plus1d.pth"), torch.load(files / "r2plus1d.pth", weights_only=True)
    assert isinstance(model, R2Plus1D34) and (model.image_size, model.frames_per_step) == (112, 32)
    video = torch.rand(1, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1))

    def two(name, hidden, stride):
        how = {"stride": (1, stride, stride), "padding": (0, 1, 1)}
        hidden = convolve(weights, f"{name}.0.0", f"{name}.0.1", hidden, 1e-3, **how).relu()
        return convolve(weights, f"{name}.0.3", f"{name}.1", hidden, 1e-3, stride=(stride, 1, 1), padding=(1, 0, 0))

    mean, std = (
        torch.tensor(x).view(3, 1, 1, 1) for x in ([0.43216, 0.394666, 0.37645], [0.22803, 0.22145, 0.216989])
    )
    hidden = (video - mean) / std
    hidden = convolve(weights, "stem.0", "stem.1", hidden, 1e-3, stride=(1, 2, 2), padding=(0, 3, 3)).relu()
    hidden = convolve(weights, "stem.3", "stem.4", hidden, 1e-3, padding=(1, 0, 0)).relu()
    for layer, depth in enumerate((3, 4, 6, 3), start=1):
        for block in range(depth):
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            inner = two(f"{name}.conv2", two(f"{name}.conv1", hidden, stride).relu(), 1)
            if f"{name}.downsample.0.weight" in weights:
                hidden = convolve(weights, f"{name}.downsample.0", f"{name}.downsample.1", hidden, 1e-3, stride=stride)
            hidden = (hidden + inner).relu()
    with torch.no_grad():
        found = model(((video - mean) / std).transpose(1, 2))
    assert found.shape == (1, 512) and torch.allclose(found, hidden.mean((2, 3, 4)), rtol=1e-4, atol=1e-5)


def test_s3d_is_its_weights_run_by_hand(files):
    model, weights = load_backbone(files / "s3d.pth"), torch.load(files / "s3d.pth", weights_only=True)
    assert isinstance(model, S3D) and (model.image_size, model.frames_per_step) == (224, 32)
    video = torch.rand(1, 3, 8, 64, 64, generator=torch.Generator().manual_seed(1))

    def linear(name, hidden):
        return functional.linear(hidden, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def gate(name, hidden):
        return hidden * linear(f"{name}.fc", hidden.mean((2, 3, 4))).sigmoid()[..., None, None, None]

    def one(name, hidden):
        return convolve(weights, f"{name}.conv1", f"{name}.bn1", hidden, 1e-5).relu()

    def separable(name, hidden):
        hidden = convolve(weights, f"{name}.conv1", f"{name}.bn1", hidden, 1e-5, padding=(0, 1, 1)).relu()
        return convolve(weights, f"{name}.conv2", f"{name}.bn2", hidden, 1e-5, padding=(1, 0, 0)).relu()

    def pool(hidden, kernel, stride):
        """TensorFlow's SAME: outputs ceil(size / stride), the odd padding behind; never the padding's value."""
        padding = []
        for size, k, s in zip(hidden.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):
            total = max((-(-size // s) - 1) * s + k - size, 0)
            padding += [total // 2, total - total // 2]
        return functional.max_pool3d(functional.pad(hidden, padding, value=-1e9), kernel, stride)

    blocks = [
        video[:, :, t::2, y::2, x::2] for t in range(2) for y in range(2) for x in range(2)
    ]  # channel = place in the 2 x 2 x 2 block, then colour
    hidden = functional.pad(torch.cat(blocks, dim=1), (1, 2, 1, 2, 0, 1))  # SAME: the odd place behind
    hidden = pool(convolve(weights, "conv1.conv1", "conv1.bn1", hidden, 1e-5).relu(), (1, 3, 3), (1, 2, 2))
    hidden = gate("gating", separable("conv_2c", one("conv_2b", hidden)))
    hidden = pool(hidden, (1, 3, 3), (1, 2, 2))
    for block in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c"):
        if block == "4b":
            hidden = pool(hidden, (3, 3, 3), (2, 2, 2))
        if block == "5b":
            hidden = pool(hidden, (2, 2, 2), (2, 2, 2))
        name = f"mixed_{block}"
        branches = [
            one(f"{name}.conv_b0", hidden),
            separable(f"{name}.conv_b1_b", one(f"{name}.conv_b1_a", hidden)),
            separable(f"{name}.conv_b2_b", one(f"{name}.conv_b2_a", hidden)),
            one(f"{name}.conv_b3_b", pool(hidden, (3, 3, 3), (1, 1, 1))),
        ]
        hidden = torch.cat([gate(f"{name}.gating_b{n}", branch) for n, branch in enumerate(branches)], dim=1)
    with torch.no_grad():
        found, mixed = model(video.transpose(1, 2)), model.mixed(video.transpose(1, 2))
    assert mixed.shape == (1, 1024) and torch.allclose(mixed, hidden.mean((2, 3, 4)), rtol=1e-4, atol=1e-5)
    assert torch.allclose(found, linear("fc", mixed), rtol=1e-4, atol=1e-5)


@mark.parametrize(("num_classes", "frames"), [(359, 32), (487, 8), (400, 32)])
def test_the_classifier_tells_which_of_the_r2plus1d_files_it_is(num_classes, frames):
    with torch.device("meta"):
        assert R2Plus1D34(num_classes).frames_per_step == frames


def test_the_second_convolution_of_a_stage_has_the_caffe2_width():
    with torch.device("meta"):
        model = R2Plus1D34()
    assert [model.get_submodule(f"layer{n}.0.conv2.0.0").out_channels for n in (1, 2, 3, 4)] == [144, 288, 576, 1152]
    assert [model.get_submodule(f"layer{n}.0.conv1.0.0").out_channels for n in (1, 2, 3, 4)] == [144, 230, 460, 921]
    assert {bn.eps for bn in model.modules() if isinstance(bn, nn.BatchNorm3d)} == {1e-3}


def test_a_file_with_a_weight_missing_left_over_or_of_another_shape_is_refused(tmp_path):
    weights = {name: torch.zeros(()).expand(shape) for name, shape in r2plus1d_shapes().items()}
    changes = [
        ("layer3.2.conv1.1.bias", lambda w: w.pop("layer3.2.conv1.1.bias")),
        ("surplus", lambda w: w.update(surplus=torch.zeros(1))),
        ("stem.0.weight", lambda w: w.update({"stem.0.weight": torch.zeros(45, 3, 1, 3, 3)})),
        ("neither S3D's", lambda w: w.pop("fc.weight")),
    ]
    for words, change in changes:
        changed = dict(weights)
        change(changed)
        torch.save(changed, tmp_path / "changed.pth")
        with raises(BackboneError, match=words.replace(".", r"\.")):
            load_backbone(tmp_path / "changed.pth")


class Dangerous:
    def __reduce__(self):
        return print, ("it ran",)


def test_only_tensors_are_read_of_a_file(tmp_path, capsys):
    torch.save({"fc.weight": Dangerous()}, tmp_path / "bad.pth")
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    for name, words in (("bad", "tensors alone"), ("page", "tensors alone"), ("list", "no state dict")):
        with raises(BackboneError, match=words):
            load_backbone(tmp_path / f"{name}.pth")
    assert "it ran" not in capsys.readouterr().out
    with raises(FileNotFoundError, match="nowhere"):
        load_backbone(tmp_path / "nowhere.pth")
