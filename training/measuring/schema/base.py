"""A line of results, which is an object in the JSON, and what lines of several kinds have in common."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

Key = TypeVar("Key")
Item = TypeVar("Item")


class Line(BaseModel):
    """Written as it was given: a key that is left out stays left out, and keys keep their order. So what is
    read and written again has the same bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    _keys: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="wrap")
    @classmethod
    def _remember_keys(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        line = handler(values)
        if isinstance(values, Mapping):
            line._keys = tuple(values)  # pyright: ignore[reportUnknownArgumentType]
        return line

    @model_serializer(mode="wrap")
    def _in_order(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = handler(self)
        return {name: values[name] for name in self._keys if name in values}

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_unset=True)

    def part(self, *names: str) -> dict[str, Any]:
        """Of these fields those that were given, with their values, in this order."""
        return {name: getattr(self, name) for name in names if name in self.model_fields_set}

    def key(self, *names: str) -> tuple[str, ...]:
        """The values of these fields as text, by which lines can be grouped."""
        return tuple(str(getattr(self, name)) for name in names)


class Interval(Line):
    """Bounds of 95 % for another number of the line; fractions of 1."""

    low: float
    high: float


class Accuracy(Interval):
    accuracy: float


class Difference(Interval):
    """One accuracy less another on the same pictures; `mcnemar`: the p-value of McNemar's test, None where it
    does not apply.
    """

    difference: float
    mcnemar: float | None

    @property
    def decided(self) -> bool:
        """Whether interval and, where there is one, McNemar's test say so: few disagreements flatter the
        bootstrap (4 to 0 of 256 has p = 0.125).
        """
        return (self.low > 0 or self.high < 0) and (self.mcnemar is None or self.mcnemar < 0.05)


class Pictures(Line):
    """The image tower and the split that a line is about, and the defense before the tower."""

    backbone: str
    split: str
    classes: str | None = None
    among: str | None = None
    defense: str

    @property
    def split_words(self) -> str:
        """Split, and which of its classes."""
        return self.split + (f" ({self.classes} among {self.among})" if self.classes is not None else "")

    def behind(self, name: str) -> str:
        """A prompt set's name with the defense that it stands behind."""
        return name if self.defense == "none" else f"{name} behind {self.defense}"


class OnData(Pictures):
    """What is about one data set."""

    data: str

    @property
    def data_name(self) -> str:
        return self.data

    @property
    def data_words(self) -> str:
        """Data set and split, and which of its classes."""
        return f"{self.data} {self.split_words}"

    @property
    def group(self) -> str:
        """The tower and the pictures: what a table is about."""
        return f"{self.backbone}, {self.data_words}"


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Items that have a key in common, in the order in which it first appears."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
