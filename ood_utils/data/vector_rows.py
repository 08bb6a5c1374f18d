"""Given embeddings as a data set: what an image lane's pixels are to it."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset


class VectorRows(Dataset):
    """Item KEY -> (float32 unit row (d,), label) of row key % n; ``rows``: (n, d) of any length."""

    def __init__(self, rows: np.ndarray, labels: np.ndarray) -> None:
        self.rows, self.labels = torch.from_numpy(np.array(rows)), labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int) -> tuple[Tensor, int]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int]) -> list[tuple[Tensor, int]]:
        rows = np.asarray(keys) % len(self)
        units = F.normalize(self.rows[torch.from_numpy(rows)].float(), dim=-1)
        return list(zip(units, self.labels[rows].tolist(), strict=True))
