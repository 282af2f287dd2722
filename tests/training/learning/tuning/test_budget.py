import pytest

from robustclip.errors import InvalidInput
from training.learning.objectives import APD, CAPT, AdvPT, AdvPTPlus, AnyMethod
from training.learning.tuning.config import within


@pytest.mark.parametrize(
    "objective", [CAPT(), APD(), APD(teacher="offline"), AdvPTPlus(refresh=5), CAPT(warm_start=True)]
)
@pytest.mark.parametrize("max_passes", [40_000, 65_432])
def test_a_cap_is_kept_and_used(objective: AnyMethod, max_passes: int) -> None:
    capped = within(objective, pictures=100, max_passes=max_passes)
    assert capped == objective.model_copy(update={"epochs": capped.epochs})
    assert capped.bill(100).charged <= max_passes
    assert (
        capped == objective
        or capped.model_copy(update={"epochs": capped.epochs + 1}).bill(100).charged > max_passes
    )


def test_without_a_cap_nothing_changes() -> None:
    assert within(CAPT(), pictures=100, max_passes=0) == CAPT()
    assert (
        within(AdvPT(), pictures=10, max_passes=10 * 33) == AdvPT()
    )  # a bank costs the same for any number of epochs


def test_a_cap_below_one_epoch_names_the_price() -> None:
    with pytest.raises(InvalidInput, match=r"one epoch on 100 pictures takes 1,600 image passes") as refusal:
        within(CAPT(), pictures=100, max_passes=1_000)
    assert refusal.value.field == "--max-passes"
