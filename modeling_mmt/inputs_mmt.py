"""Checks of captions and clip features; errors name the position of the invalid one."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs")  # white space, control characters, joiners, marks of direction


class ItemError(ValueError):
    """One of several captions or clips cannot be used.

    Args:
        kind: `"caption"` or `"clip"`.
        name: its position among the arguments, or its id.
        problem: what is wrong and what helps, as the rest of a sentence that the name begins.
    """

    def __init__(self, kind: str, name: Any, problem: str):
        super().__init__(kind, name, problem)
        self.kind, self.name, self.problem = kind, name, problem

    def __str__(self) -> str:
        return f"{self.kind} {self.name} {self.problem}"

    def named(self, name: Any) -> ItemError:
        """The same of another name, as whoever gave the item knows it."""
        return ItemError(self.kind, name, self.problem)


def is_blank(text: str | None) -> bool:
    """Whether there is nothing to see of a text: white space, zero-width characters and control characters alone."""
    return text is None or all(unicodedata.category(character) in INVISIBLE for character in text)


def clean_caption(caption: str, index: int = 0) -> str:
    """Collapse white space and drop control characters; joiners stay, without which some scripts read differently.

    Raises:
        ItemError: not a string, or nothing visible in it; names the caption's position.
    """
    if not isinstance(caption, str):
        raise ItemError("caption", index, f"is {type(caption).__name__} {caption!r}; give a string")
    if is_blank(caption):
        raise ItemError("caption", index, f"is empty: {caption!r}")
    return " ".join("".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in caption).split())


def checked_clip(value: Any, width: int, index: int) -> torch.Tensor:
    """One clip's features as `(F, width)` float32.

    Args:
        value: an array, tensor or nested list of numbers.
        width: `D_v` of a step.
        index: the clip's position, for the message.

    Raises:
        ItemError: it is no such array, has no step, another width, or a value that is not finite.
    """
    import torch  # captions are checked without

    try:
        if isinstance(value, list | tuple) and hasattr(next(iter(value), None), "__array__"):
            value = torch.stack([torch.as_tensor(step) for step in value])
        clip = torch.as_tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ItemError(
            "clip",
            index,
            f"is not an array of (steps, {width}) numbers, but {type(value).__name__}: pictures and videos go first "
            "through the feature extractor that the card names, or to a model that has vision encoders "
            "(MMTModel.from_encoders)",
        ) from error
    if isinstance(value, list) and clip.dim() == 1 and len(clip) % width == 0:
        clip = clip.view(-1, width)  # sentence-transformers flattens a dataset's list of lists
    if clip.dim() != 2 or clip.shape[1] != width:
        raise ItemError("clip", index, f"has shape {tuple(clip.shape)}; expected (steps, {width})")
    if len(clip) == 0:
        raise ItemError("clip", index, "has no steps; leave clips without features out")
    if not torch.isfinite(clip).all():
        raise ItemError("clip", index, "holds a NaN or an infinity; extract its features again")
    return clip
