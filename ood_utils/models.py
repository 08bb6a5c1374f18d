"""Models: open_clip builds, loads and saves all of them, GlyphCLIP of the glyph world included."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
import pickletools
import warnings
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import AugmentationCfg, PreprocessCfg, image_transform_v2
from open_clip.transformer import QuickGELU, VisionTransformer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .errors import UserError

ASSETS = Path(__file__).parent / "assets"
GLYPH_WEIGHTS = ASSETS / "GlyphCLIP.safetensors"
open_clip.add_model_config(ASSETS / "configs")


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _config(name: str) -> dict:
    """The open_clip config of an architecture; UserError with the nearest names if there is none."""
    config = open_clip.get_model_config(name)
    if config is None:
        raise UserError(
            f"model {name!r} is not an open_clip architecture{_nearest(name, open_clip.list_models())}"
        )
    return config


def preprocess_config(name: str, pretrained: str = "builtin") -> PreprocessCfg:
    """Image size, mean and std that the model expects, without building it."""
    size = _config(name)["vision_cfg"].get("image_size", 224)
    known = open_clip.get_pretrained_cfg(name, pretrained) or {}
    if name == "GlyphCLIP":
        known = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    kept = {k: tuple(known[k]) for k in ("mean", "std") if known.get(k)}
    return PreprocessCfg(size=size, interpolation=known.get("interpolation") or "bicubic", **kept)


def transforms(
    name: str, pretrained: str, crop_scale: tuple[float, float] = (0.9, 1.0)
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """(train, evaluation) transforms of open_clip: PIL image -> normalised float32 (3, H, W).

    Training is RandomResizedCrop at ``crop_scale`` (CMA's and FLYP's recipe: 0.9-1.0, bicubic, no flip).
    """
    config = preprocess_config(name, pretrained)
    augment = AugmentationCfg(scale=tuple(crop_scale))
    return image_transform_v2(config, is_train=True, aug_cfg=augment), image_transform_v2(
        config, is_train=False
    )


def _is_pickle(path: Path) -> bool:
    """Whether a file is one whole pickle and nothing after it; its opcodes are read, never run."""
    try:
        with warnings.catch_warnings(action="ignore"), path.open("rb") as file:
            for _ in pickletools.genops(file):
                pass
            return not file.read(1)  # torch's own old format goes on after its first pickle
    except (
        OSError,
        ValueError,
        OverflowError,
        MemoryError,
    ):  # no such opcode, cut short, or an absurd length
        return False


def _unreadable(path: Path, fault: Exception) -> UserError:
    """What kind of file torch or safetensors could not read, and what to do about it, in one sentence."""
    if "TorchScript" in str(fault):
        return UserError(
            f"weights file {path} is a TorchScript archive (OpenAI's own format), which is code; where you trust it, "
            f'run torch.save(torch.jit.load("{path}", map_location="cpu").state_dict(), NEW_FILE) and give NEW_FILE'
        )
    if "GLOBAL" in str(fault) or _is_pickle(path):
        return UserError(
            f"weights file {path} is a pickle of other things than a state dict of tensors, refused because loading it "
            "could run code; where you trust it, save its state dict alone with torch.save"
        )
    reason = f"{type(fault).__name__}: {fault}".splitlines()[0].split(". ")[0][
        :120
    ]  # less torch's advice to trust it
    return UserError(f"weights file {path} is truncated or no weights file at all ({reason}); fetch it again")


def _weights_from_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(state dict, metadata) of a local file, never unpickling code; UserError if missing, truncated or foreign."""
    if not path.is_file():
        raise UserError(
            f"weights file {path} does not exist; give a path to safetensors or a state dict, or an open_clip tag"
        )
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
            return load_file(path), metadata
        with warnings.catch_warnings(action="ignore"):  # torch's own advice on files that are refused anyway
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as fault:  # junk read as a pickle can break torch's reader in any way: KeyError, IndexError, ...
        raise _unreadable(path, fault) from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(
            f"weights file {path} is not a state dict of tensors; save one with models.save and use that"
        )
    return {k.removeprefix("module."): v for k, v in state.items()}, {}


def _check_activation(model: nn.Module, name: str) -> None:
    """UserError unless the vision tower was built with the config's activation: the other one's features are wrong."""
    quick = bool(_config(name).get("quick_gelu", False))
    tower = (
        model.visual if isinstance(model.visual, VisionTransformer) else model
    )  # a ResNet's ReLU tells nothing
    if any(isinstance(module, QuickGELU) for module in tower.modules()) != quick:
        raise UserError(
            f"model {name!r} was built {'without' if quick else 'with'} QuickGELU against its config; "
            "install the open_clip_torch of requirements.lock"
        )


def _load_weights(model: nn.Module, path: Path, name: str) -> None:
    """Strictly load a local file; the architecture and activation recorded in it must be the model's.

    A file that does not record its model is OpenAI's, trained with QuickGELU, if its path says "openai" (so does the
    folder of the Hugging Face cache) or it holds the three numbers that only OpenAI's own archives have.
    """
    state, metadata = _weights_from_file(path)
    openai = "input_resolution" in state or "openai" in f"{path.absolute()} {path.resolve()}".lower()
    state = {k: v for k, v in state.items() if k not in ("input_resolution", "context_length", "vocab_size")}
    if metadata.get("model", name) != name:
        raise UserError(
            f"weights file {path} was saved from model {metadata['model']!r}, not {name!r}; set model to match"
        )
    twin = f"{name}-quickgelu"
    if openai and "model" not in metadata and twin in open_clip.list_models():
        raise UserError(
            f"weights file {path} is OpenAI's by its path or content, trained with QuickGELU; use model {twin!r}, "
            'or a path without "openai" if it is not'
        )
    try:
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    except RuntimeError as fault:
        reason = " ".join(str(fault).split())[:200]
        raise UserError(f"weights file {path} does not fit model {name!r}: {reason}") from None


def load(
    name: str = "GlyphCLIP", pretrained: str = "builtin", device: str = "cpu"
) -> tuple[nn.Module, Callable[..., Tensor], Callable[..., Tensor]]:
    """(model in eval mode, evaluation preprocess, tokenizer), built by open_clip.

    ``pretrained``: "builtin" (GlyphCLIP's own weights), "random", a path to safetensors or a state dict, or an
    open_clip tag. QuickGELU weights (all of OpenAI's) are refused under a name without it (open_clip only warns, and
    the features are then wrong: mlfoundations/open_clip#771). Raises UserError with the nearest names.
    """
    config = _config(name)
    if name == "GlyphCLIP" and pretrained == "builtin":
        pretrained = str(GLYPH_WEIGHTS)
    tags = open_clip.list_pretrained_tags_by_model(name)
    is_path = "/" in pretrained or Path(pretrained).suffix in (".safetensors", ".pt", ".pth", ".bin")
    if pretrained != "random" and not is_path and pretrained not in tags:
        raise UserError(
            f"pretrained {pretrained!r} is no tag of model {name!r} and no file{_nearest(pretrained, tags)}"
        )
    tag = None if is_path or pretrained == "random" else pretrained
    if (
        tag
        and open_clip.get_pretrained_cfg(name, tag).get("quick_gelu")
        and not config.get("quick_gelu", False)
    ):
        raise UserError(f"pretrained {tag!r} was trained with QuickGELU; use model {name + '-quickgelu'!r}")
    loud = logging.getLogger().level
    logging.getLogger().setLevel(
        logging.ERROR
    )  # open_clip warns of random weights although we load them next
    try:
        model = open_clip.create_model(name, pretrained=tag, device=device)
    except (OSError, RuntimeError) as fault:
        reason = str(fault).splitlines()[0][:160]
        raise UserError(
            f"weights {tag!r} of {name!r} could not be had ({reason}); download them and give the path"
        ) from None
    finally:
        logging.getLogger().setLevel(loud)
    _check_activation(model, name)
    if is_path:
        _load_weights(model, Path(pretrained), name)
    tokenizer = (
        GlyphTokenizer(config["text_cfg"]["context_length"])
        if name == "GlyphCLIP"
        else open_clip.get_tokenizer(name)
    )
    return model.eval(), image_transform_v2(preprocess_config(name, pretrained), is_train=False), tokenizer


def save(model: nn.Module, path: Path, name: str, half: bool = False) -> None:
    """Write a model's state dict as safetensors with its architecture's name inside; aside first, then renamed.

    ``half`` stores float16 (GlyphCLIP's package file), else the dtype as it is.
    """
    state = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    if half:
        state = {
            k: v.half() if v.is_floating_point() and v.ndim else v for k, v in state.items()
        }  # the logit scale stays
    aside = Path(f"{path}.part")
    save_file(state, aside, metadata={"model": name})
    os.replace(aside, path)


def weights_hash(model: nn.Module) -> str:
    """Hex digest (16) of every parameter and buffer, names included."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class GlyphTokenizer:
    """open_clip's CLIP tokenizer with its vocabulary cut to the tokens that glyph names need.

    A token outside the cut vocabulary is spelled in byte tokens, so every text has a code.
    Call with texts, get (n, context_length) int64; the end token has the largest id, as CLIP's pooling expects.
    """

    def __init__(self, context_length: int = 40) -> None:
        self.context_length = context_length
        self._bpe = SimpleTokenizer(context_length=context_length)
        kept = json.loads((ASSETS / "GlyphCLIP.vocabulary.json").read_text())
        self._new = {old: new for new, old in enumerate(kept, start=1)}  # 0 pads
        self.sot_token_id, self.eot_token_id = len(kept) + 1, len(kept) + 2
        self._word = lru_cache(maxsize=None)(self._encode)

    def _encode(self, text: str) -> tuple[int, ...]:
        codes: list[int] = []
        for old in self._bpe.encode(text):
            if old in self._new:
                codes.append(self._new[old])
            else:
                codes += [self._new[self._bpe.encoder[c]] for c in self._bpe.decoder[old].replace("</w>", "")]
        return tuple(codes)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without start and end."""
        return [code for word in text.lower().split() for code in self._word(word)]

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Tensor:
        texts = [texts] if isinstance(texts, str) else texts
        width = context_length or self.context_length
        result = torch.zeros(len(texts), width, dtype=torch.long)
        for row, text in enumerate(texts):
            codes = [self.sot_token_id, *self.encode(text)[: width - 2], self.eot_token_id]
            result[row, : len(codes)] = torch.tensor(codes)
        return result


def encode_text(model: nn.Module, tokens: Tensor) -> Tensor:
    """Text features (n, d), not normalised, with the context cut to the longest text of the batch.

    Exact for a causal tower pooled at its end token: what stands after that token cannot reach it.
    Any other tower is run at full width by open_clip.
    """
    causal = (
        getattr(model, "attn_mask", None) is not None and getattr(model, "text_pool_type", "") == "argmax"
    )
    if not causal:
        return model.encode_text(tokens)
    width = int(tokens.argmax(dim=-1).max()) + 1
    tokens = tokens[:, :width]
    dtype = model.transformer.get_cast_dtype()
    x = model.token_embedding(tokens).to(dtype) + model.positional_embedding[:width].to(dtype)
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:width, :width]))
    x = x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)]
    projection = model.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection
