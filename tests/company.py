"""Two gloo processes on the CPU of this machine, as torchrun would start them."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def run_two(code: str, *arguments: str) -> list[str]:
    """Run Python code with arguments in both and give what each wrote to stdout; both must succeed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    paths = {
        "PYTHONPATH": os.pathsep.join(str(folder) for folder in (TESTS.parent, TESTS, TESTS / "training"))
    }
    with contextlib.ExitStack() as living:
        processes = [
            living.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", code, *arguments],
                    env=os.environ | rendezvous | paths | {"RANK": rank, "LOCAL_RANK": rank},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for rank in ("0", "1")
        ]
        try:
            said = [process.communicate(timeout=600) for process in processes]
        finally:
            for process in processes:
                process.kill()  # a process whose companion died waits for it
    assert [process.returncode for process in processes] == [0, 0], [complaint for _, complaint in said]
    return [answer for answer, _ in said]
