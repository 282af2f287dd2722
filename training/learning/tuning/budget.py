"""A cap on a run's cost in charged image passes (F + 2 B), to compare methods at the same cost. Text passes
are counted, not capped.
"""

from robustclip.errors import InvalidInput
from training.learning.objectives import AnyMethod


def within(objective: AnyMethod, *, pictures: int, max_passes: int) -> AnyMethod:
    """The objective with as many of its epochs as the cap allows; its schedule then fits them. 0 is no cap.

    InvalidInput if not even one epoch fits.
    """
    if not max_passes or objective.bill(pictures).charged <= max_passes:
        return objective
    fitting = [
        epochs
        for epochs in range(1, objective.epochs)
        if _shortened(objective, epochs).bill(pictures).charged <= max_passes
    ]
    if not fitting:
        least = _shortened(objective, 1).bill(pictures).charged
        raise InvalidInput(
            f"one epoch on {pictures} pictures takes {least:,} image passes, preparing included; "
            f"{max_passes:,} are allowed.",
            field="--max-passes",
            help="Allow more, or take fewer --shots.",
        )
    return _shortened(objective, max(fitting))


def _shortened(objective: AnyMethod, epochs: int) -> AnyMethod:
    return objective.model_copy(update={"epochs": epochs})
