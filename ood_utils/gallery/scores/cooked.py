"""COOkeD: two classifiers of one image, its text softmax and a linear probe, must agree on a class.

p = (softmax(f t / T) + softmax(probe(f))) / 2, S = max_c p_c. COOkeD (ICCV-W 2025, arXiv 2507.22576)
averages in a third, a classifier of its own backbone, which is left out: two members need embeddings only.
Its probe is 20 epochs of SGD; here it is scikit-learn's logistic regression, C = 100 on unit rows (of 10,
100, 1000 the most accurate on the glyph world's id_val).
"""

import numpy as np
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from ...methods import Method
from .. import Evidence


def fit(evidence: Evidence) -> LogisticRegression:
    """The linear probe on the training images."""
    return LogisticRegression(C=100, max_iter=1000).fit(evidence.train, evidence.train_labels)


def cooked(evidence: Evidence) -> np.ndarray:
    """(n,), in (0, 1]; a class without training images has probability 0 of the probe."""
    probe, mean = evidence.once(fit), softmax(evidence.cosines / evidence.temperature, axis=1)
    mean[:, probe.classes_] += probe.predict_proba(evidence.images)
    return mean.max(axis=1) / 2


METHOD = Method("COOkeD", 2025, "COOkeD (arXiv 2507.22576)", ("class_text", "train", "train_labels"), cooked)
