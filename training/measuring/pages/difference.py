"""When a measured difference may be called one: the rule that tables and pages share. No tensors, so that the
results page is made in no time.
"""

from collections.abc import Mapping
from typing import Any


def decided(facts: Mapping[str, Any]) -> bool:
    """Whether interval and, where there is one, McNemar's test say so: few disagreements flatter the
    bootstrap (4 to 0 of 256 has p = 0.125).
    """
    return (facts["low"] > 0 or facts["high"] < 0) and (facts["mcnemar"] is None or facts["mcnemar"] < 0.05)
