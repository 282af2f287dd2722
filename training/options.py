"""What the options of commands have in common."""

from collections.abc import Iterable


def words(values: Iterable[str]) -> list[str]:
    """The values of an option that takes commas and may be repeated."""
    return [word.strip() for value in values for word in value.split(",") if word.strip()]
