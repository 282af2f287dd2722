"""Every kind of contradiction between rows is named, and none is seen where numbers fall as they must."""

from typing import Any

import measured
import pytest
from measured import changed

from robustclip.measuring import wilson
from training.measuring.evaluation.checks import fired, headlines, masking_checks
from training.measuring.schema.evaluation import Result

N = 200


def row(threat: str, eps: str, right: int, **facts: Any) -> Result:
    share = wilson(right, N)._asdict()
    numbers = {"accuracy": share.pop("value"), **share}
    return Result.model_validate(measured.row(threat=threat, eps=eps, n=N, **numbers, **facts))


def honest() -> list[Result]:
    fell = {"noise": 0, "margin-pgd": 3, "square": 0}
    return [
        row("clean", "0", 160),
        *(row("T0", eps, right) for eps, right in (("1/255", 140), ("4/255", 100))),
        *(row("T0b", eps, right) for eps, right in (("1/255", 150), ("4/255", 130))),
        *(row("T1", eps, right) for eps, right in (("1/255", 120), ("4/255", 50))),
        *(row("static", eps, right) for eps, right in (("1/255", 110), ("4/255", 70))),
        *(row("black-box", eps, right) for eps, right in (("1/255", 115), ("4/255", 90))),
        *(row("T2", eps, right) for eps, right in (("1/255", 100), ("4/255", 20), ("64/255", 0))),
        *(
            row("T3", eps, right, fell_to=fell)
            for eps, right in (("1/255", 97), ("4/255", 17), ("64/255", 0))
        ),
    ]


def test_more_steps_that_find_less_are_seen() -> None:
    fewer = [row("T2", "1/255", right, steps=steps) for steps, right in ((1, 130), (10, 105))]
    checks = masking_checks([*honest(), *fewer])
    assert sum("steps leaves more" in check.sentence for check in checks) == 2
    assert fired(checks) == []
    (lost,) = fired(masking_checks([*honest(), row("T2", "1/255", 60, steps=10)]))
    assert (lost.id, lost.rows) == ("M8", (("T2", "1/255"), ("T2", "1/255")))
    assert "T2 of 100 steps leaves more standing than of 10" in lost.sentence
    assert (
        fired(masking_checks([*honest(), row("T2", "1/255", 60, steps=10, draws=4)])) == []
    )  # other draws: not the steps' doing


def with_row(other: Result) -> list[Result]:
    return [other if (found.threat, found.eps) == (other.threat, other.eps) else found for found in honest()]


def test_numbers_that_fall_as_they_must_raise_nothing_and_make_headlines() -> None:
    checks = masking_checks(honest())
    assert {check.id for check in checks} == {"M5", "M6", "M7", "M8", "M13", "M15"}
    assert fired(checks) == []
    found = [(headline.eps, headline.accuracy, headline.refused) for headline in headlines(honest(), checks)]
    assert found == [
        ("1/255", 0.485, ()),
        ("4/255", 0.085, ()),
        ("64/255", 0.0, ()),
    ]


@pytest.mark.parametrize(
    ("other", "identifier", "refused"),
    [
        (row("T2", "1/255", 180), "M15", ["1/255", "4/255", "64/255"]),
        (row("T0", "4/255", 0), "M5", ["4/255"]),
        (row("T0b", "4/255", 0), "M5", ["4/255"]),
        (row("T1", "4/255", 1), "M5", ["4/255"]),
        (row("static", "4/255", 0), "M5", ["4/255"]),
        (row("black-box", "4/255", 0), "M6", ["4/255"]),
        (row("T3", "4/255", 40), "M15", ["4/255"]),
        (row("T2", "4/255", 120), "M8", ["1/255", "4/255", "64/255"]),
        (row("T3", "64/255", 30), "M13", ["4/255", "64/255"]),
        (row("T3", "4/255", 17, fell_to={"noise": 3, "square": 0}), "M7", ["4/255"]),
        (row("T3", "4/255", 17, fell_to={"noise": 0, "square": 30}), "M6", ["4/255"]),
    ],
)
def test_a_contradiction_is_named_and_forbids_the_headline(
    other: Result, identifier: str, refused: list[str]
) -> None:
    rows = with_row(other)
    checks = masking_checks(rows)
    raised = fired(checks)
    assert identifier in {check.id for check in raised}
    assert all(check.number > check.threshold for check in raised)
    forbidden = [headline for headline in headlines(rows, checks) if headline.refused]
    assert other.eps in {headline.eps for headline in forbidden}
    assert {headline.eps for headline in forbidden} <= set(refused)
    assert all(headline.accuracy is None for headline in forbidden)


def test_chance_is_no_contradiction() -> None:
    assert fired(masking_checks(with_row(row("T1", "4/255", 17)))) == []


def test_of_several_attacks_of_a_level_the_one_on_most_pictures_with_most_draws_counts() -> None:
    few = row("T2", "4/255", 150, draws=1, steps=20)
    for rows in ([*honest(), few], [few, *honest()]):
        assert fired(masking_checks(rows)) == []
    more = row("T2", "4/255", 150, draws=99)
    assert {check.id for check in fired(masking_checks([more, *honest()]))} == {"M5", "M6", "M8"}


def test_a_subject_answers_for_itself_alone() -> None:
    other = [changed(found, prompt_set="learned@2") for found in with_row(row("T0", "4/255", 0))]
    checks = masking_checks([*honest(), *other])
    assert {check.prompt_set for check in fired(checks)} == {"learned@2"}
    refused = {
        (headline.prompt_set, headline.eps)
        for headline in headlines([*honest(), *other], checks)
        if headline.refused
    }
    assert refused == {("learned@2", "4/255")}


def test_without_t3_there_is_no_headline() -> None:
    rows = [found for found in honest() if found.threat != "T3"]
    assert headlines(rows, masking_checks(rows)) == []


def test_rows_of_other_pictures_contradict_nothing() -> None:
    hard = changed(row("clean", "0", 60), n=4 * N)  # the whole file, harder than the subset that is attacked
    assert "M15" not in {check.id for check in masking_checks([hard, row("T2", "1/255", 100)])}
    checks = masking_checks([hard, row("clean", "0", 60), row("T2", "1/255", 100)])
    assert [check.id for check in fired(checks)] == ["M15"]
    assert (
        masking_checks(
            [
                changed(row("T0", "1/255", 10), n=4 * N),
                row("T2", "1/255", 100),
                changed(row("T2", "2/255", 190), n=4 * N),
            ]
        )
        == []
    )


def test_what_nobody_measured_is_not_checked() -> None:
    assert masking_checks([row("clean", "0", 160)]) == []
