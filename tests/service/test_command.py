"""`robustclip serve` as a person runs it: a process of its own."""

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from serving import LABELS, picture

from robustclip.errors import InvalidInput
from service.command import main
from service.config import ServeSettings, each_setting
from service.startup import Service

_COMMAND = [
    sys.executable,
    "-c",
    "import sys; from robustclip.cli import main; sys.exit(main(sys.argv[1:]))",
    "serve",
    "--clip.arch",
    "tiny",
]


@pytest.mark.slow
def test_a_process_says_where_it_is_answers_and_leaves_on_sigterm(tmp_path: Path) -> None:
    arguments = [*_COMMAND, "--port", "0", "--engine.threads", "1"]
    with subprocess.Popen(
        arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said: list[str] = []
        for line in process.stdout:
            said.append(line)
            if "/docs" in line:
                break
        text = "".join(said)
        try:
            for part in (
                "loading tiny",
                "warming",
                "backbone",
                "handcrafted@",
                "the default",
                "curl -F image=@cat.jpg",
            ):
                assert part in text
            found = re.search(r"serving on (http://127\.0\.0\.1:\d+)", text)
            assert found is not None
            answer = httpx.post(
                f"{found[1]}/classify",
                files={"image": picture()},
                data={"labels": LABELS},
                timeout=30,
                trust_env=False,
            )
            assert answer.status_code == 200
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
        assert process.stderr is not None
        logged = [json.loads(line) for line in process.stderr]  # machines read it: nothing but JSON
    line = next(line for line in logged if line["event"] == "request" and line["route"] == "/classify")
    assert (line["status"], line["request_id"]) == (200, answer.headers["x-request-id"])
    assert LABELS[0] not in json.dumps(logged)
    assert (tmp_path / "var" / "prompts" / "any" / "handcrafted").is_dir()


def test_check_starts_everything_but_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        main(
            [
                "--check",
                "--clip.arch",
                "tiny",
                "--store.path",
                str(tmp_path / "store"),
                "--engine.threads",
                "1",
            ]
        )
        == 0
    )
    assert "all is well" in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_wrong_is_one_line_before_anything_listens(tmp_path: Path) -> None:
    arguments = [*_COMMAND, "--port", "0", "--clip.arch", "no-such-clip"]
    finished = subprocess.run(
        arguments, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert finished.returncode == 2
    assert finished.stderr.startswith("robustclip: clip.arch: unknown architecture 'no-such-clip'")
    assert len(finished.stderr.splitlines()) == 1


def test_a_taken_port_is_known_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(InvalidInput, match=r"can't listen on .*--port 9000"),
    ):
        main(["--port", str(taken.getsockname()[1])])


def test_an_open_address_needs_consent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="--insecure-no-auth"):
        main(["--host", "0.0.0.0"])


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    for section, field, _ in each_setting():
        assert f"--{section}.{field}" in text
    assert "ROBUSTCLIP_CLIP__ARCH" in text
    assert "unknown names are refused, and no other command reads them" in " ".join(text.split())


def test_help_waits_for_nothing_heavy() -> None:
    program = (
        "import sys, contextlib; from service.command import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'fastapi', 'open_clip')))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.returncode == 0, finished.stderr


def test_a_clip_that_memory_cannot_hold_is_refused_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.startup.available_memory", lambda: 2**30)
    settings = ServeSettings.model_validate(
        {
            "clip": {"arch": "ViT-L-14", "pretrained": "openai"},
            "store": {"path": tmp_path / "store"},
        }
    )
    with pytest.raises(InvalidInput, match=r"ViT-L-14 needs 3\.2 GiB .*, and 1\.0 GiB are free") as refusal:
        Service(settings).start()
    assert refusal.value.field == "clip.arch"
    assert "robustclip models" in str(refusal.value.help)
