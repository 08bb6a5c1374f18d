"""Models: open_clip builds, loads and saves all of them, GlyphCLIP of the glyph world included."""

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import open_clip
import pandas as pd
import torch
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import AugmentationCfg, PreprocessCfg, image_transform_v2
from open_clip.transformer import QuickGELU, VisionTransformer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms import CenterCrop, Compose, Normalize, RandomResizedCrop, Resize, v2

from . import residual
from .errors import UserError, nearest
from .files import file_hash, replacing

ASSETS = Path(__file__).parent / "assets"
GLYPH_WEIGHTS = ASSETS / "GlyphCLIP.safetensors"
open_clip.add_model_config(ASSETS / "configs")


def real_clip() -> pd.DataFrame:
    """What GlyphCLIP is to resemble: index statistic, columns "real CLIP" (text) and "measured on".

    The statistics are those of ``geometry.logit_structure``, and the gap; docs/REAL_CLIP.md says how they
    were measured.
    """
    return pd.read_csv(ASSETS / "real_clip.csv", index_col="statistic", dtype=str)


def model_config(name: str) -> dict:
    """The open_clip config of an architecture; UserError with the nearest names if there is none."""
    config = open_clip.get_model_config(name)
    if config is None:
        known = nearest(name, open_clip.list_models())
        raise UserError(f"model {name!r} is not an open_clip architecture{known}")
    return config


def transforms(
    name: str, pretrained: str, crop_scale: Sequence[float] = (0.9, 1.0)
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """(train, evaluation): RGB PIL image or uint8 (3, H, W) -> normalised float32 (3, S, S).

    open_clip's pipelines with torchvision's v2 kernels, which resize bytes: faster, and within a grey level
    or two of PIL. Training is RandomResizedCrop at ``crop_scale`` (CMA's and FLYP's recipe: 0.9-1.0, bicubic,
    no flip).
    """
    config, augment = preprocessing(name, pretrained), AugmentationCfg(scale=tuple(crop_scale))
    return _on_bytes(image_transform_v2(config, is_train=True, aug_cfg=augment)), evaluation(config)


def preprocessing(name: str, pretrained: str) -> PreprocessCfg:
    """Size, mean, std, interpolation and resize mode of a model's images, as its weights were trained."""
    size = model_config(name)["vision_cfg"].get("image_size", 224)
    known = open_clip.get_pretrained_cfg(name, pretrained) or {}
    if name == "GlyphCLIP":
        known = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    given = {k: known[k] for k in ("mean", "std", "interpolation", "resize_mode") if known.get(k)}
    return PreprocessCfg(size=size, **given)


def evaluation(config: PreprocessCfg) -> Callable[..., Tensor]:
    """The evaluation half of ``transforms``."""
    return _on_bytes(image_transform_v2(config, is_train=False))


def _on_bytes(pipeline: Compose) -> v2.Compose:
    """The same steps in v2, on bytes until the last."""
    steps: list[nn.Module] = [v2.ToImage()]
    for step in pipeline.transforms:
        if isinstance(step, RandomResizedCrop):
            steps.append(v2.RandomResizedCrop(step.size, step.scale, step.ratio, step.interpolation))
        elif isinstance(step, Resize):
            steps.append(v2.Resize(step.size, step.interpolation))
        elif isinstance(step, CenterCrop):
            steps.append(v2.CenterCrop(step.size))
        elif isinstance(step, Normalize):
            steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(step.mean, step.std, inplace=True)]
    return v2.Compose([*steps, v2.ToPureTensor()])


# --- weights files ---


def _read(path: Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """(state dict, metadata) of a local file, never unpickling code; UserError for all but plain tensors.

    On ``device`` "meta" the names and shapes are read, not the numbers: milliseconds for any size.
    """
    if not path.is_file():
        remedy = "give safetensors, a state dict, or an open_clip tag"
        raise UserError(f"weights file {path} does not exist; {remedy}")
    metadata: dict[str, str] = {}
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
            return {k: v.to(device) for k, v in load_file(path).items()}, metadata
        with warnings.catch_warnings(action="ignore"):  # torch's own advice on files that are refused anyway
            state = torch.load(path, map_location=device, weights_only=True)
        state = state.get("state_dict", state) if isinstance(state, dict) else {}
        if not state or not all(isinstance(v, Tensor) for v in state.values()):
            raise TypeError("other things than tensors by name")
    except Exception as fault:  # junk can break torch's reader in any way: KeyError, IndexError, ...
        raise _refused(path, fault) from None
    return {k.removeprefix("module."): v for k, v in state.items()}, metadata


def _refused(path: Path, fault: Exception) -> UserError:
    """Why torch or safetensors did not read a file, and what to do about it, in one sentence."""
    if "TorchScript" in str(fault):
        return UserError(
            f"weights file {path} is a TorchScript archive (OpenAI's own format), which is code; where you "
            f'trust it, run torch.save(torch.jit.load("{path}", map_location="cpu").state_dict(), NEW_FILE) '
            "and give NEW_FILE"
        )
    reason = f"{type(fault).__name__}: {fault}".splitlines()[0]
    reason = reason.split(". ")[0][:120]  # less torch's advice to trust it
    return UserError(
        f"weights file {path} is no plain state dict of tensors ({reason}): it is truncated, of another "
        "format, or a pickle, refused because loading it could run code; fetch it again, or, where you trust "
        "it, save its state dict alone with torch.save"
    )


def _check_activation(model: nn.Module, name: str) -> None:
    """UserError unless the model has its config's activation: with the other one its features are wrong."""
    quick = model_config(name).get("quick_gelu", False)
    tower = (
        model.visual if isinstance(model.visual, VisionTransformer) else model
    )  # a ResNet's ReLU tells nothing
    if any(isinstance(module, QuickGELU) for module in tower.modules()) != quick:
        fault = f"was built {'without' if quick else 'with'} QuickGELU against its config"
        raise UserError(f"model {name!r} {fault}; install the open_clip_torch of requirements.lock")


def _load_weights(model: nn.Module, path: Path, name: str, device: str = "cpu") -> None:
    """Strictly load a local file; the architecture and activation recorded in it must be the model's.

    A file that does not record its model is OpenAI's, trained with QuickGELU, if its path says "openai" (so
    does the Hugging Face cache's folder) or it holds the three numbers that only OpenAI's own archives have.
    """
    state, metadata = _read(path, device)
    numbers = [state.pop(k, None) for k in ("input_resolution", "context_length", "vocab_size")]
    saved, twin = metadata.get("model", name), f"{name}-quickgelu"
    if saved != name:
        raise UserError(
            f"weights file {path} was saved from model {saved!r}, not {name!r}; set model to match"
        )
    openai = numbers[0] is not None or "openai" in f"{path.absolute()} {path.resolve()}".lower()
    if openai and "model" not in metadata and twin in open_clip.list_models():
        raise UserError(
            f"weights file {path} is OpenAI's by its path or content, trained with QuickGELU; use model "
            f'{twin!r}, or a path without "openai" if it is not'
        )
    try:
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    except RuntimeError as fault:
        reason = " ".join(str(fault).split())[:200]
        what = f"weights file {path} does not fit model {name!r}: {reason}"
        raise UserError(f"{what}; set model to match") from None


# --- models ---


def load(
    name: str = "GlyphCLIP", pretrained: str = "builtin", device: str = "cpu"
) -> tuple[nn.Module, Callable[..., Tensor], Callable[..., Tensor]]:
    """(model in eval mode, evaluation preprocess, tokenizer), built by open_clip.

    ``pretrained``: "builtin" (GlyphCLIP's own weights), "random", a path to safetensors or a state dict, or
    an open_clip tag. QuickGELU weights (all of OpenAI's) are refused under a name without it (open_clip only
    warns, and the features are then wrong: mlfoundations/open_clip#771). Raises UserError with the nearest
    names. "residual-64" is a model on given embeddings: ``pretrained`` is their study or a checkpoint.
    """
    if name.startswith(residual.PREFIX):
        model = _residual(name, Path(pretrained))
        tokenizer = residual.RowTokenizer(model)  # before its texts move to a device that may hold no data
        return model.to(device).eval(), residual.no_image, tokenizer
    model = build(name, pretrained, device)
    return model, transforms(name, pretrained)[1], _tokenizer(name)


@lru_cache
def _tokenizer(name: str) -> Callable[..., Tensor]:
    return GlyphTokenizer() if name == "GlyphCLIP" else open_clip.get_tokenizer(name)


def build(name: str, pretrained: str, device: str = "cpu") -> nn.Module:
    """The model of ``load`` alone, in eval mode: from a local file without a look at any network.

    On ``device`` "meta" a local file is held against the model by names and shapes, and its numbers are left.
    """
    if name.startswith(residual.PREFIX):
        return _residual(name, Path(pretrained)).to(device).eval()
    path, tag = source(name, pretrained)
    logging.disable(logging.WARNING)  # open_clip warns of random weights although they are loaded next
    try:
        model = open_clip.create_model(name, pretrained=tag, device=device)
    except (OSError, RuntimeError) as fault:
        raise _not_had(name, tag, fault) from None
    finally:
        logging.disable(logging.NOTSET)
    _check_activation(model, name)
    if path:
        _load_weights(model, path, name, "meta" if device == "meta" else "cpu")
    return model.eval()


def _residual(name: str, path: Path) -> residual.Residual:
    """The start is built from a study.yaml, a checkpoint holds its own texts."""
    if path.suffix != ".safetensors":
        return residual.start(name, path)
    model = residual.like(name, _read(path)[0])
    _load_weights(model, path, name)
    return model


def source(name: str, pretrained: str) -> tuple[Path | None, str | None]:
    """(path, tag) of the weights, one of them None, both for "random".

    UserError for no architecture, for neither file nor tag, for a tag with another activation than the model.
    """
    if name.startswith(residual.PREFIX):
        return Path(pretrained), None
    quick = model_config(name).get("quick_gelu")
    if name == "GlyphCLIP" and pretrained == "builtin":
        return GLYPH_WEIGHTS, None
    if pretrained == "random":
        return None, None
    if "/" in pretrained or Path(pretrained).suffix in (".safetensors", ".pt", ".pth", ".bin"):
        return Path(pretrained), None
    if pretrained not in (tags := open_clip.list_pretrained_tags_by_model(name)):
        own = ["builtin"] if name == "GlyphCLIP" else []
        known = nearest(pretrained, [*own, *tags, "random"])
        raise UserError(f"pretrained {pretrained!r} is no tag of model {name!r} and no file{known}")
    if open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu") and not quick:
        twin = f"{name}-quickgelu"
        raise UserError(f"pretrained {pretrained!r} was trained with QuickGELU; use model {twin!r}")
    return None, pretrained


def _not_had(name: str, tag: str | None, fault: Exception) -> UserError:
    reason = str(fault).splitlines()[0][:160]
    if not tag:  # no weights were asked for
        return UserError(
            f"model {name!r} cannot be built ({reason}); install what it asks for, or give another"
        )
    remedy = "download them and give the path"
    return UserError(f"weights {tag!r} of {name!r} could not be had ({reason}); {remedy}")


@dataclass(frozen=True)
class Network:
    """A model (``name``, ``pretrained`` as in ``load``), built when it is first needed.

    Cached embeddings are found by its ``key`` alone.
    """

    name: str
    pretrained: str

    @cached_property
    def key(self) -> str:
        """Hash of architecture and weights file. UserError when the file cannot be had."""
        path, tag = source(self.name, self.pretrained)
        if tag:
            try:
                path = Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(self.name, tag)))
            except (OSError, RuntimeError) as fault:
                raise _not_had(self.name, tag, fault) from None
        if path is None or self.name.startswith(residual.PREFIX):  # a study's files decide, not its yaml
            return weights_hash(self.parts[0])
        if not path.is_file():
            _read(path)  # says what is wrong
        return f"{self.name}-{file_hash(path)[:16]}"

    @cached_property
    def parts(self) -> tuple[nn.Module, Callable[..., Tensor], Callable[..., Tensor]]:
        """(model, preprocess, tokenizer), as ``load`` gives them, built once."""
        return load(self.name, self.pretrained)


class UnitImages(nn.Module):
    """Pixels (n, 3, S, S) -> unit rows (n, d): a model's image tower as one module, to be exported."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(self.model.encode_image(images), dim=-1)


def save(model: nn.Module, path: Path, name: str, half: bool = False) -> None:
    """Write a model's state dict as safetensors with its architecture's name inside, whole or not at all.

    ``half`` stores float16 (GlyphCLIP's package file; the logit scale stays), else the dtype as it is.
    """
    state = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    if half:
        state = {k: v.half() if v.is_floating_point() and v.ndim else v for k, v in state.items()}
    with replacing(path) as aside:
        save_file(state, aside, metadata={"model": name})


def weights_hash(model: nn.Module) -> str:
    """Hex digest (16) of every parameter and buffer, names included."""
    return state_hash(model.state_dict())


def state_hash(state: Mapping[str, Tensor]) -> str:
    """The same of a state dict."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class GlyphTokenizer(SimpleTokenizer):
    """open_clip's CLIP tokenizer with its vocabulary cut to the tokens that glyph names need.

    A token outside the cut vocabulary is spelled in byte tokens, so every text has a code. Call with texts,
    get (n, context_length) int64; the end token has the largest id, as CLIP's pooling expects.
    """

    def __init__(self, context_length: int = 40) -> None:
        super().__init__(context_length=context_length)
        kept = json.loads((ASSETS / "GlyphCLIP.vocabulary.json").read_text())
        self.new = {old: new for new, old in enumerate(kept, start=1)}  # 0 pads
        self.sot_token_id, self.eot_token_id = len(kept) + 1, len(kept) + 2

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without start and end."""
        codes: list[int] = []
        for old in super().encode(text):
            spelled = (
                [old] if old in self.new else map(self.encoder.get, self.decoder[old].replace("</w>", ""))
            )
            codes += [self.new[token] for token in spelled]
        return codes


def causal(model: nn.Module) -> bool:
    """Whether the text tower is CLIP's: causal, pooled at its end token, a matrix behind it."""
    mask, projection = getattr(model, "attn_mask", None), getattr(model, "text_projection", None)
    return mask is not None and model.text_pool_type == "argmax" and isinstance(projection, Tensor)


def encode_text(model: nn.Module, tokens: Tensor) -> Tensor:
    """Text features (n, d), not normalised, with the context cut to the longest text of the batch.

    Exact for a causal tower pooled at its end token: what stands after that token cannot reach it.
    Any other tower is run at full width by open_clip.
    """
    if not causal(model):
        return model.encode_text(tokens)
    ends = tokens.argmax(dim=-1)
    return encode_embedded(model, model.token_embedding(tokens[:, : int(ends.max()) + 1]), ends)


def encode_embedded(model: nn.Module, embedded: Tensor, ends: Tensor) -> Tensor:
    """The same of embedded tokens (n, w, width), before positions, whose end tokens lie at ``ends`` (n,)."""
    width, dtype = embedded.shape[1], model.transformer.get_cast_dtype()
    x = embedded.to(dtype) + model.positional_embedding[:width].to(dtype)
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:width, :width]))
    return x[torch.arange(len(x), device=x.device), ends] @ model.text_projection
