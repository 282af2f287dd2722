import re
from datetime import UTC, datetime

from prompts_store.manifest import PromptManifest, Ref, Result
from robustclip.types import Cost
from training.learning.tuning.checkpoint import Epoch
from training.learning.tuning.publish import Account, training_page

REF = Ref("learned", "0123456789ab")
RESULT = Result(
    data="things",
    split="train:validation",
    threat="T2",
    eps="2/255",
    n=40,
    accuracy=0.5,
    low=0.35,
    high=0.65,
    seed=0,
)


def page(*, restarts: int = 0, note: str = "") -> str:
    manifest = PromptManifest(
        name="learned",
        objective={"kind": "capt", "eps": 2 / 255},
        templates=("{}.",),
        labels=("a", "b"),
        dataset="things",
        shots=4,
        seed=1,
        results=(RESULT,),
        code_version="0.1.0",
        created_at=datetime(2026, 11, 23, tzinfo=UTC),
        note=note,
    )
    history = [
        Epoch(
            0.1 / number, {"clean": 1 / number, "consistency": 0.5}, 0.5, None, {"alpha": 0.4}, Cost(8, 8), 1
        )
        for number in (1, 2, 3)
    ]
    return training_page(
        REF, manifest, history, Account(8, Cost(24, 24), 3, 0.0, 2.5, restarts, {"teacher": [RESULT]})
    )


def test_a_page_needs_nothing_from_elsewhere() -> None:
    text = page()
    assert "<script" not in text
    assert not re.findall(r"(?:src|href|url|@import)\s*[=(]", text)


def test_a_page_tells_what_was_learned_measured_and_spent() -> None:
    text = page()
    for fact in (
        "learned@0123456789ab",
        "things, 8 pictures of 2 labels, 4 shots",
        "24 forward, 24 backward (72 charged)",
        "50.0% [35.0%, 65.0%]",
    ):
        assert fact in text
    assert "teacher (not published)" in text
    assert text.count("<svg") == 4
    assert "began again" not in text
    assert "began again 2 time(s)" in page(restarts=2)


def test_what_people_wrote_is_escaped() -> None:
    text = page(note='<img src=x onerror="alert(1)">')
    assert "<img" not in text
    assert "&lt;img" in text
