"""Load a frozen CLIP: embedded by name, an open_clip tag, local weights, a folder or a hub repository."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from open_clip.transformer import QuickGELU, VisionTransformer
from safetensors import SafetensorError
from torch import Tensor, nn

from robustclip import DEFAULT_BACKBONE
from robustclip.backbones import embedded_names, load_embedded
from robustclip.backbones.stem import ConvStem
from robustclip.errors import InvalidInput, UnsupportedClip
from robustclip.models.architectures import FOLDER, folder_of, is_repository, preprocessing_of
from robustclip.models.capabilities import Capabilities, Capability, capabilities_of, image_size
from robustclip.models.text import native_text
from robustclip.models.tokens import ClipTokenizer, Tokenizer
from robustclip.models.weights import load_open_clip
from robustclip.preprocessing import Preprocessing

EMBEDDED = "embedded"  # `Clip.pretrained` of weights without a tag or file
CLIP_HEAD_WIDTH = 64


@dataclass(frozen=True, eq=False)
class Clip:
    """A frozen CLIP in eval mode: open_clip's model and what is needed to use it.

    tokenize       texts to [L, context_length] int64; longer texts are cut without a message
    preprocessing  how a picture becomes pixels in [0, 1]
    mean, std      [3] the normalisation that the towers apply to pixels in [0, 1]
    text_width, text_layers  0 for a text tower that takes no text prompts
    visual_width, visual_layers  None for an image tower that takes no visual prompts (ResNets, timm towers)
    """

    model: Any
    tokenize: Tokenizer
    arch: str
    pretrained: str
    fingerprint: str
    capabilities: Capabilities
    preprocessing: Preprocessing
    mean: Tensor
    std: Tensor
    embed_dim: int
    text_width: int
    text_layers: int
    visual_width: int | None
    visual_layers: int | None

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def image_size(self) -> int:
        """The side of the square of pixels."""
        return self.preprocessing.size

    @property
    def context_length(self) -> int:
        """Tokens of a text, special ones included."""
        return self.tokenize.context_length

    @property
    def logit_scale(self) -> Tensor:
        """[] the model's own temperature (100 for OpenAI's weights)."""
        return self.model.logit_scale.exp().reshape(())

    def require(self, capability: Capability, *, field: str, help: str | None = None) -> None:
        """InvalidInput with the reason if the CLIP lacks a capability."""
        if reason := self.capabilities.reasons[capability]:
            raise InvalidInput(f"{self.arch} takes no {capability}: {reason}", field=field, help=help)

    def to(self, device: torch.device | str) -> "Clip":
        """The same CLIP on another device (moves the modules in place)."""
        return self.with_model(self.model.to(device), self.pretrained, fingerprint=self.fingerprint)

    def with_model(self, model: nn.Module, pretrained: str, *, fingerprint: str | None = None) -> "Clip":
        """A model of the same architecture that reads the same pictures and texts, frozen."""
        return describe(
            model,
            self.arch,
            pretrained,
            mean=self.mean,
            std=self.std,
            preprocessing=self.preprocessing,
            tokenizer=self.tokenize,
            fingerprint=fingerprint,
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
                harden` wrote, an open_clip architecture (`ViT-B-32`), `local-dir:PATH` for a folder with
                open_clip_config.json, weights and tokenizer, or `hf-hub:owner/repository`
    pretrained  for open_clip architectures: a tag (`laion2b_s34b_b79k`), the path of a state dict
                (.safetensors or .pt), or TAG=PATH for a state dict that was trained like the tag. With
                +PATH at its end the image tower of that file replaces the model's own. For folders and
                repositories +PATH alone, else None
    as_trained  leave an embedded stem as it was trained, for further training; else its batch norms are
                folded into its convolutions

    Raises UnsupportedClip: unknown name, missing file, weights of another architecture, a tokenizer that
    can't be had, or a model without the capability `words`; FeatureNotInstalled: the transformers package is
    needed.
    """
    if arch in embedded_names() or arch.endswith(".json"):
        return _embedded(arch, pretrained, device=device, as_trained=as_trained)
    if not is_repository(arch) and arch not in open_clip.list_models():
        raise UnsupportedClip(
            f"unknown architecture {arch!r}.",
            field="clip.arch",
            help=f"Use {', '.join(embedded_names())}, local-dir:PATH, hf-hub:owner/repository, or an "
            f"open_clip name such as ViT-B-32.",
        )
    loaded = load_open_clip(arch, pretrained)
    preprocessing, mean, std = preprocessing_of(loaded.model, loaded.pictures, arch)
    folder = folder_of(arch)
    return describe(
        loaded.model.to(device),
        arch if folder is None else f"{FOLDER}{folder.resolve().name}",
        loaded.pretrained,
        mean=mean,
        std=std,
        preprocessing=preprocessing,
        tokenizer=loaded.tokenizer,
    )


def _embedded(arch: str, pretrained: str | None, *, device: torch.device | str, as_trained: bool) -> Clip:
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


def describe(
    model: nn.Module,
    arch: str,
    pretrained: str,
    *,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    preprocessing: Preprocessing | None = None,
    tokenizer: Tokenizer | None = None,
    fingerprint: str | None = None,
) -> Clip:
    """Freeze an open_clip model and wrap it; what is left out is OpenAI's.

    Raises UnsupportedClip for a model without the capability `words`.
    """
    capabilities = capabilities_of(model)
    if capabilities.words:
        raise UnsupportedClip(f"{arch}: {capabilities.words}", field="clip.arch", help="Use another CLIP.")
    model = model.eval().requires_grad_(False)
    clip, text = cast(Any, model), native_text(model)
    device = clip.logit_scale.device
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN) if mean is None else mean
    std = torch.tensor(open_clip.OPENAI_DATASET_STD) if std is None else std
    preprocessing = preprocessing or Preprocessing(image_size(model) or 0)
    read: Tokenizer = ClipTokenizer(int(clip.context_length)) if tokenizer is None else tokenizer
    transformer = None if capabilities.visual_prompts else clip.visual.transformer
    return Clip(
        model=clip,
        tokenize=read,
        arch=arch,
        pretrained=pretrained,
        fingerprint=fingerprint
        or fingerprint_of(model, mean, std, (preprocessing.difference, read.identity)),
        capabilities=capabilities,
        preprocessing=preprocessing,
        mean=mean.to(device),
        std=std.to(device),
        embed_dim=_embed_dim(model),
        text_width=0 if text is None else text.tokens.embedding_dim,
        text_layers=0 if text is None else len(text.blocks),
        visual_width=None if transformer is None else int(transformer.width),
        visual_layers=None if transformer is None else len(transformer.resblocks),
    )


def _embed_dim(model: nn.Module) -> int:
    """E, as the text tower says it."""
    if not isinstance(model, open_clip.CLIP):
        tower = cast(Any, model).text
        return int(tower.output_dim or tower.width)
    projection: Any = model.text_projection
    if projection is None:
        return int(cast(Any, model).transformer.width)
    return int(projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1])


def fingerprint_of(model: nn.Module, mean: Tensor, std: Tensor, around: tuple[str, ...] = ()) -> str:
    """sha256 of all weights (name, shape, float32 bytes), the normalisation, and what else matters.

    Of the last only what differs from OpenAI's CLIPs: activation, width of heads, pooling, mask, and
    `around`: preprocessing and tokenizer. It is the same on every device and from every file format.
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
    for fact in (*_differences(model), *around):
        state.update(fact.encode())
    return state.hexdigest()


def _differences(model: nn.Module) -> Iterator[str]:
    """How towers without CLIP's class token, mask and end token compute, as far as weights do not tell."""
    text, visual = native_text(model), cast(Any, model).visual
    if text is not None and not text.stops:
        yield f"text {text.pool} {text.causal}"
    if text is not None and text.pool == "eos":
        yield f"text ends at {text.eos}"
    if isinstance(visual, VisionTransformer) and visual.pool_type == "avg":
        yield f"image average {visual.final_ln_after_pool}"
    if isinstance(model, open_clip.CustomTextCLIP):
        yield f"pool {getattr(getattr(visual, 'trunk', None), 'global_pool', '')}"
        for name, module in model.named_modules():
            if isinstance(module, nn.LayerNorm):
                yield f"{name} {module.eps:g}"
            if isinstance(module, nn.GELU) and module.approximate != "none":
                yield f"{name} {module.approximate}"
