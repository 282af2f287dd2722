"""Work that is done ahead of its use."""

from training.foundry.blocks import ahead


def test_what_is_made_ahead_comes_in_order_and_complete() -> None:
    assert list(ahead(lambda a, b: 10 * a + b, [(1, 2), (3, 4), (5, 6)])) == [12, 34, 56]
    assert list(ahead(lambda a: a, [])) == []
