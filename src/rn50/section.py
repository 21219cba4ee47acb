"""What makes a class of settings: frozen, typed, checked, and refusing in one line."""

import difflib
import functools
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeVar, dataclass_transform

import pydantic
from pydantic import ConfigDict, Field, ValidationError

from rn50.errors import UsageError

_Section = TypeVar("_Section")

_made: dict[str, Any] = {}


@dataclass_transform(kw_only_default=True, frozen_default=True)
def section(cls: type[_Section]) -> type[_Section]:
    """Make a frozen pydantic dataclass whose refusals are one-line usage errors."""
    made: Any = pydantic.dataclasses.dataclass(
        frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False)
    )(cls)
    checked = made.__init__
    prefix = "" if cls.__name__ == "Run" else f"{cls.__name__.lower()}."

    @functools.wraps(checked)
    def init(self: Any, **values: Any) -> None:
        try:
            checked(self, **values)
        except ValidationError as error:
            raise UsageError(explain(error, prefix)) from None

    made.__init__ = init
    made_section: type[_Section] = made
    _made[cls.__name__] = made_section
    return made_section


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


def explain(error: ValidationError, prefix: str = "") -> str:
    """Return a validation error as one line: name, value, what is allowed, what was meant."""
    return "; ".join(_explain_one(dict(item), prefix) for item in error.errors())


def _explain_one(item: dict[str, Any], prefix: str) -> str:
    name = prefix + ".".join(str(part) for part in item["loc"])
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        close = difflib.get_close_matches(name, _names(_made["Run"]), n=1, cutoff=0.5)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        return f"there is no setting '{name}'{hint}"
    if item["type"] in ("missing", "missing_argument"):
        return f"the setting '{name}' is missing; add it"
    if item["type"] == "value_error":
        return f"{name.removesuffix('.')}: {message}" if name else message
    return f"{name} is {item.get('input')!r}: {message[0].lower()}{message[1:]}"


def _names(section: Any, prefix: str = "") -> list[str]:
    names = []
    for item in fields(section):
        kind = item.type
        if is_dataclass(kind):
            names += _names(kind, f"{prefix}{item.name}.")
        else:
            names.append(prefix + item.name)
    return names
