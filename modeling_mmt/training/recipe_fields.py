"""The types of a recipe's fields."""

import difflib
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from modeling_mmt.data.errors import InputError

LEARNING = ("heads", "lora", "all")  # of the encoders; or their last layers


class RecipeError(InputError):
    """A recipe, or one of its values, cannot be run; the message is one line that names file, field and remedy."""


def near(name: str, names: Iterable[str]) -> str:
    """What may be meant by a name that is not known."""
    matches = difflib.get_close_matches(name, list(names), n=2)
    return f"did you mean {' or '.join(matches)}?" if matches else f"known are {', '.join(sorted(names))}"


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("give a number")
    return value


def _learning(value: Any) -> Any:
    layers = value.get("last_layers") if isinstance(value, dict) and len(value) == 1 else None
    if value in (None, *LEARNING) or (type(layers) is int and layers > 0):
        return value
    raise ValueError(f"allowed: {', '.join(LEARNING)}, or last_layers with a number of layers, 1 or more")


def _each_once(languages: list[str]) -> list[str]:
    if len(set(languages)) < len(languages):  # it would be drawn twice as often
        raise ValueError("name each language once")
    return languages


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool)]
Count = Annotated[Int, Field(ge=1)]
Number = Annotated[Int, Field(ge=0)]
Amount = Annotated[Float, Field(ge=0)]
Seconds = Annotated[Float, Field(gt=0)]
Share = Annotated[Float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
Learning = Annotated[dict[str, int] | str | None, BeforeValidator(_learning)]
Languages = Annotated[list[Text], Field(min_length=1), AfterValidator(_each_once)]
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
