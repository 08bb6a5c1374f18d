"""What an engineer takes away: one file that scores new images and says whether they are in-distribution."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes
from torch import Tensor

from . import models, scores
from .data.images import read_image
from .errors import UserError
from .files import atomic_write

FORMAT = 1
TEXTS = ("class_text", "negative_text")


@dataclass
class Detector:
    """NegLabel on a CLIP-like model, with a threshold set on held-out ID images.

    ``model``: an open_clip name; ``weights``: a path or tag; ``class_text`` (K, d), ``negative_text`` (M, d):
    float32 unit rows; ``threshold`` in log-odds: at or above it an image is called ID.
    """

    model: str
    weights: str
    class_names: list[str]
    class_text: np.ndarray
    negative_text: np.ndarray
    threshold: float
    temperature: float = 0.01
    groups: int = 1

    @cached_property
    def network(self) -> models.Network:
        """The model, loaded once, when the first image is scored."""
        return models.Network(self.model, str(self.weights))

    def calibrate(self, id_images: np.ndarray, recall: float = 0.95) -> float:
        """Set and return the threshold that accepts at least ``recall`` of held-out ID embeddings (n, d)."""
        if not 0 < recall <= 1:
            raise UserError(f"recall is {recall}; give the share of ID images to accept, in (0, 1]")
        ordered = np.sort(self._neglabel(id_images))[::-1]
        self.threshold = float(ordered[int(np.ceil(recall * len(ordered))) - 1])
        return self.threshold

    def _neglabel(self, images: np.ndarray) -> np.ndarray:
        return scores.neglabel(images, self.class_text, self.negative_text, self.temperature, self.groups)

    def score_embeddings(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Unit rows (n, d) -> (n,) each: ``score``, higher = more ID; ``is_id``; ``nearest`` class name."""
        score = self._neglabel(images)
        nearest = np.array(self.class_names)[(images @ self.class_text.T).argmax(1)]
        return {"score": score, "is_id": score >= self.threshold, "nearest": nearest}

    @torch.no_grad()
    def score(self, images: Sequence[Any] | Tensor) -> dict[str, np.ndarray]:
        """The same for PIL images, file paths, or an already normalised tensor (n, 3, H, W)."""
        model, preprocess, _ = self.network.parts
        if not isinstance(images, Tensor):
            opened = [read_image(i) if isinstance(i, str | Path) else i.convert("RGB") for i in images]
            images = torch.stack([preprocess(image) for image in opened])
        rows = torch.nn.functional.normalize(model.encode_image(images).float(), dim=-1)
        return self.score_embeddings(rows.numpy())

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all: the text embeddings, and the rest as metadata."""
        facts = {"format": FORMAT, **asdict(self)}
        tensors = {name: np.ascontiguousarray(facts.pop(name)) for name in TEXTS}
        atomic_write(path, to_bytes(tensors, {"detector": json.dumps(facts, default=str)}))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a detector file; UserError if it is missing, truncated or something else."""
        try:
            with safe_open(path, "np") as file:
                facts = json.loads((file.metadata() or {})["detector"])
                tensors = {name: file.get_tensor(name) for name in TEXTS}
        except (OSError, SafetensorError, KeyError, ValueError) as fault:
            raise UserError(f"detector file {path} cannot be read ({fault}); save it again") from None
        if facts.pop("format") != FORMAT:
            raise UserError(f"detector file {path} has another format than {FORMAT}; save it again")
        return cls(**facts, **tensors)
