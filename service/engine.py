"""The data path of the service: bytes -> pixels -> batch -> defense -> features -> scores. Owns every model
and every thread; knows no HTTP.

Pictures are decoded by a pool, encoded by the batcher's one thread, and judged by the pool again; the event
loop only waits.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeVar

import torch
from torch import Tensor

from prompts_store.manifest import Ref
from prompts_store.store import PromptStore
from prompts_store.watcher import Watcher
from robustclip.certificates.vote import smoothing_of, vote_seeds
from robustclip.defenses import AnyDefense, bind_chain, parse_defenses
from robustclip.defenses.smoothing import Smoothing
from robustclip.errors import DeadlineExceeded, InvalidInput, PromptSetRefused
from robustclip.images import ImageInfo, ImageLimits, decode_image, image_info, to_pixels
from robustclip.models.classifier import FeatureExtractor, LabelCache, ZeroShotClassifier
from robustclip.models.clip import Clip
from robustclip.purifiers import is_file
from robustclip.reports.replay import Replay, replay
from robustclip.reports.witnesses import Witness
from robustclip.seeds import draw_seeds
from robustclip.types import Defense, Features, ImageEncoder, Logits, Pixels, Seeds
from service.admission import Admission
from service.batching import Batcher, Pass
from service.config import ServeSettings
from service.device import DeviceLock, Priority, available_cpus
from service.gate import WitnessGate, open_gate
from service.loaded import LoadedSet
from service.metrics import Metrics
from service.problems import Problem, as_problem
from service.ranking import Ranked, rank, rank_by_votes
from service.schemas import MAX_SEED, ClassifyRequest, DefenseChain
from service.snapshot import ServedSets
from service.text import TextWeights
from service.timing import TimedDefense, Timing

CANARY_LABELS = ("cat", "dog")
GATE_DRAWS = 32  # of a randomized default chain, on each stored witness
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Lane:
    """Pictures that can share a pass: equal visual prompts, equal defenses."""

    key: tuple[str, tuple[AnyDefense, ...]]
    visual: Tensor | None

    @property
    def rule(self) -> Smoothing | None:
        """How the answer is voted for, if it is."""
        return smoothing_of(self.key[1])

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lane) and self.key == other.key


@dataclass(frozen=True)
class Classified:
    """An answer before it becomes JSON: for every image what was ranked, or the problem it has."""

    loaded: LoadedSet
    chain: tuple[AnyDefense, ...]
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
        self._bound: Callable[[tuple[AnyDefense, ...]], Defense] = lru_cache(64)(
            partial(bind_chain, encoder=encoder)
        )
        self.admission = Admission(settings.engine.queue_images, metrics)
        cache = LabelCache(settings.engine.label_cache_bytes)
        metrics.watch_label_cache(cache)
        self.text = TextWeights(clip, cache, self.device, metrics)
        folder = settings.store.witnesses
        gate = open_gate if folder is None else WitnessGate(folder, self._replayed, size=clip.image_size)
        self.sets = ServedSets(store, clip, self._admit, metrics, gate)
        self._image_limits = ImageLimits(max_bytes=settings.limits.image_bytes)
        self._pool = ThreadPoolExecutor(
            settings.engine.decode_threads or max(2, available_cpus()), thread_name_prefix="decode"
        )
        self._text_pool = ThreadPoolExecutor(
            8, thread_name_prefix="text"
        )  # most only wait, for the device or for each other
        self._store_pool = ThreadPoolExecutor(2, thread_name_prefix="store")
        self._batcher = Batcher(
            self._encode,
            max_batch=settings.engine.max_batch,
            on_batch=metrics.batches.observe,
            on_drop=lambda reason: metrics.dropped.labels("queue", reason).inc(),
        )
        self._watcher = Watcher(
            store, clip.fingerprint, self.sets.follow, interval_seconds=settings.store.poll_seconds
        )

    def start(self) -> None:
        """Load and warm what the store's pointers name, and follow them from now on. Raises as
        `Snapshot.named` without the default set.
        """
        self.sets.follow(self.sets.store.active(self.clip.fingerprint))
        default = self.sets.snapshot.named(self.settings.store.default_set)
        blank = torch.zeros(1, 3, self.clip.image_size, self.clip.image_size)
        for rows in (1, self.settings.engine.max_batch):
            self._encode(
                self._lane(default, self.default_chain), blank.expand(rows, -1, -1, -1), draw_seeds(0, rows)
            )
        self._batcher.start()
        self._watcher.start()

    def close(self) -> None:
        """Stop the threads after the work they have."""
        self._watcher.stop()
        self._batcher.stop()
        self._pool.shutdown(cancel_futures=True)
        self._text_pool.shutdown(cancel_futures=True)
        self._store_pool.shutdown(cancel_futures=True)

    @property
    def healthy(self) -> bool:
        return self._batcher.alive

    async def classify(self, request: ClassifyRequest, timing: Timing) -> Classified:
        """Answer one request. Raises Problem and RobustClipError for what concerns all of it; an image that
        fails alone is a result.
        """
        pictures, chain = request.pictures(), self.chain(request.defense)
        passes = self._check_votes(len(pictures), chain, "defense/0/votes")
        deadline = time.monotonic() + request.deadline_ms / 1000
        try:
            with self.admission.images(passes):
                async with asyncio.timeout(request.deadline_ms / 1000):
                    return await self._classify(request, pictures, chain, deadline, timing)
        except TimeoutError as error:
            waited = max(timing.stages, key=lambda stage: timing.stages[stage], default="the queue")
            raise DeadlineExceeded(
                f"{request.deadline_ms} ms were over; most of it went to {waited}."
            ) from error

    async def find(self, text: str | None) -> LoadedSet:
        """The prompt set of a request: the default, an active one, or a pinned version, read from the store
        if it is not in memory.
        """
        ref = Ref.parse(text or self.settings.store.default_set)
        return self.sets.find(ref) or await self.blocking(self.sets.fetch, ref)

    def chain(self, asked: DefenseChain, *, pointer: str = "defense") -> tuple[AnyDefense, ...]:
        """The defense that a request asks for."""
        if asked == "default":
            return self.default_chain
        chain = parse_defenses(asked, field=pointer)
        if len(chain) > self.settings.limits.defenses:
            raise InvalidInput(
                f"expected at most {self.settings.limits.defenses} defenses, found {len(chain)}.",
                field=pointer,
            )
        for index, spec in enumerate(chain):
            if spec not in self.default_chain and any(is_file(network.weights) for network in spec.networks):
                raise InvalidInput(
                    "a file is for the operator to name.",
                    field=f"{pointer}/{index}",
                    help='Name shipped weights, or ask for "default".',
                )
        return chain

    async def blocking(self, function: Callable[..., T], *arguments: object) -> T:
        """Run what reads or moves prompt sets: it may take seconds, and classification must not wait behind
        it.
        """
        return await _on(self._store_pool, function, *arguments)

    def _check_votes(self, pictures: int, chain: tuple[AnyDefense, ...], field: str) -> int:
        """Passes that so many pictures take, a vote each under smoothing. InvalidInput for more than ever fit
        the queue.
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
        loaded = await self.find(request.prompt_set)
        randomized = any(part.randomized for part in chain)
        seed = request.seed if request.seed is not None or not randomized else secrets.randbelow(MAX_SEED)
        rows = draw_seeds(seed or 0, len(pictures)).tolist()
        lane = self._lane(loaded, chain)
        images = (
            self._one(lane, picture, row, deadline, timing)
            for picture, row in zip(pictures, rows, strict=True)
        )
        texts = _on(self._text_pool, self.text.of, loaded, request.labels)
        weights, encoded = await asyncio.gather(texts, asyncio.gather(*images))
        good = [item for item in encoded if not isinstance(item, Problem)]
        ranked: list[Ranked] = []
        if good:
            started = time.perf_counter()
            classifier = ZeroShotClassifier(
                self.encoder, request.labels, weights, self.clip.logit_scale, lane.visual
            )
            features = torch.stack([features for features, _ in good])
            if lane.rule is None:
                ranked = await _on(
                    self._pool, rank, classifier, features[:, 0], request.temperature, request.top_k
                )
            else:
                ranked = await _on(
                    self._pool,
                    rank_by_votes,
                    classifier,
                    features,
                    lane.rule,
                    request.temperature,
                    request.top_k,
                )
            timing.slowest("score", time.perf_counter() - started)
        self.metrics.predictions.labels(str(loaded.ref), "+".join(part.kind for part in chain) or "none").inc(
            len(good)
        )
        answers = iter(ranked)
        results: list[tuple[Ranked, ImageInfo] | Problem] = [
            item if isinstance(item, Problem) else (next(answers), item[1]) for item in encoded
        ]
        return Classified(loaded, chain, seed, results)

    async def _one(
        self, lane: Lane, picture: tuple[str, bytes], seed: int, deadline: float, timing: Timing
    ) -> tuple[Tensor, ImageInfo] | Problem:
        """Features [V, E] of one picture, a row a vote and else one row, or its own problem; what is not the
        picture's fault is raised.
        """
        pointer, data = picture
        started = time.perf_counter()
        try:
            pixels, info = await _on(self._pool, self.pixels, data)
        except Exception as error:
            problem = as_problem(error)
            if problem.status >= 500:
                raise
            return problem.at(pointer)
        timing.slowest("decode", time.perf_counter() - started)
        votes = vote_seeds(seed, lane.rule).tolist()
        rows = await asyncio.gather(
            *(self._batcher.encode(lane, pixels, vote, deadline=deadline) for vote in votes)
        )
        for encoded in rows:
            timing.slowest("queue", encoded.queue_seconds)
            timing.slowest("defense", encoded.defense_seconds)
            timing.slowest("infer", encoded.infer_seconds)
        return torch.stack([encoded.features for encoded in rows]), info

    def pixels(self, data: bytes) -> tuple[Pixels, ImageInfo]:
        """[3, S, S] pixels of encoded bytes, and what they were."""
        image = decode_image(data, limits=self._image_limits)
        return to_pixels(image, self.clip.image_size), image_info(data, image)

    def _lane(self, loaded: LoadedSet, chain: tuple[AnyDefense, ...]) -> Lane:
        return Lane((loaded.lane, chain), loaded.prompts.visual)

    def _encode(
        self, lane: Lane, pixels: Pixels, seeds: Seeds, priority: Priority = Priority.CLASSIFY
    ) -> Pass:
        """One batch through the deployed chain; the label side joins later, in `rank`."""
        with self.device.at(priority), torch.inference_mode():
            defense = TimedDefense(self._bound(lane.key[1]))
            extract = FeatureExtractor(self.encoder, lane.visual, defense)
            started = time.perf_counter()
            features = extract(pixels.to(self.clip.device), seeds).float().cpu()
            total = time.perf_counter() - started
        return Pass(features, defense.seconds, total - defense.seconds)

    def _admit(self, loaded: LoadedSet) -> None:
        """Try a set before it is served. Raises PromptSetRefused (`canary`) when text or image features are
        not finite and of unit norm.
        """
        manifest = loaded.prompt_set.manifest
        labels = manifest.labels if manifest.class_specific else CANARY_LABELS
        weights = self.text.of(loaded, labels, recent=False)
        blank = torch.full((1, 3, self.clip.image_size, self.clip.image_size), 0.5)
        features = self._encode(self._lane(loaded, ()), blank, draw_seeds(0, 1)).features
        for what, rows in (("text", weights), ("image", features)):
            if not bool(((rows.norm(dim=-1) - 1).abs() < 1e-3).all()):
                raise PromptSetRefused(
                    f"its {what} features are not finite and of unit norm.",
                    reason="canary",
                    field="prompt_set",
                )
        self.text.warm(loaded)

    def _replayed(self, loaded: LoadedSet, witnesses: Sequence[Witness]) -> Replay:
        """Stored witnesses before a set and the default chain, a few rows at a time."""
        lane = self._lane(loaded, self.default_chain)

        def encode(pixels: Pixels, seeds: Seeds) -> Features:
            return self._encode(lane, pixels, seeds, Priority.GATE).features

        def judge(features: Features, labels: tuple[str, ...]) -> Logits:
            weights = self.text.of(loaded, labels, recent=False)
            return ZeroShotClassifier(self.encoder, labels, weights, self.clip.logit_scale).judge(
                features.to(weights.device)
            )

        draws = GATE_DRAWS if any(part.randomized for part in self.default_chain) else 1
        return replay(
            witnesses,
            encode,
            judge,
            size=self.clip.image_size,
            draws=draws,
            rows=self.settings.probe.chunk_rows,
        )


async def _on(pool: ThreadPoolExecutor, function: Callable[..., T], *arguments: object) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)
