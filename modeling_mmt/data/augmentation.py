"""Random changes of a clip that keep its captions true, for training from pixels.

Nothing is mirrored and no hue is turned: an arrow that points left, or a red heart, would no longer be what its
caption says. What is drawn holds for a whole clip, so that motion stays what it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

LUMA = (0.299, 0.587, 0.114)


@dataclass
class VideoAugmentation:
    """What a clip is changed by; the fields are torchvision's `RandomAffine`'s and `ColorJitter`'s. 0 changes nothing.

    Args:
        scale: the picture is made larger or smaller by up to this share of its size.
        translate: and moved by up to this share of its sides.
        brightness: factor of every value, within 1 - b to 1 + b.
        contrast: the same of the distance from the mean grey of the clip.
        saturation: the same of the distance from each pixel's grey.
        temporal_jitter: frames that are read in the place of each one that is sampled, of which one is drawn; 1 takes
            the middle one, as evaluation does.

    Raises:
        ValueError: a value is outside its range; names the field.
    """

    scale: float = 0.0
    translate: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    temporal_jitter: int = 1

    def __post_init__(self):
        """Check the ranges."""
        for name in ("scale", "translate", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 0 and below 1")
        if self.temporal_jitter < 1:
            raise ValueError(f"temporal_jitter is {self.temporal_jitter}; give 1 or more")

    def __call__(
        self, clip: Sequence[torch.Tensor], generator: np.random.Generator, num_frames: int
    ) -> list[torch.Tensor]:
        """Change one clip.

        Args:
            clip: `(F, 3, height, width)` uint8 at each vision encoder's size; all are changed alike.
            generator: decides.
            num_frames: frames to leave, of a clip that was read with `temporal_jitter` times as many.

        Returns:
            `(min(F, num_frames), 3, height, width)` uint8 each.
        """
        frames = len(clip[0])
        number = min(frames, num_frames)
        places = ((np.arange(number) + generator.random(number)) * frames / number).astype(int)
        zoom, *shift = generator.uniform(-1, 1, 3) * (self.scale, self.translate, self.translate)
        factors = 1 + generator.uniform(-1, 1, 3) * (self.brightness, self.contrast, self.saturation)
        if self.temporal_jitter > 1:
            clip = [part[torch.from_numpy(places)] for part in clip]
        return [_colored(_moved(part.float(), zoom, shift), *factors).round().byte() for part in clip]


def _moved(frames: torch.Tensor, zoom: float, shift: Sequence[float]) -> torch.Tensor:
    """Bilinear; what comes in from outside is the border's colour."""
    if not (zoom or any(shift)):
        return frames
    size = 1 / (1 + zoom)
    rows = [[size, 0.0, -2 * size * shift[0]], [0.0, size, -2 * size * shift[1]]]
    matrix = torch.tensor(rows, dtype=torch.float32)
    grid = F.affine_grid(matrix.expand(len(frames), -1, -1), list(frames.shape), align_corners=False)
    return F.grid_sample(frames, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _colored(frames: torch.Tensor, brightness: float, contrast: float, saturation: float) -> torch.Tensor:
    weights = torch.tensor(LUMA).view(3, 1, 1)
    frames = (frames * brightness).clamp(0, 255)
    mean = (frames * weights).sum(dim=1).mean()
    frames = (mean + (frames - mean) * contrast).clamp(0, 255)
    grey = (frames * weights).sum(dim=1, keepdim=True)
    return (grey + (frames - grey) * saturation).clamp(0, 255)
