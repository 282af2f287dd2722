import threading
from pathlib import Path

import pytest
from serving import wait_until

from service.device import DeviceLock, Priority, Turns, available_cpus, available_memory


def queue_up(device: DeviceLock, priorities: list[Priority]) -> list[Priority]:
    """The order in which waiters of these priorities, arrived one after the other, get a device that was busy
    meanwhile.
    """
    order: list[Priority] = []

    def take(priority: Priority) -> None:
        with device.at(priority):
            order.append(priority)

    threads = [threading.Thread(target=take, args=(priority,)) for priority in priorities]
    with device.at(Priority.CLASSIFY):
        for count, thread in enumerate(threads, start=1):
            thread.start()
            wait_until(lambda count=count: device.waiting == count)
    for thread in threads:
        thread.join(5)
    return order


def test_the_most_urgent_waiter_is_next_whenever_it_came() -> None:
    order = queue_up(
        DeviceLock(), [Priority.PROBE, Priority.TEXT, Priority.PROBE, Priority.CLASSIFY, Priority.TEXT]
    )
    assert order == [Priority.CLASSIFY, Priority.TEXT, Priority.TEXT, Priority.PROBE, Priority.PROBE]


def test_only_one_holds_the_device() -> None:
    device, inside, most = DeviceLock(), 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(50):
            with device.at(Priority.CLASSIFY):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_failing_owner_gives_the_device_back_and_waits_are_reported() -> None:
    waits: list[Priority] = []
    device = DeviceLock(lambda priority, seconds: waits.append(priority))
    with pytest.raises(ZeroDivisionError), device.at(Priority.PROBE):
        raise ZeroDivisionError
    with device.at(Priority.TEXT):
        pass
    assert waits == [Priority.PROBE, Priority.TEXT]


def test_work_in_pieces_lets_the_more_urgent_in_between() -> None:
    device, order = DeviceLock(), list[str]()
    first_piece, urgent_waits = threading.Event(), threading.Event()

    def pieces() -> None:
        with Turns(device, Priority.TEXT) as turns:
            turns.next_piece()
            order.append("first")
            first_piece.set()
            urgent_waits.wait(5)
            turns.next_piece()
            order.append("second")

    def urgent() -> None:
        with device.at(Priority.CLASSIFY):
            order.append("urgent")

    worker, guest = threading.Thread(target=pieces), threading.Thread(target=urgent)
    worker.start()
    first_piece.wait(5)
    guest.start()
    wait_until(lambda: device.waiting == 1)
    urgent_waits.set()
    worker.join(5)
    guest.join(5)
    assert order == ["first", "urgent", "second"]


def test_turns_that_never_begin_hold_nothing() -> None:
    device = DeviceLock()
    with Turns(device, Priority.TEXT), device.at(Priority.PROBE):
        pass


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", None), ("100000 100000", 1), ("150000 100000", 2), ("10000 100000", 1)],
)
def test_a_container_s_quota_bounds_the_cpus(tmp_path: Path, quota: str, expected: int | None) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    unbounded = available_cpus(tmp_path / "absent")
    assert available_cpus(file) == (unbounded if expected is None else min(expected, unbounded))


def test_memory_is_what_machine_and_container_leave(tmp_path: Path) -> None:
    table = tmp_path / "meminfo"
    table.write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert available_memory(tmp_path / "absent", table) == 8_192_000
    for limit, used, expected in (("5000000", "1000000", 4_000_000), ("max", "1", 8_192_000)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text(f"{used}\n")
        assert available_memory(tmp_path, table) == expected
    assert available_memory(tmp_path / "absent", tmp_path / "absent") is None
