"""GL-MCM: maximum concept matching of the whole image plus that of its best region.

An object that fills a corner is diluted in the global embedding; some region still matches its class well.
S = max_c softmax_c(f t_c) + L max_(r, c) softmax_c(f_r t_c), temperature 1 on cosines, f_r the regions' unit
rows in the space of the texts. Miyai et al. (arXiv 2304.04521, IJCV 2025). L = 1 is their tool's default and
what the reruns in later papers use; their ImageNet script has 0.5.
"""

from dataclasses import replace

import numpy as np

from ...methods import Method
from ...scores import mcm
from .. import BLOCK, Evidence


def gl_mcm(evidence: Evidence, weight: float = 1.0) -> np.ndarray:
    """(n,), in (0, 1 + ``weight``]; ``weight`` of the regions."""
    n, regions, d = evidence.patches.shape
    parts = np.array_split(evidence.patches, n * regions * len(evidence.class_text) // BLOCK + 1)
    local = [mcm(replace(evidence, images=part.reshape(-1, d)).cosines) for part in parts if len(part)]
    return mcm(evidence.cosines) + weight * np.concatenate(local).reshape(n, regions).max(axis=1)


METHOD = Method("GL-MCM", 2025, "Miyai et al. (arXiv 2304.04521)", ("class_text", "patches"), gl_mcm)
