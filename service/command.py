"""`robustclip serve`: settings, one socket, uvicorn, and some lines that say what is served."""

import argparse
import os
import signal
import socket
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from robustclip.errors import InvalidInput
from service.config import CONFIG_FILE, ServeSettings, each_setting, environment_name, load_settings
from service.logs import configure_logs

if TYPE_CHECKING:  # these import torch, and --help must not wait for it
    from service.startup import Service

_SHUTDOWN_SECONDS = 30


def main(argv: Sequence[str] | None = None) -> int:
    """Serve classification and probes over HTTP."""
    arguments = _parser().parse_args(argv)
    overrides = _overrides(arguments)
    settings = load_settings(overrides)
    configure_logs(settings.log)
    if arguments.check:
        return _check(settings)
    with _listen(settings.server.host, settings.server.port) as listener:
        server = _Server(settings, listener)
        server.run(sockets=[listener])
    if server.failure is not None:
        raise server.failure
    if server.force_exit:
        # After a second signal: a thread may be in the middle of a long pass, and Python would wait for it.
        os._exit(1)
    return 0


class _Server(uvicorn.Server):
    """uvicorn with its own handling of signals: a first SIGTERM or SIGINT finishes what was accepted and
    exits 0, a second one exits now.
    """

    def __init__(self, settings: ServeSettings, listener: socket.socket) -> None:
        self.failure: Exception | None = None
        self._address = _address(listener)
        from service.app import create_app

        app = create_app(settings, report=lambda phase: _say(f"{phase} ..."), on_started=self._started)
        self._service: Service = app.state.service
        super().__init__(
            uvicorn.Config(
                app,
                access_log=False,
                log_config=None,
                timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
                server_header=False,
                lifespan="on",
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit and sig in (signal.SIGINT, signal.SIGTERM)
        self.should_exit = True
        self._service.draining.set()

    def _started(self, service: "Service") -> None:
        self.failure = service.failure
        if self.failure is not None:
            self.should_exit = True
        else:
            _say(_welcome(service, self._address))


def _check(settings: ServeSettings) -> int:
    """Start everything but the HTTP server, say so, and stop."""
    from service.startup import Service

    service = Service(settings, report=lambda phase: _say(f"{phase} ..."))
    service.start()
    try:
        _say(f"{_inventory(service)}\nall is well.")
    finally:
        service.close()
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, before anything is loaded: a port in use is reported at once."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise InvalidInput(
            f"can't listen on {host}:{port}: {error.strerror}.",
            field="server.port",
            help="Choose another: --port 9000.",
        ) from error


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _welcome(service: "Service", address: str) -> str:
    lines = [
        f"serving on {address}",
        _inventory(service),
        "try:",
        f"  curl -F image=@cat.jpg -F labels=cat,dog,rocket {address}/classify",
        f"  curl -F image=@cat.jpg -F labels=cat,dog,rocket -F eps=4/255 {address}/probe",
        f"  open {address}/docs",
    ]
    if service.settings.server.insecure_no_auth:
        lines.append("WARNING: nobody has to show a key, and other machines may reach this address.")
    return "\n".join(lines)


def _inventory(service: "Service") -> str:
    from robustclip.backbones import terms_of

    clip, sets = service.engine.clip, service.engine.sets.snapshot
    facts = (
        f"{clip.pretrained}, {clip.image_size} pixels, {service.engine.encoder.backend}, fingerprint "
        f"{clip.fingerprint[:8]}"
    )
    lines = [f"  backbone     {clip.arch} ({facts})"]
    if (terms := terms_of(clip.arch)) is not None:
        lines.append(f"  terms        {terms}")
    for name, loaded in sorted(sets.active.items()):
        default = ", the default" if name == service.settings.store.default_set else ""
        lines.append(f"  prompt set   {loaded.ref} ({loaded.prompt_set.manifest.objective['kind']}{default})")
    lines += [
        f"  refused      {refusal.ref} ({refusal.reason}): {refusal.message}"
        for _, refusal in sorted(sets.refused.items())
    ]
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="robustclip serve",
        usage="robustclip serve [OPTIONS]",
        description="Serve classification and probes over HTTP.",
        epilog=f"Every setting can also stand in the environment (--clip.arch is "
        f"{environment_name('clip', 'arch')}) or in ./{CONFIG_FILE} "
        "(arch under [clip]). Neither may hold anything else: unknown names are refused, and no other "
        "command reads them.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=40, width=140),
        allow_abbrev=False,
    )
    parser.add_argument("--check", action="store_true", help="load and check everything, then exit")
    for section, field, info in each_setting():
        names = [f"--{section}.{field}"]
        if section == "server":
            names.insert(0, f"--{field.replace('_', '-')}")
        kind: dict[str, Any] = (
            {"action": "store_true"}
            if info.annotation is bool and info.default is False
            else {"metavar": field.upper()}
        )
        described = f"{info.description} (default: {info.default})".replace("%", "%%")
        parser.add_argument(
            *names, dest=f"{section}.{field}", default=argparse.SUPPRESS, help=described, **kind
        )
    return parser


def _overrides(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    overrides: dict[str, dict[str, Any]] = {}
    for name, value in vars(arguments).items():
        section, dot, field = name.partition(".")
        if dot:
            overrides.setdefault(section, {})[field] = value
    return overrides
