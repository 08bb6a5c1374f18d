"""Energy propagation: an image's score is evened out with those of its nearest neighbours in the stream.

    e <- alpha e + (1 - alpha) D^-1 A e,   twice,   e at first NegLabel's log-odds

A has an edge from each image to its ``neighbours`` nearest among the images of its own and earlier batches.
Transductive over the past: a score depends on what the stream showed until then, on nothing later, and is
never changed afterwards. Source: the idea of GNNSafe (Wu et al. 2023, arXiv 2302.02914), alpha 1/2, two
steps, on a given graph of nodes with energies. Ours: the graph of cosines, edges that point into the past
only, so that what an image hands on is known when it arrives; NegLabel in the energy's place; 20 neighbours.
"""

import numpy as np

from .. import Adaptive, Evidence, Step


def start(known: Evidence, alpha: float = 0.5, neighbours: int = 20, steps: int = 2) -> Step:
    """The step of an empty graph."""
    images = np.empty((0, known.class_text.shape[1]), np.float32)
    layers = [np.empty(0)] * (steps + 1)  # e after so many propagations, of all images so far

    def step(rows: np.ndarray) -> np.ndarray:
        nonlocal images
        evidence, past = known.of(rows), len(images)
        images = np.concatenate([images, evidence.images])
        layers[0] = np.concatenate([layers[0], evidence.log_odds])
        cosines = evidence.images @ images.T
        cosines[np.arange(len(rows)), past + np.arange(len(rows))] = -np.inf
        count = min(neighbours, len(images) - 1)
        near = np.argpartition(-cosines, count - 1, axis=1)[:, :count] if count else None
        for k in range(steps):
            own = layers[k][past:]
            heard = own if near is None else layers[k][near].mean(axis=1)  # an image alone hears itself
            layers[k + 1] = np.concatenate([layers[k + 1], alpha * own + (1 - alpha) * heard])
        return layers[-1][past:]

    return step


ADAPTIVE = Adaptive(
    "Energy propagation", 2023, "idea of GNNSafe (arXiv 2302.02914)", ("class_text", "negative_text"), start
)
