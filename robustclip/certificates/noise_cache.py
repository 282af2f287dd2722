"""Noisy embeddings on disk, and a record of the questions that they have answered.

A picture is encoded once and then certified for any labels and text prompts. Its folder is named by a digest
of everything that the embeddings depend on. In it are `noise-0.safetensors` and `noise-0.question`: the
question for which that portion of noise was first used. Another question to the same noise is exploratory,
since it may have been chosen because of earlier answers. A fresh portion confirms it, once.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from robustclip.certificates.certify import CertifyOptions, NoisyFeatures
from robustclip.defenses import AnyDefense, network_digests
from robustclip.digests import canonical_json, json_digest, tensor_digest
from robustclip.errors import DataRefused
from robustclip.files import write_atomically, write_once
from robustclip.models import Clip, ZeroShotClassifier
from robustclip.purifiers import digest_of


class NoiseKey(BaseModel, frozen=True, extra="forbid"):
    """Everything that noisy embeddings depend on: not text prompts and labels, but visual prompts and the
    weights of purifying networks.

    `denoise` and `networks` are digests: of the network that removes the noise in one step, and of those in
    the chain behind it.
    """

    format: Literal[1] = 1
    picture: str
    sigma: float
    n0: int
    n: int
    seed: int
    backbone: str
    encoder: str
    visual: str | None
    denoiser: tuple[dict[str, Any], ...]
    denoise: str | None = None
    networks: tuple[str, ...] = ()
    width: int

    @classmethod
    def of(
        cls,
        clip: Clip,
        classifier: ZeroShotClassifier,
        pixels: Tensor,
        options: CertifyOptions,
        denoiser: Sequence[AnyDefense] = (),
    ) -> "NoiseKey":
        return cls(
            picture=tensor_digest(pixels),
            sigma=options.sigma,
            n0=options.n0,
            n=options.n,
            seed=options.seed,
            backbone=clip.fingerprint,
            encoder=classifier.encoder.backend,
            visual=None if classifier.visual is None else tensor_digest(classifier.visual),
            denoiser=tuple(spec.model_dump(mode="json") for spec in denoiser),
            denoise=None if options.denoise is None else digest_of("denoiser", options.denoise),
            networks=network_digests(denoiser),
            width=clip.embed_dim,
        )

    @property
    def folder(self) -> str:
        return json_digest(self.model_dump(mode="json"))[:16]

    @property
    def text(self) -> str:
        """Canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))


class Portion(NamedTuple):
    """The noise that answers a question, and whether another question used it first."""

    number: int
    exploratory: bool


def question_of(classifiers: Sequence[ZeroShotClassifier], alpha: float) -> str:
    """sha256 of all statements of one question, in any order: labels and their text features."""
    statements = sorted(
        repr((classifier.labels, tensor_digest(classifier.weights))) for classifier in classifiers
    )
    return hashlib.sha256(repr((statements, alpha)).encode()).hexdigest()


def portion_for(root: Path, key: NoiseKey, question: str, *, confirm: bool = False) -> Portion:
    """The portion of noise that answers a question, recorded before anybody has seen the answer.

    A question keeps the portion that it had first. A new one gets portion 0, exploratory if another had that
    first; with `confirm`, one never used. Raises DataRefused where the record can't be read or written.
    """
    folder = root / key.folder
    try:
        questions = _questions(folder)
        if question in questions:
            return Portion(questions.index(question), exploratory=False)
        if questions and not confirm:
            return Portion(0, exploratory=True)
        if write_once(_record(folder, len(questions)), question.encode()):
            return Portion(len(questions), exploratory=False)
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(folder, error) from error
    return portion_for(root, key, question, confirm=confirm)  # another process took it meanwhile


def cached_features(
    root: Path, key: NoiseKey, make: Callable[[int], NoisyFeatures], *, portion: int = 0
) -> NoisyFeatures:
    """The features of a key, from their file or from `make`. DataRefused for a damaged or foreign file."""
    path = noise_path(root, key, portion=portion)
    try:
        if not path.exists():
            new = {name: features.cpu().contiguous() for name, features in make(portion)._asdict().items()}
            _check(new, key, path)
            write_atomically(path, save(new, {"key": key.text, "portion": str(portion)}))
        with safe_open(path, framework="pt") as file:
            if file.metadata() != {"key": key.text, "portion": str(portion)}:
                raise _refused(path, "it holds noise of another picture, tower or question.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise _refused(path, f"damaged: {error}.") from error
    except OSError as error:
        raise _unusable(path, error) from error
    _check(tensors, key, path)
    return NoisyFeatures(**tensors)


def noise_path(root: Path, key: NoiseKey, *, portion: int = 0) -> Path:
    """Where the features of a key are."""
    return root / key.folder / f"noise-{portion}.safetensors"


def _questions(folder: Path) -> list[str]:
    """The question that each portion was first used for."""
    questions: list[str] = []
    while (record := _record(folder, len(questions))).exists():
        questions.append(record.read_text(encoding="ascii"))
    return questions


def _record(folder: Path, portion: int) -> Path:
    return folder / f"noise-{portion}.question"


def _check(tensors: Mapping[str, Tensor], key: NoiseKey, path: Path) -> None:
    expected = {"choosing": (key.n0, key.width), "counting": (key.n, key.width)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != expected or any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        raise _refused(path, f"expected float32 {expected}, found {shapes}.")
    if not all(bool(((tensor.norm(dim=1) - 1).abs() < 1e-3).all()) for tensor in tensors.values()):
        raise _refused(path, "not all of its rows are finite and of unit norm.")


def _refused(path: Path, reason: str) -> DataRefused:
    return DataRefused(reason, field=str(path), help="Remove this file: it will be made again.")


def _unusable(path: Path, error: Exception) -> DataRefused:
    return DataRefused(
        f"can't be used: {error}.", field=str(path), help="Choose another folder for the cache."
    )
