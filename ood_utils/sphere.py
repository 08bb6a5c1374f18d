"""Pictures of embeddings on the globe S2, and what each picture gets wrong.

Every projection takes ``points``, a mapping from group name ("images", "texts", ...) to (n, d) unit rows, and
projects all groups together. None keeps everything: ``gap_latitude`` keeps one angle exactly, the others keep
neighbours at best. ``picture_error`` measures what a picture says against the truth.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .arrays import unit_rows
from .errors import UserError
from .geometry import gap_direction


@dataclass(frozen=True)
class Globe:
    """Points on the unit sphere: ``xyz`` maps group name to (n, 3) unit rows.

    ``facts`` are numbers about the picture; ``history`` is the cost per step of an iterative method.
    """

    method: str
    xyz: dict[str, np.ndarray]
    facts: dict[str, float] = field(default_factory=dict)
    history: tuple[float, ...] = ()

    def latlon(self, group: str) -> np.ndarray:
        """(n, 2) latitude and longitude of a group's points in radians, latitude +pi/2 at the north pole."""
        x, y, z = self.xyz[group].T
        return np.stack([np.arcsin(z.clip(-1, 1)), np.arctan2(y, x)], axis=1)


def _stack(points: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate(unit_rows(**points))


def _globe(method: str, xyz: np.ndarray, points: Mapping[str, np.ndarray], **extra: object) -> Globe:
    """Cut (N, 3) back into the groups of ``points``, rescaled to the unit sphere."""
    xyz = xyz / np.linalg.norm(xyz, axis=1, keepdims=True).clip(1e-12)
    ends = np.cumsum([len(rows) for rows in points.values()])[:-1]
    return Globe(method, dict(zip(points, np.split(xyz, ends), strict=True)), **extra)


def principal_axes(x: np.ndarray, k: int) -> np.ndarray:
    """(k, d) leading right singular vectors of x, uncentred, each with its largest entry positive."""
    values, axes = np.linalg.eigh(x.T @ x)
    axes = axes[:, np.argsort(values)[::-1][:k]].T
    return axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]


def gap_latitude(points: Mapping[str, np.ndarray], pole: np.ndarray | None = None) -> Globe:
    """Latitude = the exact angle to ``pole``; longitude illustrates the rest.

    ``pole`` (d,) defaults to the gap direction, mean of points["images"] minus mean of points["texts"]: the
    centroid gap along it is drawn exactly. With a class text as pole, latitude is 90 degrees minus the angle
    a cosine score looks at, and a threshold on that score is a parallel. Longitude means something within one
    picture only: the direction in the plane of the first two principal components of what is left without the
    pole's component and the mean; ``facts["longitude_share"]`` = share of that rest's variance they hold.
    """
    stacked = _stack(points)
    if pole is None:
        if not {"images", "texts"} <= set(points):
            raise UserError('gap_latitude needs points named "images" and "texts", or a pole; pass one.')
        pole = gap_direction(points["images"], points["texts"])
    pole = unit_rows(points=stacked[:1], pole=np.asarray(pole)[None])[1][0]
    sine = stacked @ pole
    rest = stacked - sine[:, None] * pole
    rest -= rest.mean(0)  # the common mean of both modalities would put every point at longitude 0
    plane = rest @ principal_axes(rest, 2).T
    longitude = np.arctan2(plane[:, 1], plane[:, 0])
    cosine = np.sqrt(1 - np.square(sine).clip(0, 1))
    xyz = np.stack([cosine * np.cos(longitude), cosine * np.sin(longitude), sine], axis=1)
    share = np.square(plane).sum() / max(np.square(rest).sum(), 1e-12)
    return _globe("gap-latitude", xyz, points, facts={"longitude_share": float(share)})


def pca_sphere(points: Mapping[str, np.ndarray]) -> Globe:
    """The first three uncentred singular directions, each point pushed out to the sphere (deterministic).

    ``facts["explained"]`` = share of the squared norm those three hold before the push; what the push
    hides is why this picture exaggerates the gap (measured: two to three times, anchors 5.2).
    """
    stacked = _stack(points)
    xyz = stacked @ principal_axes(stacked, 3).T
    return _globe("PCA", xyz, points, facts={"explained": float(np.square(xyz).sum() / len(stacked))})


def umap_sphere(points: Mapping[str, np.ndarray], neighbours: int = 15) -> Globe:
    """UMAP with cosine input and haversine output (umap-learn), all groups fitted together.

    Its two coordinates are an unbounded colatitude and longitude: they are put on the sphere by sin and
    cos, never plotted raw. Shows neighbourhoods; distances, cluster sizes and the gap mean nothing.
    """
    import umap

    stacked = _stack(points)
    if neighbours >= len(stacked):
        raise UserError(f"neighbours is {neighbours} but there are {len(stacked)} points; lower it.")
    model = umap.UMAP(
        n_neighbors=neighbours, metric="cosine", output_metric="haversine", random_state=0, n_jobs=1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a seed means one thread: known and wanted
        colatitude, longitude = model.fit_transform(stacked.astype(np.float32)).T.astype(np.float64)
    sine = np.sin(colatitude)
    xyz = np.stack([sine * np.cos(longitude), sine * np.sin(longitude), np.cos(colatitude)], axis=1)
    return _globe("UMAP", xyz, points)


def sinkhorn(kernel: np.ndarray) -> np.ndarray:
    """The doubly stochastic (to 0.1 %) r_i K_ij c_j of a positive (N, N) kernel K (Sinkhorn-Knopp)."""
    r = np.ones(len(kernel))
    for _ in range(1000):
        c = 1 / (kernel.T @ r)
        sums = kernel @ c
        if np.abs(r * sums - 1).max() < 1e-3:
            break
        r = 1 / sums
    return r[:, None] * kernel * c[None, :]


def dosnes_affinities(x: np.ndarray, bandwidth: float) -> np.ndarray:
    """(N, N) symmetric affinities summing to 1: every point has the same total (Lu et al. 2016, section 3).

    Gaussian kernel exp(-||x_i - x_j||^2 / (2 bandwidth^2)), made doubly stochastic, its diagonal removed.
    """
    p = sinkhorn(np.exp((x @ x.T - 1) / bandwidth**2))  # unit rows: ||x - y||^2 = 2 - 2 x.y
    np.fill_diagonal(p, 0)
    p = (p + p.T) / 2
    return np.maximum(p / p.sum(), 1e-12)


def _dosnes_cost(y: np.ndarray, p: np.ndarray) -> tuple[float, np.ndarray]:
    """KL(P || Q) in nats and its gradient (N, 3) for Q_ij ~ 1 / (1 + ||y_i - y_j||^2)."""
    squares = np.square(y).sum(1)
    student = 1 / (1 + (squares[:, None] + squares[None, :] - 2 * y @ y.T).clip(0))
    np.fill_diagonal(student, 0)
    q = np.maximum(student / student.sum(), 1e-12)
    pull = (p - q) * student
    return float((p * np.log(p / q)).sum()), 4 * (pull.sum(1)[:, None] * y - pull @ y)


def _on_sphere(y: np.ndarray) -> np.ndarray:
    """Centred, then every point put at the mean radius: the sphere's size stays free meanwhile."""
    y = y - y.mean(0)
    radii = np.linalg.norm(y, axis=1, keepdims=True).clip(1e-12)
    return y * radii.mean() / radii


def dosnes(
    points: Mapping[str, np.ndarray], bandwidth: float = 0.4, iterations: int = 300, seed: int = 0
) -> Globe:
    """Doubly stochastic neighbour embedding on a sphere (Lu et al. 2016); memory and time grow with N^2.

    Gradient descent with momentum on KL(P || Q); after each step the points are centred and put at their
    mean radius. A step that raises the cost is taken back and retried shorter (in place of the published
    delta-bar-delta gains, under which the cost oscillates): ``history`` of the result, the cost in nats after
    every iteration, never rises. Shows that there is a gap and exaggerates it (anchors 5.2); not
    distance-preserving.
    """
    p = dosnes_affinities(_stack(points), bandwidth)
    y = _on_sphere(np.random.default_rng(seed).normal(scale=1e-2, size=(len(p), 3)))
    (cost, gradient), velocity, rate = _dosnes_cost(y, p), np.zeros_like(y), 0.1 * len(p)
    history = [cost]
    for _ in range(iterations):
        velocity = 0.8 * velocity - rate * gradient
        moved = _on_sphere(y + velocity)
        moved_cost, moved_gradient = _dosnes_cost(moved, p)
        if moved_cost <= cost:
            y, cost, gradient, rate = moved, moved_cost, moved_gradient, rate * 1.1
        else:
            velocity, rate = np.zeros_like(y), rate / 2
        history.append(cost)
        if len(history) > 60 and history[-30] - cost < 1e-4 * cost:
            break
    return _globe("DOSNES", y, points, facts={"cost": cost}, history=tuple(history))


def picture_error(
    globe: Globe, points: Mapping[str, np.ndarray], labels: np.ndarray | None = None
) -> dict[str, float]:
    """What the picture says against what is so, to be printed in the picture.

    Keys: gap_true, gap_drawn (centroid gap of the groups "images" and "texts", in space and as drawn);
    pair_true, pair_drawn (mean cosine of matched pairs; image k matches texts[labels[k]], or row k without
    labels); rank (Spearman correlation of true and drawn cosines over random pairs of all points, 1 = order
    kept); overlap (share of the true ten nearest neighbours that are so in the picture) and trustworthiness
    (scikit-learn, 1 = no false neighbour), both on at most 1,500 random points.
    """
    from scipy.stats import spearmanr
    from sklearn.manifold import trustworthiness
    from sklearn.neighbors import NearestNeighbors

    rng = np.random.default_rng(0)
    true, drawn = _stack(points), np.concatenate([globe.xyz[name] for name in points])
    groups = dict(zip(points, unit_rows(**points), strict=True))
    match = np.arange(len(groups["images"])) if labels is None else np.asarray(labels)
    if len(match) != len(groups["images"]) or match.max() >= len(groups["texts"]):
        raise UserError("picture_error needs labels, one index into the texts per image; pass them.")
    result = {}
    for name, rows in (("true", groups), ("drawn", globe.xyz)):
        images, texts = rows["images"], rows["texts"]
        result[f"gap_{name}"] = float(np.linalg.norm(images.mean(0) - texts.mean(0)))
        result[f"pair_{name}"] = float((images * texts[match]).sum(1).mean())
    i, j = rng.integers(0, len(true), (2, 20_000))
    i, j = i[i != j], j[i != j]
    result["rank"] = float(spearmanr((true[i] * true[j]).sum(1), (drawn[i] * drawn[j]).sum(1)).statistic)
    some = rng.permutation(len(true))[:1500]
    k = min(10, (len(some) - 1) // 2)
    finders = [NearestNeighbors(n_neighbors=k).fit(x[some]) for x in (true, drawn)]
    near = zip(*(finder.kneighbors(return_distance=False) for finder in finders), strict=True)
    result["overlap"] = float(np.mean([len(set(a) & set(b)) / k for a, b in near]))
    result["trustworthiness"] = float(trustworthiness(true[some], drawn[some], n_neighbors=k))
    return result
