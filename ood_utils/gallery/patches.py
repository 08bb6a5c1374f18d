"""Image regions in the joint space: what GL-MCM scores by and LoCoOp learns from.

The last attention looks from each region at itself alone (its "value path"), so that the region's vector
goes through the projection that makes the image's embedding (GL-MCM, LoCoOp). A ResNet whose map is one
position, as GlyphCLIP's on 32 px, gets 3 x 3 overlapping crops instead, three quarters as wide as the image.
Its weights know no larger images: at 96 px the class is right for 0.3 % of the regions of id_val, for the
crops 18 %, for whole images 68 %; crops half as wide no longer hold a letter (1 %).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.data import Dataset, Subset

from .. import embeddings
from ..errors import UserError

if TYPE_CHECKING:
    from . import Task


class _Regions(nn.Module):
    """A model whose embedding of an image is those of its regions, one after the other (b, p * d)."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        kinds = {VisionTransformer: _of_vit, ModifiedResNet: _of_resnet}
        self.visual, self.regions = visual, kinds.get(type(visual))
        if self.regions is None or getattr(visual, "attn_pool", None) is not None:
            kind = type(visual).__name__
            fault = f"image regions need open_clip's ViT or ModifiedResNet, and this image tower is {kind}"
            raise UserError(f"{fault}; leave out GL-MCM and what is trained on regions")

    def encode_image(self, images: Tensor) -> Tensor:
        return self.regions(self.visual, images).flatten(1)


def _of_vit(visual: VisionTransformer, images: Tensor) -> Tensor:
    """(b, p, d): the last block's attention, masked so that each position sees itself, is its value path."""
    x = visual._embeds(images)
    alone = torch.full((x.shape[1],) * 2, float("-inf"), device=x.device).fill_diagonal_(0)
    *before, last = visual.transformer.resblocks
    for block in before:
        x = block(x)
    return visual.ln_post(last(x, attn_mask=alone))[:, 1:] @ visual.proj


def _of_resnet(visual: ModifiedResNet, images: Tensor) -> Tensor:
    """(b, p, d): the attention pool's value path at each position of the map, or crops where it has one."""
    pool = visual.attnpool
    if len(pool.positional_embedding) == 2:
        side = images.shape[-1]
        crops = images.unfold(2, side * 3 // 4, side // 8).unfold(3, side * 3 // 4, side // 8)
        crops = crops.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        return visual(interpolate(crops, size=side, mode="bilinear")).unflatten(0, (len(images), -1))
    x = visual.stem(images)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = layer(x)
    return pool.c_proj(pool.v_proj(x.flatten(2).mT + pool.positional_embedding[1:].to(x.dtype)))


def encode(model: nn.Module, dataset: Dataset, **options: Any) -> np.ndarray:
    """Regions of a dataset's images, (n, p, d) float32 unit rows in the dataset's order.

    ``options`` and errors as of ``embeddings.encode_images``; UserError also for an image tower without
    regions.
    """
    rows = embeddings.encode_images(_Regions(model.visual), dataset, **options)
    rows = rows.reshape(len(rows), -1, model.visual.output_dim)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def of_shots(task: Task, name: str, rows: np.ndarray) -> np.ndarray:
    """(len(rows), p, d) regions of these training images; kept until other rows are asked for.

    UserError where an image is unreadable: its regions would be missing beside its embedding.
    """
    if lost := len(task.study.train.dataset) - len(task.known.train):
        fault = f"{name} needs each training image's regions beside its embedding, and {lost} are unreadable"
        raise UserError(f"{fault}; replace or remove them")
    known, regions = task.known.memo.get(encode, (None, None))
    if not np.array_equal(known, rows):
        profile, chosen = task.profile, Subset(task.study.train.dataset, rows.tolist())
        options = {"batch": profile.embed_batch, "device": profile.device, "precision": profile.precision}
        regions = encode(task.tower(name), chosen, workers=profile.loaders(), progress=False, **options)
        task.known.memo[encode] = rows, regions
    return regions
