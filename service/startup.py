"""From settings to a running engine, in phases that are reported."""

import threading
from collections.abc import Callable
from typing import TypeAlias

import torch

from prompts_store.store import SHIPPED, PromptStore
from robustclip.errors import InvalidInput
from robustclip.models.classifier import TorchImageEncoder
from robustclip.models.clip import Clip, load_clip
from robustclip.models.costs import pace_of, size_text
from robustclip.models.listing import memory_before_loading
from robustclip.models.onnx import OrtImageEncoder
from robustclip.types import ImageEncoder
from service.config import ServeSettings
from service.device import available_cpus, available_memory
from service.engine import Engine
from service.jobs import Jobs
from service.metrics import Metrics
from service.probing import ProbeRunner
from service.problems import Problem

Report: TypeAlias = Callable[[str], None]


class Service:
    """An application's engine and the state of its start: its `phase`, and the `failure` that ended it."""

    def __init__(self, settings: ServeSettings, report: Report = lambda phase: None) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.phase = "loading"
        self.draining = threading.Event()  # set when the process was asked to end
        self.failure: Exception | None = None
        self._report = report
        self._running: tuple[Engine, ProbeRunner, Jobs] | None = None

    def start(self) -> None:
        """Load, check, warm. Blocks; an error is raised, and remembered as `failure`."""
        try:
            self._running = self._start()
        except Exception as error:
            self.failure = error
            raise
        self._enter("ready")

    def close(self) -> None:
        """Stop all threads; probes are cancelled, accepted pictures are finished."""
        if self._running is not None:
            engine, probes, _ = self._running
            self.draining.set()
            probes.close()
            engine.close()

    @property
    def engine(self) -> Engine:
        """Raises Problem `starting` until there is one."""
        return self._parts()[0]

    @property
    def probes(self) -> ProbeRunner:
        """Raises Problem `starting` until there is one."""
        return self._parts()[1]

    @property
    def jobs(self) -> Jobs:
        """Raises Problem `starting` until there is one."""
        return self._parts()[2]

    def _parts(self) -> tuple[Engine, ProbeRunner, Jobs]:
        if self._running is None:
            raise Problem("starting", f"the service is {self.phase}.", headers={"Retry-After": "2"})
        return self._running

    def _start(self) -> tuple[Engine, ProbeRunner, Jobs]:
        settings, threads = self.settings, self.settings.engine.threads or available_cpus()
        torch.set_num_threads(threads)
        self._enter(f"loading {settings.clip.arch}", phase="loading")
        self._refuse_too_large()
        clip = load_clip(settings.clip.arch, settings.clip.pretrained, device=_device(settings.clip.device))
        encoder = self._encoder(clip, threads)
        store = PromptStore(settings.store.path, read_only=settings.store.read_only)
        if not settings.store.read_only:
            store.seed_from(SHIPPED)
        engine = Engine(settings, clip, encoder, store, self.metrics)
        self._enter("warming")
        try:
            engine.start()
        except BaseException:
            engine.close()
            raise
        pace = pace_of(clip.model, seconds=0.0)
        self._report(f"about {pace.forward:.1f} pictures and {pace.gradient:.1f} gradient passes a second")
        probes = ProbeRunner(engine)
        return (
            engine,
            probes,
            Jobs(probes, kept=settings.probe.jobs, result_seconds=settings.probe.job_result_seconds),
        )

    def _refuse_too_large(self) -> None:
        """InvalidInput for a CLIP that would not fit into memory: the kernel would end us without a word."""
        arch, rows = self.settings.clip.arch, self.settings.probe.chunk_rows
        if self.settings.clip.device != "cpu" or (memory := memory_before_loading(arch)) is None:
            return
        available = available_memory()
        words = (
            f"{size_text(memory.weights)} of weights, {size_text(rows * memory.gradient)} for a "
            f"probe's gradient pass of {rows} pictures"
        )
        if available is not None and memory.needed(rows) > available:
            raise InvalidInput(
                f"{arch} needs {size_text(memory.needed(rows))} of memory ({words}; weights take twice "
                f"their size while they are loaded), and {size_text(available)} are free.",
                field="clip.arch",
                help="Use a smaller CLIP (`robustclip models` says what each needs), fewer probe.chunk_rows, "
                "or a machine with more memory.",
            )
        self._report(f"{arch}: {words}")

    def _encoder(self, clip: Clip, threads: int) -> ImageEncoder:
        self.metrics.precision.labels("fp32", self.settings.encoder.backend, str(clip.device)).set(1)
        if self.settings.encoder.backend == "torch":
            return TorchImageEncoder(clip)
        self._enter("comparing ONNX Runtime with torch", phase="parity")
        encoder = OrtImageEncoder(clip, self.settings.encoder.path, threads=threads)
        parity = min(encoder.parity.values(), key=lambda parity: parity.cosine)
        self.metrics.parity.set(parity.cosine)
        self._report(f"parity onnx: cosine {parity.cosine:.6f}, largest logit change {parity.logit:.1e}")
        return encoder

    def _enter(self, what: str, *, phase: str | None = None) -> None:
        self.phase = phase or what
        if self.phase != "ready":
            self._report(what)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device that is not there
        raise InvalidInput(
            f"torch can't compute on {name!r}.",
            field="clip.device",
            help="Use cpu, or install a torch for this device.",
        ) from error
    return device
