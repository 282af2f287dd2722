"""Small networks that clean pictures before a CLIP sees them: a JSON and fp16 safetensors beside it.

Weights have names: `own` ship here, `tiny` are drawn from a seed and clean nothing (for tests). A path names
what `robustclip train-purifiers` wrote (.json) or, for super-resolution, any network that spandrel knows
(.safetensors). No file is run as code.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, cast

import torch
from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from robustclip.digests import json_digest, tensor_digest
from robustclip.errors import PurifierRefused
from robustclip.files import write_atomically
from robustclip.purifiers.mounted import first_line, load_mounted, refuse_infinite
from robustclip.purifiers.networks import Denoiser, DenoiserShape, SuperResolver, SuperResolverShape, sigma_of
from robustclip.types import Pixels

NetworkKind: TypeAlias = Literal["super_resolver", "denoiser"]
Shape: TypeAlias = Annotated[SuperResolverShape | DenoiserShape, Field(discriminator="kind")]

OWN, TINY = "own", "tiny"
# Price of one pass of the default shape: so many image passes of `mini` take as long, whatever the backbone.
PASSES: dict[NetworkKind, int] = {"super_resolver": 2, "denoiser": 3}
_TINY_SHAPES: dict[NetworkKind, SuperResolverShape | DenoiserShape] = {
    "super_resolver": SuperResolverShape(width=8, blocks=1),
    "denoiser": DenoiserShape(widths=(8, 16), middle=0, max_time=1.0),
}
_SHAPES: TypeAdapter[SuperResolverShape | DenoiserShape] = TypeAdapter(Shape)


class _Description(BaseModel):
    """The JSON beside the weights. Its other fields tell people how the weights were made."""

    network: Shape


def _named(weights: str) -> str:
    if weights not in (OWN, TINY) and not is_file(weights):
        raise ValueError(f"expected {OWN}, {TINY}, or the path of a .json or .safetensors file")
    return weights


Weights: TypeAlias = Annotated[str, Field(max_length=1024), AfterValidator(_named)]


class NamedNetwork(NamedTuple):
    """A network as a defense names it."""

    kind: NetworkKind
    weights: str


def is_file(weights: str) -> bool:
    """Whether a path names the weights; a service must not open such paths from requests."""
    return weights.endswith((".json", ".safetensors"))


def open_super_resolver(weights: str, *, like: Tensor) -> Callable[[Pixels], Tensor]:
    """The network that enlarges, on the device and in the type of `like`. Raises as `load_purifier`."""
    return _loaded("super_resolver", weights, str(like.device), like.dtype)


def open_denoiser(weights: str, *, like: Tensor, time: float) -> Denoiser:
    """The network that predicts noise, on the device and in the type of `like`, for noise up to `time`.

    Raises as `load_purifier`, and for a time beyond its training.
    """
    network = cast(Denoiser, _loaded("denoiser", weights, str(like.device), like.dtype))
    if time > network.shape.max_time:
        trained = network.shape.max_time
        raise PurifierRefused(
            f"this denoiser was trained up to time {trained:g}, noise of {sigma_of(trained):.3g} in pixel "
            f"units, but time {time:.3g} is asked for.",
            field="weights",
            help="Ask for less noise.",
        )
    return network


def load_purifier(kind: NetworkKind, weights: str) -> nn.Module:
    """A frozen float32 network.

    Raises PurifierRefused for weights that don't ship, can't be read, or belong to another network.
    """
    # A service loads in inference mode, but a probe in the same process needs gradients.
    with torch.inference_mode(False):
        if weights == TINY:
            network = _tiny(kind)
        elif weights.endswith(".safetensors"):
            if kind != "super_resolver":
                raise PurifierRefused(
                    "only super-resolvers are read from bare weights.",
                    field="weights",
                    help="Give the JSON of a denoiser.",
                )
            network = load_mounted(Path(weights))
        else:
            network = _read(kind, _shipped(kind) if weights == OWN else Path(weights))
        return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


@lru_cache(maxsize=16)
def digest_of(kind: NetworkKind, weights: str) -> str:
    """sha256 of the named tensors: names of weights may mean others tomorrow. Raises as `load_purifier`."""
    state = _loaded(kind, weights, "cpu", torch.float32).state_dict()
    return json_digest({name: tensor_digest(tensor) for name, tensor in state.items()})


def write_purifier(network: SuperResolver | Denoiser, path: Path, facts: dict[str, Any]) -> None:
    """PATH.json with the shape and the facts, PATH.safetensors in fp16."""
    state = network.state_dict()
    tensors = {name: tensor.detach().cpu().half().contiguous() for name, tensor in state.items()}
    write_atomically(path.with_suffix(".safetensors"), save(tensors))
    description = {"network": network.shape.model_dump(mode="json")} | facts
    write_atomically(path.with_suffix(".json"), (json.dumps(description, indent=2) + "\n").encode())


def build_network(shape: SuperResolverShape | DenoiserShape) -> SuperResolver | Denoiser:
    """An untrained network, drawn from torch's global generator."""
    return SuperResolver(shape) if isinstance(shape, SuperResolverShape) else Denoiser(shape)


@lru_cache(maxsize=16)
def _loaded(kind: NetworkKind, weights: str, device: str, dtype: torch.dtype) -> nn.Module:
    with torch.inference_mode(False):  # as in `load_purifier`
        return load_purifier(kind, weights).to(device, dtype)


def _shipped(kind: NetworkKind) -> Path:
    path = Path(__file__).with_name(f"{kind}.json")
    if not path.exists():
        raise PurifierRefused(
            f"no weights of a {kind.replace('_', '-')} ship with this version.",
            field="weights",
            help="Train one with `robustclip train-purifiers`, and name its JSON here.",
        )
    return path


def _read(kind: NetworkKind, path: Path) -> nn.Module:
    try:
        shape = _Description.model_validate_json(path.read_bytes()).network
        if shape.kind != kind:
            raise PurifierRefused(f"{path} is a {shape.kind}, not a {kind}.", field="weights")
        with torch.random.fork_rng(devices=[]):
            network = build_network(shape)
        state = {name: tensor.float() for name, tensor in load_file(path.with_suffix(".safetensors")).items()}
        network.load_state_dict(state)
    except (OSError, ValidationError, SafetensorError, RuntimeError) as error:
        raise PurifierRefused(
            f"{path} can't be read as a {kind}: {first_line(error)}",
            field="weights",
            help="Give a JSON with its safetensors beside it.",
        ) from error
    refuse_infinite(state, path)
    return network


def _tiny(kind: NetworkKind) -> nn.Module:
    """The same network in every process."""
    with torch.random.fork_rng(devices=[]):
        network = build_network(_TINY_SHAPES[kind])
    generator = torch.Generator().manual_seed(20261123)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            small = parameter.ndim < 2 or (kind == "super_resolver" and name.startswith("exit."))
            size = 0.02 if small else parameter[0].numel() ** -0.5
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return network
