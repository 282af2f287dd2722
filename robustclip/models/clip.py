"""Load a frozen CLIP: embedded by name, an open_clip tag, a local weights file or a hub repository.

Knows where weights come from, not how they compute.
"""

import hashlib
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import open_clip
import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from robustclip import DEFAULT_BACKBONE
from robustclip.backbones import embedded_names, load_embedded
from robustclip.backbones.stem import ConvStem
from robustclip.errors import UnsupportedClip

EMBEDDED = "embedded"  # where weights come from when no tag and no file says it
HUB = "hub"
CLIP_HEAD_WIDTH = 64


class Tokenize(Protocol):
    """Texts to [L, context_length] token ids; the CLIP's own length unless given another."""

    def __call__(self, texts: list[str], context_length: int | None = None) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Clip:
    """A frozen CLIP in eval mode: open_clip's modules, what pixels and labels need, and a name for the whole.

    `tokenize` maps texts to [L, context_length] int64, cut there without a word. `mean`, `std` [3] are the
    normalisation that the towers apply to pixels in [0, 1]. `visual_width`, `visual_layers` are None for an
    image tower that takes no visual prompts (ResNets, timm towers).
    """

    model: Any
    tokenize: Tokenize
    arch: str
    pretrained: str
    fingerprint: str
    image_size: int
    mean: Tensor
    std: Tensor
    context_length: int
    embed_dim: int
    text_width: int
    text_layers: int
    visual_width: int | None
    visual_layers: int | None

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def logit_scale(self) -> Tensor:
        """[] the model's own temperature, 100 for OpenAI weights; never a constant in code."""
        return self.model.logit_scale.exp()

    def to(self, device: torch.device | str) -> "Clip":
        """The same CLIP with its weights on another device (moves the modules in place)."""
        return describe(
            self.model.to(device),
            self.arch,
            self.pretrained,
            mean=self.mean.to(device),
            std=self.std.to(device),
            fingerprint=self.fingerprint,
        )


def load_clip(
    arch: str = DEFAULT_BACKBONE,
    pretrained: str | None = None,
    *,
    device: torch.device | str = "cpu",
    as_trained: bool = False,
) -> Clip:
    """Load and freeze a CLIP.

    arch        an embedded name (`mini-robust`, `mini`, `tiny`), the JSON of a backbone that `robustclip
                harden` wrote, an open_clip architecture (`ViT-B-32`), or `hf-hub:owner/repository`.
    pretrained  None for all but architectures; else an open_clip tag (`laion2b_s34b_b79k`) or the path of a
                .safetensors or .pt state dict.
    as_trained  leave the modules of an embedded stem as they were trained, to go on from there; else its
                convolutions compute their norms, too.

    Raises UnsupportedClip with the reason and what to do: unknown name, missing or foreign file, activation
    that contradicts the weights, towers that are not open_clip's native ones.
    """
    if arch in embedded_names() or arch.endswith(".json"):
        if pretrained not in (None, EMBEDDED):
            raise UnsupportedClip(
                f"{arch!r} carries its own weights, found {pretrained!r}.",
                field="clip.pretrained",
                help="Leave it out.",
            )
        try:
            model, config = load_embedded(arch)
            mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise UnsupportedClip(
                f"{arch} can't be read as a backbone: {error!s:.200}",
                field="clip.arch",
                help="Give a JSON with its safetensors beside it.",
            ) from error
        clip = describe(model.to(device), Path(arch).stem, EMBEDDED, mean=mean, std=std)
        if isinstance(stem := getattr(clip.model.visual, "conv1", None), ConvStem) and not as_trained:
            stem.absorb_norms()
        return clip
    if arch.startswith("hf-hub:"):
        return _from_open_clip(arch, None, device)
    if arch not in open_clip.list_models():
        raise UnsupportedClip(
            f"unknown architecture {arch!r}.",
            field="clip.arch",
            help=f"Use {', '.join(embedded_names())}, hf-hub:owner/repository, or an open_clip name such as "
            f"ViT-B-32.",
        )
    if pretrained is None:
        raise UnsupportedClip(
            f"{arch} needs weights.",
            field="clip.pretrained",
            help="Give an open_clip tag or the path of a weights file.",
        )
    if Path(pretrained).is_file():
        return _from_file(arch, Path(pretrained), device)
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if pretrained not in tags:
        raise UnsupportedClip(
            f"{pretrained!r} is neither a file nor a tag of {arch}.",
            field="clip.pretrained",
            help=f"Tags: {', '.join(tags) or 'none'}.",
        )
    return _from_open_clip(arch, pretrained, device)


def describe(
    model: nn.Module,
    arch: str,
    pretrained: str,
    *,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    fingerprint: str | None = None,
) -> Clip:
    """Freeze an open_clip model and wrap it, or UnsupportedClip if it is not one that the towers can run with
    prompts.
    """
    refuse_foreign_towers(model, arch)
    model = model.eval().requires_grad_(False)
    clip = cast(Any, model)
    visual = clip.visual
    size = visual.image_size[0] if isinstance(visual.image_size, tuple) else visual.image_size
    device = clip.logit_scale.device
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN) if mean is None else mean
    std = torch.tensor(open_clip.OPENAI_DATASET_STD) if std is None else std
    transformer = visual.transformer if isinstance(visual, VisionTransformer) else None
    return Clip(
        model=clip,
        tokenize=open_clip.SimpleTokenizer(context_length=clip.context_length),
        arch=arch,
        pretrained=pretrained,
        fingerprint=fingerprint or fingerprint_of(model, mean, std),
        image_size=int(size),
        mean=mean.to(device),
        std=std.to(device),
        context_length=int(clip.context_length),
        embed_dim=int(clip.text_projection.shape[1]),
        text_width=int(clip.transformer.width),
        text_layers=len(clip.transformer.resblocks),
        visual_width=None if transformer is None else int(transformer.width),
        visual_layers=None if transformer is None else len(transformer.resblocks),
    )


def fingerprint_of(model: nn.Module, mean: Tensor, std: Tensor) -> str:
    """sha256 over names, shapes and float32 bytes of all weights, the normalisation, and what computes
    differently on equal weights.

    The same on every device and from every file format.
    """
    state = hashlib.sha256()
    for name, tensor in [*sorted(model.state_dict().items()), ("mean", mean), ("std", std)]:
        if name.endswith("num_batches_tracked"):  # a counter of training steps: no forward reads it
            continue
        state.update(f"{name}{list(tensor.shape)}".encode())
        state.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
    for (
        name,
        module,
    ) in (
        model.named_modules()
    ):  # what the weights don't show: another activation, heads of another width than CLIP's 64
        if isinstance(module, QuickGELU):
            state.update(f"{name} QuickGELU".encode())
        if isinstance(module, nn.MultiheadAttention) and module.head_dim != CLIP_HEAD_WIDTH:
            state.update(f"{name} {module.num_heads} heads".encode())
    return state.hexdigest()


def refuse_foreign_towers(model: nn.Module, arch: str) -> None:
    """UnsupportedClip for what our forwards would compute wrongly, by name."""
    if not isinstance(model, open_clip.CLIP):
        raise _foreign_text(arch, type(model).__name__)
    clip = cast(Any, model)
    if not isinstance(clip.text_projection, nn.Parameter) or clip.text_pool_type != "argmax":
        raise UnsupportedClip(
            f"{arch} pools or projects its text differently ({clip.text_pool_type}).",
            field="clip.arch",
            help="Use ViT-B-32, say.",
        )
    if clip.logit_bias is not None:
        raise UnsupportedClip(
            f"{arch} has a logit bias (a sigmoid loss).",
            field="clip.arch",
            help="Use a CLIP trained with the softmax loss.",
        )
    towers: list[Any] = [clip.transformer]
    if isinstance(clip.visual, VisionTransformer):
        towers.append(clip.visual.transformer)
        if clip.visual.attn_pool is not None or clip.visual.pool_type != "tok":
            raise UnsupportedClip(
                f"{arch} does not read its image feature at the class token.",
                field="clip.arch",
                help="Use ViT-B-32, say.",
            )
    for block in (block for tower in towers for block in tower.resblocks):
        if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
            raise UnsupportedClip(
                f"{arch} uses {type(block).__name__}.",
                field="clip.arch",
                help="Use a CLIP with plain residual attention blocks.",
            )


def _from_open_clip(arch: str, pretrained: str | None, device: torch.device | str) -> Clip:
    try:
        # Without `require_pretrained` a repository whose weights can't be fetched would be served with random
        # ones.
        model = open_clip.create_model(arch, pretrained=pretrained, precision="fp32", require_pretrained=True)
    except (RuntimeError, ValueError, OSError) as error:
        raise UnsupportedClip(
            f"{arch} {pretrained or ''} could not be loaded: {error}",
            field="clip.arch",
            help="Check the name and the network, or give a local file.",
        ) from error
    if pretrained is not None:
        config = open_clip.get_pretrained_cfg(arch, pretrained)
        guard_quick_gelu(model, arch, expected=bool(config.get("quick_gelu")))
    pictures = open_clip.get_model_preprocess_cfg(model)
    return describe(
        model.to(device),
        arch,
        pretrained or HUB,
        mean=torch.tensor(pictures["mean"]),
        std=torch.tensor(pictures["std"]),
    )


def _from_file(arch: str, path: Path, device: torch.device | str) -> Clip:
    model = _blank(arch)
    if path.suffix != ".safetensors" and is_torchscript(path):
        # OpenAI's own files are TorchScript archives, trained with QuickGELU; the plain architectures of
        # open_clip use GELU and lose several points.
        guard_quick_gelu(model, arch, expected=True)
    state = {name.removeprefix("module."): tensor.float() for name, tensor in _read_state(path).items()}
    missing, unexpected = _load(model, state)
    if missing or unexpected:
        raise UnsupportedClip(
            f"{path.name} does not fit {arch}: {len(missing)} tensors missing or misshapen "
            f"({', '.join(missing[:3])}), {len(unexpected)} unexpected.",
            field="clip.pretrained",
            help="Give the architecture that these weights were trained with.",
        )
    return describe(model.to(device), arch, path.name)


def _blank(arch: str) -> nn.Module:
    """An architecture with random weights, to be filled: `open_clip.create_model` would warn everybody that
    they are random.
    """
    config = cast(dict[str, Any], open_clip.get_model_config(arch))
    if config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]:
        raise _foreign_text(arch, "CoCa" if "multimodal_cfg" in config else "CustomTextCLIP")
    return open_clip.CLIP(**config)


def _foreign_text(arch: str, kind: str) -> UnsupportedClip:
    return UnsupportedClip(
        f"{arch} is a {kind}, whose text tower is not open_clip's native one.",
        field="clip.arch",
        help="Use a CLIP with open_clip's own text transformer, such as ViT-B-32, ViT-L-14 or RN50.",
    )


def _read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file: safetensors, a (wrapped) state dict without code, or OpenAI's
    TorchScript archive.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if is_torchscript(path):
            with warnings.catch_warnings(
                action="ignore", category=FutureWarning
            ):  # TorchScript is deprecated, OpenAI's files won't change
                state: dict[str, Any] = torch.jit.load(path, map_location="cpu").state_dict()
            state = {
                name: tensor
                for name, tensor in state.items()
                if name not in ("input_resolution", "context_length", "vocab_size")
            }
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
            state = loaded.get("state_dict", loaded)
        if state and all(isinstance(tensor, Tensor) for tensor in state.values()):
            return state
    except (
        Exception
    ) as error:  # each format fails in its own ways, and all mean the same to who gave the file
        raise UnsupportedClip(
            f"{path.name} can't be read as weights: {error!s:.200}",
            field="clip.pretrained",
            help="Save it as safetensors.",
        ) from error
    raise UnsupportedClip(
        f"{path.name} is not a plain state dict of tensors.",
        field="clip.pretrained",
        help="Save it as safetensors.",
    )


def _load(model: nn.Module, state: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    """Load what fits; names of missing-or-misshapen and of unexpected tensors."""
    own = model.state_dict()
    fitting = {
        name: tensor for name, tensor in state.items() if name in own and own[name].shape == tensor.shape
    }
    model.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting], [name for name in state if name not in own]


def is_torchscript(path: Path) -> bool:
    """Whether a weights file is a TorchScript archive (the format of OpenAI's release)."""
    return zipfile.is_zipfile(path) and any("/code/" in name for name in zipfile.ZipFile(path).namelist())


def guard_quick_gelu(model: nn.Module, arch: str, *, expected: bool) -> None:
    """The QuickGELU trap: weights trained with one activation load silently into the other and lose accuracy.
    UnsupportedClip instead.
    """
    found = any(isinstance(module, QuickGELU) for module in model.modules())
    if found != expected:
        name = f"{arch}-quickgelu" if expected else arch.removesuffix("-quickgelu")
        raise UnsupportedClip(
            f"these weights were trained with {'QuickGELU' if expected else 'GELU'}, {arch} computes "
            f"{'QuickGELU' if found else 'GELU'}.",
            field="clip.arch",
            help=f"Use {name}.",
        )
