"""All metrics of the service, in seconds and bytes. Labels have few values: no class names, paths or ids."""

from collections.abc import Iterator

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from prompts_store.manifest import PromptSet
from robustclip.models.classifier import LabelCache
from service.device import Priority

_HTTP = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_STAGES = tuple(0.00025 * 2**power for power in range(17))
_WAITS = tuple(0.001 * 2**power for power in range(13))
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_PROBES = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The metrics of one application, in its own registry: a process may hold several applications."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        p = "robustclip_"
        self.requests = Histogram(
            f"{p}http_request_duration_seconds",
            "Requests",
            ["method", "route", "status"],
            buckets=_HTTP,
            registry=registry,
        )
        self.stages = Histogram(
            f"{p}stage_duration_seconds", "Stages of a request", ["stage"], buckets=_STAGES, registry=registry
        )
        self.batches = Histogram(
            f"{p}batch_images", "Images a pass through the image tower", buckets=_BATCHES, registry=registry
        )
        self.images = Counter(f"{p}images_total", "Images received", ["route"], registry=registry)
        self.predictions = Counter(
            f"{p}predictions_total", "Images classified", ["prompt_set", "defense"], registry=registry
        )
        self.inflight = Gauge(f"{p}inflight_requests", "Requests being answered", registry=registry)
        self.queued = Gauge(f"{p}queue_images", "Images accepted and not yet answered", registry=registry)
        self.rejected = Counter(
            f"{p}rejected_total", "Requests answered with a problem", ["reason"], registry=registry
        )
        self.dropped = Counter(
            f"{p}dropped_total",
            "Images not computed since nobody waits any more",
            ["stage", "reason"],
            registry=registry,
        )
        self.text_forwards = Counter(
            f"{p}text_forwards_total",
            "Passes through the text tower, of at most 64 labels",
            registry=registry,
        )
        self.prompt_sets = Gauge(
            f"{p}prompt_set_info",
            "Prompt sets that are served",
            ["name", "version", "modalities"],
            registry=registry,
        )
        self.loads = Counter(
            f"{p}prompt_set_loads_total",
            "Prompt sets loaded, or refused by the refusal's code",
            ["result"],
            registry=registry,
        )
        self.activations = Counter(
            f"{p}prompt_set_activations_total",
            "Prompt sets made active, or refused",
            ["result"],
            registry=registry,
        )
        self.generation = Gauge(
            f"{p}snapshot_generation", "How often what is served has changed", registry=registry
        )
        self.probe_runs = Counter(
            f"{p}probe_runs_total",
            "Attacks run",
            ["attack", "mode", "verdict", "prompt_set"],
            registry=registry,
        )
        self.probes = Histogram(
            f"{p}probe_duration_seconds", "Reports of probes", buckets=_PROBES, registry=registry
        )
        self.waits = Histogram(
            f"{p}device_lock_wait_seconds",
            "Waiting for the device",
            ["who"],
            buckets=_WAITS,
            registry=registry,
        )
        self.loop_lag = Histogram(
            f"{p}event_loop_lag_seconds", "How late the event loop woke up", buckets=_WAITS, registry=registry
        )
        self.precision = Gauge(
            f"{p}precision_info",
            "The image encoder in use",
            ["precision", "backend", "device"],
            registry=registry,
        )
        self.parity = Gauge(
            f"{p}parity_cosine_min",
            "Smallest cosine between the image encoder and the reference",
            registry=registry,
        )

    def watch_label_cache(self, cache: LabelCache) -> None:
        """Show the cache's counts, read when the metrics are."""
        self.registry.register(_LabelCacheCollector(cache))

    def waited(self, priority: Priority, seconds: float) -> None:
        self.waits.labels(priority.name.lower()).observe(seconds)

    def serving(self, prompt_sets: list[PromptSet], generation: int) -> None:
        """Replace what the metrics say is served."""
        self.prompt_sets.clear()
        for each in prompt_sets:
            self.prompt_sets.labels(
                each.manifest.name, each.version, "+".join(each.prompts.modalities) or "none"
            ).set(1)
        self.generation.set(generation)

    def page(self) -> tuple[bytes, str]:
        """The metrics in Prometheus' text format, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class _LabelCacheCollector(Collector):
    def __init__(self, cache: LabelCache) -> None:
        self._cache = cache

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "robustclip_label_cache_hits", "Label lists found in the cache", value=self._cache.hits
        )
        yield CounterMetricFamily(
            "robustclip_label_cache_misses", "Label lists computed", value=self._cache.misses
        )
        yield GaugeMetricFamily(
            "robustclip_label_cache_bytes", "Memory of the label cache", value=self._cache.bytes
        )
