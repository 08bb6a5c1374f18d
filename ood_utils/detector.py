"""What an engineer takes away: one folder that scores images and says whether they are in-distribution."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save_file

from . import files, methods, serving
from .errors import UserError
from .provenance import provenance

if TYPE_CHECKING:
    from .config import Profile
    from .embeddings import StudyEmbeddings
    from .models import Network

FORMAT = 2
FACTS, TEXTS, WEIGHTS, ONNX = "detector.json", "texts.safetensors", "weights.safetensors", "image_tower.onnx"
BLANK = {"score": np.nan, "is_id": False, "nearest": "", "nearest_negative": ""}  # of an unreadable image
RARE = 1e-3  # a batch less likely than this, where calibration holds, is called a drift
BLOCK = 1024  # rows laid beside all texts at a time


@dataclass
class Detector:
    """A score on a CLIP-like model, with a threshold set on held-out ID images.

    ``class_text`` (K, d), ``negative_text`` (M, d) or None: float32 unit rows of ``class_names`` and
    ``negative_words``; ``score_name``: one of ``methods``, with its temperature, groups and beta;
    ``preprocessing``: numbers of the image transform, None for a model on given embeddings; ``threshold``: at
    or above it an image is called ID; ``calibration``: on what, images, target, rank of the threshold.
    """

    model: str
    class_names: list[str]
    class_text: np.ndarray
    negative_words: list[str]
    negative_text: np.ndarray | None
    score_name: str
    temperature: float
    groups: int
    beta: float
    preprocessing: dict[str, Any] | None
    precision: str
    origin: dict[str, Any]
    tower: serving.Tower = field(repr=False)
    threshold: float | None = None
    calibration: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        network: Network,
        embedded: StudyEmbeddings,
        profile: Profile,
        score: str = "NegLabel",
        **origin: Any,
    ) -> Self:
        """The detector of a model and its embedded study, without a threshold yet.

        ``origin``: what else the card is to say (method, run); commit, time and versions are added. UserError
        for an unknown score.
        """
        from . import embeddings, models, residual

        name, listed = methods.find(score).name, embedded.negatives
        given = network.name.startswith(residual.PREFIX)
        numbers = None if given else asdict(models.preprocessing(network.name, profile.pretrained))
        known = provenance()
        origin |= {key: known[key] for key in ("time", "commit", "dirty", "versions")}
        device = embeddings.resolve_device(profile.device)
        tower = serving.TorchTower(network.parts[0].to(device), numbers, profile.precision, device)
        texts = embedded.class_text, listed.words if listed else [], embedded.negative_text
        how = profile.temperature, profile.groups, profile.beta, numbers, profile.precision
        return cls(network.name, embedded.class_names, *texts, name, *how, origin, tower)

    # --- the threshold ---

    def calibrate(self, id_rows: np.ndarray, target: float = 0.95, on: str = "id_val") -> float:
        """Set and return the threshold by held-out ID embeddings (n, d), unit rows (split conformal).

        It is their floor((1 - target)(n + 1))-th smallest score, so that a new ID image exchangeable with
        them is accepted with probability >= ``target``, in (0, 1). ``on``: their name. UserError if they are
        too few for that.
        """
        from .metrics import conformal_rank

        n = len(id_rows)
        if not (rank := conformal_rank(n, target)):
            need = math.ceil(1 / (1 - Fraction(str(float(target))))) - 1
            fault = f"{n} images of {on} are too few to accept {target:.6g} of ID images"
            raise UserError(f"{fault}; give at least {need:,}")
        self.threshold = float(np.sort(self._score(id_rows))[rank - 1])
        self.calibration = {"on": on, "images": n, "target": float(target), "rank": rank}
        return self.threshold

    @property
    def guarantee(self) -> str:
        """What the threshold promises, in words; UserError before ``calibrate``."""
        from scipy.stats import beta

        on, n, target, rank = self._calibrated().values()
        low, high = beta(n + 1 - rank, rank).interval(0.95)
        return (
            f"The threshold is the score of rank {rank} from below of {n:,} ID images, {on}: a new ID image "
            f"is accepted with probability {target:.4g} or more, on average over calibrations; with this one "
            f"its probability lies between {low:.3f} and {high:.3f} (95 % confidence). This holds for images "
            f"exchangeable with those of {on} (same camera, same split), not for others."
        )

    def surprise(self, is_id: np.ndarray) -> float:
        """Two-sided p of the count rejected of ``is_id`` (m,) bool, if exchangeable with the calibration's.

        The count is then beta-binomial: threshold and batch are both draws.
        """
        from scipy.stats import betabinom

        _, n, _, rank = self._calibrated().values()
        m, accepted = len(is_id), np.sum(is_id)
        few = betabinom.cdf(m - accepted, m, rank, n + 1 - rank)
        many = betabinom.cdf(accepted, m, n + 1 - rank, rank)  # 1 - cdf would end at rounding
        return min(1.0, 2 * float(min(few, many)))

    def drift(self, is_id: np.ndarray) -> str:
        """Nothing, or one sentence: far more or fewer images are rejected than the calibration lets expect.

        ``is_id`` (m,) bool of the readable images; said where ``surprise`` is below 0.001.
        """
        if (p := self.surprise(is_id)) >= RARE:
            return ""
        on, n, _, rank = self.calibration.values()
        m, rejected = len(is_id), int(np.sum(~np.asarray(is_id, bool)))
        word, meaning = "fewer", "they are easier than those, or copies of a few"
        if rejected > (expected := m * rank / (n + 1)):
            word, meaning = "more", "many are none of the classes, or their look has changed"
        return (
            f"Drift: {rejected:,} of {m:,} images rejected, {word} than the {expected:.0f} that {on} lets "
            f"expect of ID images (p = {p:.1g}): {meaning}; look at them, then calibrate anew."
        )

    def _calibrated(self) -> dict[str, Any]:
        if self.threshold is None:
            raise UserError("this detector has no threshold yet; call calibrate with held-out ID embeddings")
        return self.calibration

    # --- scores ---

    def _score(self, rows: np.ndarray) -> np.ndarray:
        texts = self.class_text, self.negative_text
        evidence = self.tower.evidence(rows, *texts, self.temperature, self.groups, self.beta)
        return methods.find(self.score_name)(evidence)

    def score_embeddings(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Unit rows (n, d) -> (n,) each: ``score``, higher = more ID; ``is_id``; ``nearest`` class name;
        ``nearest_negative`` word, "" without negatives. UserError before ``calibrate``."""
        self._calibrated()
        score = self._score(rows)
        negatives = np.full(len(rows), "")
        if self.negative_text is not None:
            negatives = _nearest(rows, self.negative_text, self.negative_words)
        nearest = _nearest(rows, self.class_text, self.class_names)
        return dict(zip(BLANK, (score, score >= self.threshold, nearest, negatives), strict=True))

    def score(self, images: Any, batch: int = 64, workers: int = 0, progress: bool = False) -> dict[str, Any]:
        """The same for file paths, PIL images, or a normalised tensor (n, 3, S, S), n > 0.

        ``unreadable``: (index, path) of those that cannot be decoded; their score is NaN, is_id False,
        nearest "". ``workers``: loading processes (threads with ONNX). A model on given embeddings takes
        a tensor (n, d). UserError for anything else than images, a folder or missing file among them.
        """
        self._calibrated()
        check_request(images, batch, workers, self.preprocessing)
        rows, lost = self.tower.encode(images, batch, workers, progress)
        nothing = {key: np.array([value])[:0] for key, value in BLANK.items()}
        readable = np.ones(len(images), bool)
        readable[[index for index, _ in lost]] = False
        found: dict[str, Any] = {"unreadable": lost}
        for key, values in (self.score_embeddings(rows) if len(rows) else nothing).items():
            found[key] = np.full(len(images), BLANK[key], values.dtype)
            found[key][readable] = values
        return found

    # --- the folder ---

    def save(self, folder: Path | str, onnx: bool = False) -> Path:
        """Write the folder, whole or not at all, and return its path; ``onnx``: with the image tower as ONNX.

        UserError without a threshold, for a folder that holds other things, a disk that refuses, a detector
        loaded with ``onnx``, a model that cannot be exported.
        """
        from . import models

        self._calibrated()
        if not isinstance(self.tower, serving.TorchTower):
            raise UserError("a detector loaded with onnx has no weights to save; copy its folder instead")
        facts = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tower"}
        texts = {name: facts.pop(name) for name in ("class_text", "negative_text")}
        folder = Path(folder).expanduser().resolve()
        with files.replacing_folder(folder, FACTS) as aside:
            save_file({k: np.ascontiguousarray(v) for k, v in texts.items() if v is not None}, aside / TEXTS)
            models.save(self.tower.model, aside / WEIGHTS, self.model)
            if onnx:
                self.tower.export(aside / ONNX)
            for path in aside.iterdir():
                path.chmod(0o644)  # safetensors writes for its owner alone, and a detector is handed on
            hashes = {path.name: files.file_hash(path) for path in sorted(aside.iterdir())}
            files.write_json(aside / FACTS, {"format": FORMAT, **facts, "sha256": hashes})
        return folder

    @classmethod
    def load(cls, folder: Path | str, device: str = "auto", onnx: bool = False) -> Self:
        """Read a detector's folder; its model goes to ``device`` (auto, cpu, cuda). No network is asked.

        ``onnx``: serve the exported image tower with onnxruntime on the CPU, without importing torch.
        UserError for a folder that is missing, damaged or something else.
        """
        folder = Path(folder).expanduser()
        facts, wanted = _facts(folder), ONNX if onnx else WEIGHTS
        hashes = facts.pop("sha256")
        if wanted not in hashes:
            raise UserError(f"detector {folder} was saved without {ONNX}; save it with onnx=True")
        for name in (TEXTS, *(name for name in hashes if name.startswith(wanted))):  # ONNX: weights in .data
            if not (folder / name).is_file() or files.file_hash(folder / name) != hashes[name]:
                raise UserError(f"{folder / name} is missing or damaged; copy the detector's folder again")
        if onnx:
            tower: serving.Tower = serving.OnnxTower(folder / ONNX, facts["preprocessing"], device)
        else:
            from . import embeddings, models

            device = embeddings.resolve_device(device)
            model = models.build(facts["model"], str(folder / WEIGHTS), device)
            tower = serving.TorchTower(model, facts["preprocessing"], facts["precision"], device)
        return cls(**facts, **{"negative_text": None} | load_file(folder / TEXTS), tower=tower)


def _facts(folder: Path) -> dict[str, Any]:
    """What detector.json says, less its format. UserError where it is missing or damaged."""
    if not (path := folder / FACTS).is_file():
        where = "give the folder that notebook 04 saves, outputs/<run>/detector"
        raise UserError(f"{folder} is no detector: there is no {FACTS} in it; {where}")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        found = facts.pop("format")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise UserError(f"{path} cannot be read ({fault!r}); copy the detector's folder again") from None
    known = {f.name for f in fields(Detector)} - {"class_text", "negative_text", "tower"} | {"sha256"}
    if found != FORMAT or facts.keys() != known:
        raise UserError(f"{path} has another format than {FORMAT}; save the detector again with notebook 04")
    return facts


def _nearest(rows: np.ndarray, texts: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """(n,) the name of the nearest text (K, d) of each row (n, d)."""
    blocks = np.array_split(rows, len(rows) // BLOCK + 1)
    return np.array(names)[np.concatenate([(block @ texts.T).argmax(1) for block in blocks])]


def check_request(images: Any, batch: int, workers: int, preprocessing: dict[str, Any] | None = None) -> None:
    """UserError for what is no list of images or batch of pixels, or an empty one; for batch and workers."""
    if batch < 1 or workers < 0:
        raise UserError(f"batch = {batch}, workers = {workers}: give a batch above 0 and workers from 0")
    if isinstance(images, str | Path | Image.Image):
        raise UserError(f"images is one image, {images}; give a list, even of one: score([image])")
    if not hasattr(images, "__len__") or not len(images):
        raise UserError("images is empty; give at least one file path, PIL image or row of a tensor")
    if hasattr(images, "shape"):
        size = preprocessing and preprocessing["size"]
        wanted = (3, *((size, size) if isinstance(size, int) else size)) if preprocessing else (None,)
        if len(images.shape) != len(wanted) + 1 or (preprocessing and tuple(images.shape[1:]) != wanted):
            asked = f"(n, {', '.join(map(str, wanted))})" if preprocessing else "(n, d), its embeddings"
            raise UserError(f"images has shape {tuple(images.shape)}; this model takes {asked}")
        return
    for place, image in enumerate(images):
        if not isinstance(image, str | Path | Image.Image):
            kind = type(image).__name__
            raise UserError(f"image {place} is {kind}; give file paths, PIL images or one tensor of all")
        folder = not isinstance(image, Image.Image) and os.path.isdir(image)
        if folder or not (
            isinstance(image, Image.Image) or os.path.lexists(image)
        ):  # a broken link is counted
            there = "is a folder: list its files" if folder else "does not exist"
            raise UserError(f"image {place}, {image}, {there}; nothing was scored")
