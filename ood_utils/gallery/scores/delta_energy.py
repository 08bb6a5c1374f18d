"""ΔEnergy: how much energy the image loses when its best classes are taken away.

The c largest cosines are set to 0; S = T log sum exp(z / T) - T log sum exp(z' / T), large where few classes
carry all the mass. NeurIPS 2025 (arXiv 2510.11296), by its abstract and Fig. 1: c and T could NOT be
verified. Ours, 2 % of the classes (at least one) and T = 0.1, are the best of c 1, 2, 5, 20 of 267 and T
0.01, 0.1, 1 on the glyph world's validation sets. At CLIP's T = 0.01 with c = 1 the score is -T log(1 - p)
of the largest probability p: MSP's ranking.
"""

import numpy as np

from ...methods import Method
from ...scores import energy


def delta_energy(cosines: np.ndarray, temperature: float = 0.1, share: float = 0.02) -> np.ndarray:
    """``cosines`` (n, K) -> (n,), a cosine's unit; a ``share`` of each row, the largest, becomes 0."""
    left, cropped = cosines.copy(), max(1, round(share * cosines.shape[1]))
    np.put_along_axis(left, np.argpartition(left, -cropped, axis=1)[:, -cropped:], 0.0, axis=1)
    return energy(cosines, temperature) - energy(left, temperature)


METHOD = Method(
    "ΔEnergy", 2025, "ΔEnergy (arXiv 2510.11296), constants ours", ("class_text",),
    lambda e: delta_energy(e.cosines),
)  # fmt: skip
