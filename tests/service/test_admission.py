import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.admission import Admission
from service.metrics import Metrics
from service.problems import Problem


def test_beyond_the_budget_is_refused_at_once_with_a_time_to_come_back() -> None:
    admission = Admission(3, Metrics())
    with admission.images(2):
        with pytest.raises(Problem) as refused, admission.images(2):
            pass
        assert refused.value.code == "queue-full"
        assert 1 <= int(refused.value.headers["Retry-After"]) <= 60
        with admission.images(1):
            pass
    with admission.images(3):
        pass


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=20))
def test_the_budget_is_whole_again_after_any_mix_of_outcomes(requests: list[tuple[int, bool]]) -> None:
    metrics = Metrics()
    admission = Admission(8, metrics)
    with contextlib.ExitStack() as held:
        for count, fails in requests:
            with contextlib.suppress(Problem, ZeroDivisionError):
                if fails:
                    with admission.images(count):
                        raise ZeroDivisionError
                else:
                    held.enter_context(admission.images(count))
    assert metrics.registry.get_sample_value("robustclip_queue_images") in (0, None)
    with admission.images(8):
        assert metrics.registry.get_sample_value("robustclip_queue_images") == 8
