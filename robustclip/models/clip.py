"""Load a frozen CLIP: embedded by name, an open_clip tag, a local weights file or a hub repository."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import open_clip
import torch
from open_clip.transformer import QuickGELU, VisionTransformer
from safetensors import SafetensorError
from torch import Tensor, nn

from robustclip import DEFAULT_BACKBONE
from robustclip.backbones import embedded_names, load_embedded
from robustclip.backbones.stem import ConvStem
from robustclip.errors import UnsupportedClip
from robustclip.models.weights import model_from_file, model_from_open_clip, refuse_foreign_towers

EMBEDDED, HUB = "embedded", "hub"  # `Clip.pretrained` of weights without a tag or file
CLIP_HEAD_WIDTH = 64


class Tokenize(Protocol):
    """Texts to [L, context_length] token ids; by default with the CLIP's own context length."""

    def __call__(self, texts: list[str], context_length: int | None = None) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Clip:
    """A frozen CLIP in eval mode: open_clip's model and what is needed to use it.

    tokenize       texts to [L, context_length] int64; longer texts are cut without a message
    mean, std      [3] the normalisation that the towers apply to pixels in [0, 1]
    visual_width, visual_layers  None for an image tower that takes no visual prompts (ResNets, timm towers)
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
        """[] the model's own temperature (100 for OpenAI's weights)."""
        return self.model.logit_scale.exp()

    def to(self, device: torch.device | str) -> "Clip":
        """The same CLIP on another device (moves the modules in place)."""
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
                harden` wrote, an open_clip architecture (`ViT-B-32`), or `hf-hub:owner/repository`
    pretrained  for open_clip architectures: a tag (`laion2b_s34b_b79k`), or the path of a state dict
                (.safetensors or .pt); else None
    as_trained  leave an embedded stem as it was trained, for further training; else its batch norms are
                folded into its convolutions

    Raises UnsupportedClip: unknown name, missing file or weights of another architecture, an activation that
    contradicts the weights, or towers that are not open_clip's own.
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
    hub = arch.startswith("hf-hub:")
    if not hub:
        if arch not in open_clip.list_models():
            raise UnsupportedClip(
                f"unknown architecture {arch!r}.",
                field="clip.arch",
                help=f"Use {', '.join(embedded_names())}, hf-hub:owner/repository, or an open_clip name such "
                f"as ViT-B-32.",
            )
        if pretrained is None:
            raise UnsupportedClip(
                f"{arch} needs weights.",
                field="clip.pretrained",
                help="Give an open_clip tag or the path of a weights file.",
            )
        path, tags = Path(pretrained), open_clip.list_pretrained_tags_by_model(arch)
        if path.is_file():
            return describe(model_from_file(arch, path).to(device), arch, path.name)
        if pretrained not in tags:
            raise UnsupportedClip(
                f"{pretrained!r} is neither a file nor a tag of {arch}.",
                field="clip.pretrained",
                help=f"Tags: {', '.join(tags) or 'none'}.",
            )
    model, mean, std = model_from_open_clip(arch, None if hub else pretrained)
    return describe(model.to(device), arch, HUB if hub or not pretrained else pretrained, mean=mean, std=std)


def describe(
    model: nn.Module,
    arch: str,
    pretrained: str,
    *,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    fingerprint: str | None = None,
) -> Clip:
    """Freeze an open_clip model and wrap it. UnsupportedClip if the towers can't run it with prompts."""
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
    """sha256 of all weights (name, shape, float32 bytes), the normalisation, activation and width of heads.

    It is the same on every device and from every file format.
    """
    state = hashlib.sha256()
    for name, tensor in [*sorted(model.state_dict().items()), ("mean", mean), ("std", std)]:
        if name.endswith("num_batches_tracked"):  # counts training steps; no forward pass reads it
            continue
        state.update(f"{name}{list(tensor.shape)}".encode())
        state.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
    for name, module in model.named_modules():
        # Equal weights compute something else with another activation or other heads than CLIP's of width 64.
        if isinstance(module, QuickGELU):
            state.update(f"{name} QuickGELU".encode())
        if isinstance(module, nn.MultiheadAttention) and module.head_dim != CLIP_HEAD_WIDTH:
            state.update(f"{name} {module.num_heads} heads".encode())
    return state.hexdigest()
