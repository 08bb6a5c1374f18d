"""A model on embeddings that are given: x + a small learnt map, one for each tower, zero at the start.

It has open_clip's interface, so that everything downstream stays as it is. Its images are vectors, its tokens
the row numbers of a table of text embeddings that it carries.
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import UserError
from .vectors import VectorStudy

PREFIX = "residual-"  # of the models' names; what follows is the hidden width


class Map(nn.Sequential):
    """(n, d) -> (n, d), zero at the start: layer norm, one hidden layer."""

    def __init__(self, d: int, hidden: int) -> None:
        super().__init__(nn.LayerNorm(d), nn.Linear(d, hidden), nn.GELU(), nn.Linear(hidden, d))
        nn.init.zeros_(self[-1].weight)
        nn.init.zeros_(self[-1].bias)
        self.output_dim = d


class Residual(nn.Module):
    """Both maps, the table of text embeddings (V, d) with their texts, and the logit scale.

    ``visual`` is the image tower; ``text`` the text tower. Table and texts are buffers: a checkpoint is whole
    without the study that it came from.
    """

    def __init__(self, hidden: int, table: Tensor, texts: Tensor, scale: float = 100.0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # every study starts from the same hidden layers
            self.visual, self.text = Map(table.shape[1], hidden), Map(table.shape[1], hidden)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.register_buffer("table", table)
        self.register_buffer("texts", texts)

    def encode_image(self, images: Tensor) -> Tensor:
        """(n, d) embeddings of any length -> (n, d), at the start their unit rows."""
        rows = F.normalize(images, dim=-1)
        return rows + self.visual(rows)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(n, 1) rows of the table -> (n, d), at the start the table's unit rows."""
        rows = F.normalize(self.table[tokens[:, 0]].to(self.logit_scale.dtype), dim=-1)
        return rows + self.text(rows)


class RowTokenizer:
    """Texts -> (n, 1) int64 rows of the model's table. UserError for a text that the table lacks."""

    def __init__(self, model: Residual) -> None:
        texts = model.texts.cpu().numpy().tobytes().decode().split("\0")
        self.row = {text: row for row, text in enumerate(texts)}

    def __call__(self, texts: list[str]) -> Tensor:
        if lost := [text for text in texts if text not in self.row]:
            fault = f"this study of embeddings has no text {lost[0]!r}"
            raise UserError(f"{fault} (it knows {len(self.row):,} texts; no model is run on others)")
        return torch.tensor([[self.row[text]] for text in texts], dtype=torch.long).reshape(-1, 1)


def hidden_width(name: str) -> int:
    """The width in a model's name, "residual-64". UserError where there is none."""
    if not name.removeprefix(PREFIX).isdigit() or not int(name.removeprefix(PREFIX)):
        raise UserError(f"model {name!r} has no hidden width; name it such as residual-64")
    return int(name.removeprefix(PREFIX))


def start(name: str, root: str | Path) -> Residual:
    """The model of a study before training: its embeddings as they are. Errors as ``VectorStudy``."""
    study = VectorStudy(root)
    texts, table = study.texts()
    joined = np.frombuffer("\0".join(texts).encode(), np.uint8)
    given = torch.from_numpy(np.array(table)), torch.from_numpy(joined.copy())
    return Residual(hidden_width(name), *given, study.file.logit_scale)


def like(name: str, state: dict[str, Tensor]) -> Residual:
    """A model with the shapes of a state dict, to be filled. UserError where it is no such model's."""
    try:
        return Residual(
            hidden_width(name), torch.empty_like(state["table"]), torch.empty_like(state["texts"])
        )
    except KeyError as lost:
        raise UserError(f"weights of {name!r} lack {lost}; they belong to another model") from None


def no_image(image: object) -> Tensor:
    """What stands for the preprocessing: a study of embeddings runs no image encoder."""
    raise UserError("a model on given embeddings cannot read images; give a tensor of embeddings (n, d)")
