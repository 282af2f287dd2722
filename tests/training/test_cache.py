import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustclip.errors import DataRefused
from robustclip.types import Cost
from training.finished import Rows, cached_rows


class Maker:
    """Squares of indices, which counts what it was asked for."""

    def __init__(self, dies_at: int = 1000) -> None:
        self.asked: list[int] = []
        self.dies_at = dies_at

    def __call__(self, chosen: Tensor) -> Rows:
        if self.dies_at in chosen:
            raise KeyboardInterrupt
        self.asked += chosen.tolist()
        return Rows(
            chosen.float().square()[:, None],
            Cost(len(chosen), 2 * len(chosen)),
            counts={"odd": int((chosen % 2).sum()), "asked": 1},
        )

    def rows(self, folder: Path, indices: Tensor, **key: int) -> Rows:
        return cached_rows(
            folder,
            {"what": "squares", **key},
            indices,
            self,
            chunk=4,
            progress=lambda done, total, what: None,
            what="squares",
        )


def test_rows_are_made_once_and_cost_and_counts_are_remembered(tmp_path: Path) -> None:
    maker = Maker()
    indices = torch.arange(10)
    for _ in range(2):
        rows, cost, _, counts = maker.rows(tmp_path, indices)
        assert rows.flatten().tolist() == [index**2 for index in range(10)]
        assert cost == Cost(10, 20)
        assert counts == {"odd": 5, "asked": 3}
    assert maker.asked == list(range(10))


def test_an_interrupted_run_goes_on_after_its_last_whole_part(tmp_path: Path) -> None:
    indices = torch.arange(10)
    with pytest.raises(KeyboardInterrupt):
        Maker(dies_at=9).rows(tmp_path, indices)
    second = Maker()
    rows, cost, _, _ = second.rows(tmp_path, indices)
    assert second.asked == [8, 9]
    assert rows.flatten().tolist() == [index**2 for index in range(10)]
    assert cost == Cost(10, 20)


def test_another_key_or_other_indices_are_other_rows(tmp_path: Path) -> None:
    maker = Maker()
    maker.rows(tmp_path, torch.arange(4), seed=0)
    maker.rows(tmp_path, torch.arange(4), seed=1)
    maker.rows(tmp_path, torch.tensor([3, 2, 1, 0]), seed=1)
    assert maker.asked == [0, 1, 2, 3, 0, 1, 2, 3, 3, 2, 1, 0]


@pytest.mark.parametrize("keep", [0, 7, 60])
def test_a_damaged_part_is_refused_by_name(tmp_path: Path, keep: int) -> None:
    Maker().rows(tmp_path, torch.arange(10))
    part = next(tmp_path.glob("*/part-00001.safetensors"))
    part.write_bytes(part.read_bytes()[:keep])
    with pytest.raises(DataRefused, match="part-00001") as refused:
        Maker().rows(tmp_path, torch.arange(10))
    assert refused.value.help is not None


def test_two_runs_at_once_make_every_part_once_and_both_have_all(tmp_path: Path) -> None:
    """Each begins with a part that the other is not at, and neither goes on before both have begun."""
    both = threading.Barrier(2, timeout=30)

    class Partner(Maker):
        def __call__(self, chosen: Tensor) -> Rows:
            if not self.asked:
                both.wait()
            return super().__call__(chosen)

    makers = [Partner(), Partner()]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda maker: maker.rows(tmp_path, torch.arange(20)), makers))
    assert [squares.rows.flatten().tolist() for squares in found] == [[index**2 for index in range(20)]] * 2
    assert sorted(makers[0].asked + makers[1].asked) == list(range(20))
    assert all(maker.asked for maker in makers)
    assert not list(tmp_path.rglob("*.claim"))
