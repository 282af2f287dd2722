"""The data path of the service: bytes -> pixels -> batch -> defense -> features -> scores. It owns all models
and threads, and does not depend on HTTP.

A pool decodes pictures, the batcher's one thread encodes them, and the pool ranks the labels; the event loop
only waits.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from prompts_store.manifest import Ref
from prompts_store.store import PromptStore
from prompts_store.watcher import Watcher
from robustclip.certificates.vote import smoothing_of, vote_seeds
from robustclip.defenses import AnyDefense, parse_defenses
from robustclip.errors import DeadlineExceeded, InvalidInput
from robustclip.images import ImageInfo, ImageLimits, decode_image, image_info
from robustclip.models.classifier import LabelCache
from robustclip.models.clip import Clip
from robustclip.models.labels import check_labels
from robustclip.models.scoring import Scoring, outcomes, scoring_for
from robustclip.preprocessing import to_pixels
from robustclip.purifiers import is_file
from robustclip.seeds import draw_seeds
from robustclip.types import ImageEncoder, Pixels
from service.admission import Admission
from service.batching import Batcher
from service.config import ServeSettings
from service.device import DeviceLock, available_cpus
from service.fields import MAX_SEED, DefenseChain
from service.gate import WitnessGate, open_gate
from service.loaded import LoadedSet
from service.metrics import Metrics
from service.passes import Lane, Passes
from service.problems import Problem, as_problem
from service.ranking import Ranked, rank
from service.schemas import ClassifyRequest
from service.snapshot import ServedSets
from service.text import TextWeights
from service.timing import Timing
from service.vetting import Vetting

T = TypeVar("T")
_IN_WORDS = {"decode_wait": "the wait for a decoder", "queue": "the queue", "text": "the labels' features"}


@dataclass(frozen=True)
class Classified:
    """An answer before it becomes JSON: for every image its ranked labels, or the problem it has."""

    loaded: LoadedSet
    chain: tuple[AnyDefense, ...]
    scoring: Scoring
    seed: int | None
    results: Sequence[tuple[Ranked, ImageInfo] | Problem]


class Engine:
    """A CLIP, its encoder, the served prompt sets and the threads. Built and closed off the event loop."""

    def __init__(
        self, settings: ServeSettings, clip: Clip, encoder: ImageEncoder, store: PromptStore, metrics: Metrics
    ) -> None:
        self.settings = settings
        self.clip = clip
        self.encoder = encoder
        self.metrics = metrics
        self.device = DeviceLock(metrics.waited)
        self.default_chain = parse_defenses(settings.defense.default, field="defense.default")
        self._check_votes(1, self.default_chain, "defense.default")
        self.admission = Admission(settings.engine.queue_images, metrics)
        cache = LabelCache(settings.engine.label_cache_bytes)
        metrics.watch_label_cache(cache)
        self.text = TextWeights(clip, cache, self.device, metrics)
        self._passes = Passes(clip, encoder, self.device)
        rows = settings.probe.chunk_rows
        vetting = Vetting(clip, self._passes, self.text, self.default_chain, chunk_rows=rows)
        folder = settings.store.witnesses
        gate = open_gate if folder is None else WitnessGate(folder, vetting.replay, size=clip.image_size)
        self.sets = ServedSets(store, clip, vetting.admit, metrics, gate)
        self._image_limits = ImageLimits(max_bytes=settings.limits.image_bytes)
        self._pool = ThreadPoolExecutor(
            settings.engine.decode_threads or max(2, available_cpus()), thread_name_prefix="decode"
        )
        # Most of these threads wait for the device, or for each other.
        self._text_pool = ThreadPoolExecutor(8, thread_name_prefix="text")
        self._store_pool = ThreadPoolExecutor(2, thread_name_prefix="store")
        self._batcher = Batcher(
            self._passes.run,
            max_batch=settings.engine.max_batch,
            on_batch=metrics.batches.observe,
            on_drop=lambda reason: metrics.dropped.labels("queue", reason).inc(),
        )
        self._watcher = Watcher(
            store, clip.fingerprint, self.sets.follow, interval_seconds=settings.store.poll_seconds
        )

    def start(self) -> None:
        """Load and warm what the store's pointers name, and follow them from now on.

        Raises as `Snapshot.named` when the default set can't be served.
        """
        self.sets.follow(self.sets.store.active(self.clip.fingerprint))
        default = self.sets.snapshot.named(self.settings.store.default_set)
        blank = torch.zeros(1, 3, self.clip.image_size, self.clip.image_size)
        lane = Lane.of(default, self.default_chain)
        for rows in (1, self.settings.engine.max_batch):
            self._passes.run(lane, blank.expand(rows, -1, -1, -1), draw_seeds(0, rows))
        self._batcher.start()
        self._watcher.start()

    def close(self) -> None:
        """Finish the accepted work and stop the threads."""
        self._watcher.stop()
        self._batcher.stop()
        for pool in (self._pool, self._text_pool, self._store_pool):
            pool.shutdown(cancel_futures=True)

    @property
    def healthy(self) -> bool:
        return self._batcher.alive

    async def classify(self, request: ClassifyRequest, timing: Timing) -> Classified:
        """Answer one request. An image that fails alone is a result.

        Raises Problem and RobustClipError for what concerns the whole request.
        """
        pictures, chain = request.pictures(), self.chain(request.defense)
        passes = self._check_votes(len(pictures), chain, "defense/0/votes")
        deadline = time.monotonic() + request.deadline_ms / 1000
        try:
            with self.admission.images(passes):
                async with asyncio.timeout(request.deadline_ms / 1000):
                    return await self._classify(request, pictures, chain, deadline, timing)
        except TimeoutError as error:
            stage = max(timing.stages, key=lambda stage: timing.stages[stage], default="queue")
            raise DeadlineExceeded(
                f"{request.deadline_ms} ms were over; most of it went to {_IN_WORDS.get(stage, stage)}."
            ) from error

    async def find(self, text: str | None) -> LoadedSet:
        """The prompt set of a request: the default, an active one, or a pinned version, read from the store
        if it is not in memory.
        """
        ref = Ref.parse(text or self.settings.store.default_set)
        return self.sets.find(ref) or await self.blocking(self.sets.fetch, ref)

    def chain(self, requested: DefenseChain, *, pointer: str = "defense") -> tuple[AnyDefense, ...]:
        """The defense that a request asks for."""
        if requested == "default":
            return self.default_chain
        chain = parse_defenses(requested, field=pointer)
        if len(chain) > self.settings.limits.defenses:
            raise InvalidInput(
                f"expected at most {self.settings.limits.defenses} defenses, found {len(chain)}.",
                field=pointer,
            )
        for index, spec in enumerate(chain):
            if spec not in self.default_chain and any(is_file(network.weights) for network in spec.networks):
                raise InvalidInput(
                    "only the operator may name a file.",
                    field=f"{pointer}/{index}",
                    help='Name shipped weights, or ask for "default".',
                )
        return chain

    async def blocking(self, function: Callable[..., T], *arguments: object) -> T:
        """Run slow work on prompt sets, in threads of its own so that it does not delay classification."""
        return await _on(self._store_pool, function, *arguments)

    def _check_votes(self, pictures: int, chain: tuple[AnyDefense, ...], field: str) -> int:
        """Passes that so many pictures take: under smoothing one for each vote.

        Raises InvalidInput for more than the queue can hold.
        """
        rule, room = smoothing_of(chain), self.settings.engine.queue_images
        passes = pictures * (1 if rule is None else rule.votes)
        if passes > room:
            raise InvalidInput(
                f"expected at most {room} votes in all (engine.queue_images), found {passes}.",
                field=field,
                help="Ask for fewer votes or pictures.",
            )
        return passes

    async def _classify(
        self,
        request: ClassifyRequest,
        pictures: Sequence[tuple[str, bytes]],
        chain: tuple[AnyDefense, ...],
        deadline: float,
        timing: Timing,
    ) -> Classified:
        scoring = scoring_for(self.clip, request.scoring)
        check_labels(outcomes(request.labels, scoring))
        loaded = await self.find(request.prompt_set)
        randomized = any(part.randomized for part in chain)
        seed = request.seed if request.seed is not None or not randomized else secrets.randbelow(MAX_SEED)
        rows = draw_seeds(seed or 0, len(pictures)).tolist()
        lane = Lane.of(loaded, chain)
        images = (
            self._encoded(lane, picture, row, deadline, timing)
            for picture, row in zip(pictures, rows, strict=True)
        )
        texts = timing.given_up("text", _on(self._text_pool, self.text.of, loaded, request.labels))
        weights, encoded = await asyncio.gather(texts, asyncio.gather(*images))
        good = [item for item in encoded if not isinstance(item, Problem)]
        ranked: list[Ranked] = []
        if good:
            classifier = self._passes.classifier(request.labels, weights, lane, scoring)
            features = torch.stack([features for features, _ in good])
            with timing.stage("score"):
                ranked = await _on(
                    self._pool, rank, classifier, features, lane.rule, request.temperature, request.top_k
                )
        self.metrics.predictions.labels(str(loaded.ref), "+".join(part.kind for part in chain) or "none").inc(
            len(good)
        )
        answers = iter(ranked)
        results: list[tuple[Ranked, ImageInfo] | Problem] = [
            item if isinstance(item, Problem) else (next(answers), item[1]) for item in encoded
        ]
        return Classified(loaded, chain, scoring, seed, results)

    async def _encoded(
        self, lane: Lane, picture: tuple[str, bytes], seed: int, deadline: float, timing: Timing
    ) -> tuple[Tensor, ImageInfo] | Problem:
        """Features [V, E] of one picture, one row (under smoothing one a vote), or its problem.

        Raises what is not the picture's fault.
        """
        pointer, data = picture
        try:
            pixels, info = await self._decoded(data, timing)
        except Exception as error:
            problem = as_problem(error)
            if problem.status >= 500:
                raise
            return problem.at(pointer)
        votes = vote_seeds(seed, lane.rule).tolist()
        passes = (self._batcher.encode(lane, pixels, vote, deadline=deadline) for vote in votes)
        rows = await timing.given_up("queue", asyncio.gather(*passes))
        for encoded in rows:
            timing.slowest("queue", encoded.queue_seconds)
            timing.slowest("defense", encoded.defense_seconds)
            timing.slowest("infer", encoded.infer_seconds)
        return torch.stack([encoded.features for encoded in rows]), info

    async def _decoded(self, data: bytes, timing: Timing) -> tuple[Pixels, ImageInfo]:
        """`pixels` in the pool. If a deadline cuts it off, the wait for a thread counts as a stage."""
        asked, began = time.perf_counter(), list[float]()

        def decode() -> tuple[Pixels, ImageInfo]:
            began.append(time.perf_counter())
            return self.pixels(data)

        try:
            with timing.stage("decode"):
                return await _on(self._pool, decode)
        except asyncio.CancelledError:
            now = time.perf_counter()
            start = began[0] if began else now
            timing.slowest("decode_wait", start - asked)
            timing.slowest("decode", now - start)
            raise

    def pixels(self, data: bytes) -> tuple[Pixels, ImageInfo]:
        """[3, S, S] pixels of encoded bytes, and what they were."""
        image = decode_image(data, limits=self._image_limits)
        return to_pixels(image, self.clip.preprocessing), image_info(data, image)


async def _on(pool: ThreadPoolExecutor, function: Callable[..., T], *arguments: object) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)
