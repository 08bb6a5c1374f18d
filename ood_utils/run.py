"""A run: its profile, its folder, its seeds, the facts about where it was made. Nothing else knows where files lie."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import platform
import random
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SCHEMA_VERSION = 1  # of run.json; a folder of another version is never mixed with this one
PACKAGE = Path(__file__).resolve().parent
KINDS = ("figures", "tables", "checkpoints", "embeddings", "results")
PACKAGES = (
    "torch torchvision open_clip_torch numpy scipy scikit-learn pandas pyarrow umap-learn matplotlib seaborn plotly "
    "pillow papermill nbclient ipykernel pydantic"
).split()
# profile fields that change how a run is shown or scheduled, never what it computes
NOT_HASHED = {"title", "minutes", "timeout_minutes", "parallel", "workers"}


def _find_root() -> Path:
    if os.environ.get("OOD_ROOT"):
        return Path(os.environ["OOD_ROOT"]).resolve()
    return next((p for p in PACKAGE.parents if (p / "pyproject.toml").is_file()), PACKAGE.parent)


ROOT = _find_root()
OUTPUTS = Path(os.environ.get("OOD_OUTPUTS") or ROOT / "outputs").resolve()
PROFILES = ROOT / "notebooks" / "profiles"


# --- the profile -----------------------------------------------------------------------------------------------------

Share = Annotated[float, Field(ge=0, le=1)]


class Profile(BaseModel):
    """One lane of the series: every value a notebook may read, typed, with its range. Flat and read-only."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        validate_default=True,
    )

    title: str = Field("", description="one line shown in the report")
    data: Literal["glyphs", "folder", "imagenet"] = Field("glyphs", description="where images come from")
    data_root: str = Field("", description="folder of the images (folder and imagenet)")
    ood_roots: dict[str, str] = Field({}, description="folder lane: OoD set name -> folder of images")
    ood_groups: dict[str, Literal["near", "far", "unseen", "validation"]] = Field(
        {}, description="OoD set name -> near, far, unseen or validation"
    )
    id_classes: int = Field(0, ge=0, description="number of ID classes, 0 = all")
    id_views: int = Field(4, ge=1, description="views of each ID test drawing")
    ood_images: int = Field(800, ge=0, description="images kept of each OoD set, 0 = all")
    train_images: int = Field(0, ge=0, description="training images kept, 0 = all")
    data_seed: int = Field(0, ge=0, description="seed of everything drawn at random in the data")
    model: str = Field("GlyphCLIP", min_length=1, description="an open_clip model name")
    pretrained: str = Field(
        "builtin", min_length=1, description="builtin, an open_clip tag, or a path to weights"
    )
    prompt: str = Field("a {}", description='template of the ID class names, with "{}" where the name goes')
    ensemble: bool = Field(
        False,
        description="embedded ID class texts: mean over open_clip's 80 ImageNet templates instead of the prompt",
    )
    negative_prompt: str = Field("a {}", description='template of the negative labels, with "{}"')
    adjective_prompt: str = Field(
        "This is a {} photo", description='template of adjectives among them, with "{}"'
    )
    lam: float = Field(0.003, ge=0, le=1, description="weight of the alignment term, 0 (FLYP) to 1")
    lams: list[Share] = Field(
        [0, 1e-3, 3e-3, 1e-2, 1e-1], min_length=1, description="the sweep of lam, each 0 to 1"
    )
    seeds: list[int] = Field(
        [0, 1, 2], min_length=1, description="training seeds, different and not negative"
    )
    few_classes: int = Field(
        100, ge=0, description="ID classes of the few-classes ablation, 0 = leave it out"
    )
    steps: int = Field(400, ge=1, description="optimiser steps of a fine-tuning")
    epochs: int = Field(
        0, ge=0, description="passes over the training set; above 0 it decides instead of steps"
    )
    batch: int = Field(128, ge=2, description="image-text pairs of a step, over all processes")
    lr: float = Field(2e-4, gt=0, le=1, description="peak learning rate")
    warmup: int = Field(40, ge=0, description="steps of linear warm-up")
    weight_decay: float = Field(0.1, ge=0, le=1, description="AdamW weight decay")
    decay_all: bool = Field(False, description="decay LayerNorm, biases and the scale too (paper mode)")
    scale_mode: Literal["clamped", "learned", "frozen"] = Field(
        "clamped", description="logit scale; learned = paper"
    )
    class_aware: bool = Field(False, description="count every pair of one class as positive")
    chunk: int = Field(
        0, ge=0, description="micro-batch of the cached-gradient step, 0 = whole batch at once"
    )
    processes: int = Field(1, ge=1, description="torchrun processes of one training")
    parallel: int = Field(
        2, ge=0, description="independent trainings side by side on the CPU; 0 = in the notebook's process"
    )
    crop_scale: list[float] = Field(
        [0.9, 1.0], min_length=2, max_length=2, description="random crop, share of area"
    )
    corpus: str = Field("names", min_length=1, description="names, a WordNet dict folder, or a text file")
    corpus_words: int = Field(0, ge=0, description="corpus words kept, drawn with the data seed; 0 = all")
    quantile: float = Field(
        0.95, ge=0, le=1, description="NegMine: quantile of the similarities to the ID names"
    )
    keep: float = Field(0.15, gt=0, le=1, description="NegMine: share of the candidates kept")
    keep_counts: dict[Literal["adj", "noun", "conjugated"], int] = Field(
        {},
        description="NegMine: numbers kept by part of speech instead of a share (CMA: adj 1500, noun 8500)",
    )
    cleaned: bool = Field(
        True, description="take ID names, their synonyms and artefacts out of the negatives"
    )
    conjugated: bool = Field(
        False, description="CSP: every adjective of a WordNet corpus becomes adjective + noun"
    )
    groups: int = Field(1, ge=1, description="groups of negative labels")
    temperature: float = Field(0.01, gt=0, description="temperature of MSP, Energy and NegLabel")
    embed_batch: int = Field(256, ge=1, description="images or texts embedded at once")
    workers: int = Field(0, ge=-1, description="data loader processes, -1 = one for each CPU core")
    decoder: Literal["pil", "device"] = Field(
        "pil", description="of embedded image files: pil, or torchvision's on the device (on a GPU nvJPEG)"
    )
    compile: bool = Field(False, description="torch.compile the image encoder when embedding")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of the encoders; losses are always fp32"
    )
    deterministic: bool = Field(
        False, description="deterministic GPU algorithms: resume and rerun give the same bits, slower"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes the GPU when there is one")
    max_unreadable: float = Field(0.001, ge=0, le=1, description="share of images that may be unreadable")
    bootstrap: int = Field(1000, ge=2, description="bootstrap draws behind each 95 % interval")
    projections: list[Literal["gap-latitude", "PCA", "UMAP", "DOSNES"]] = Field(
        ["gap-latitude", "PCA", "UMAP", "DOSNES"], min_length=1, description="maps that notebook 03 draws"
    )
    points: int = Field(1000, ge=10, description="points drawn on the sphere")
    minutes: dict[str, float] = Field({}, description="expected minutes of each notebook, by its number")
    timeout_minutes: float = Field(60.0, gt=0, description="wall-clock limit of one notebook, minutes")

    @field_validator("prompt", "negative_prompt", "adjective_prompt")
    @classmethod
    def _has_slot(cls, text: str) -> str:
        if text.count("{}") != 1:
            raise ValueError('it must contain "{}" once, where the name goes')
        return text

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        if min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise ValueError("seeds must be different and not negative")
        return seeds

    @field_validator("workers")
    @classmethod
    def _cores(cls, workers: int) -> int:
        return (
            workers
            if workers >= 0
            else len(os.sched_getaffinity(0))
            if sys.platform == "linux"
            else os.cpu_count()
        )

    @field_validator("crop_scale")
    @classmethod
    def _ordered(cls, scale: list[float]) -> list[float]:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError("it must be two shares, 0 < smaller <= larger <= 1")
        return scale

    @model_validator(mode="after")
    def _fits(self) -> Profile:
        if self.batch % self.processes:
            raise ValueError(f"batch = {self.batch} cannot be shared evenly by processes = {self.processes}")
        if lost := set(self.ood_groups) - set(self.ood_roots) if self.data == "folder" else set():
            raise ValueError(f"ood_groups names {sorted(lost)}, which ood_roots does not have")
        return self

    def key(self) -> str:
        """Hash (64 hex) of every value that can change a result."""
        return hash_of(self.model_dump(exclude=NOT_HASHED))

    def expected_seconds(self, notebook: str) -> float:
        """Expected seconds of a notebook from `minutes` (by whole name or number), 0 when not known."""
        return 60 * self.minutes.get(notebook, self.minutes.get(notebook.split("_")[0], 0.0))


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-5 is a number (PyYAML follows YAML 1.1, where it is text)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"), list("-+0123456789.")
)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; yaml.YAMLError when it is not YAML."""
    return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader


def nearest(name: str, known: Iterable[str]) -> str:
    """The tail of an error message: '; did you mean a or b?' or the list of all that is known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else f"; there are: {', '.join(known) or 'none'}"


def profile_names() -> dict[str, Path]:
    """Profile name -> file, of the folder notebooks/profiles."""
    return {path.stem: path for path in sorted(PROFILES.glob("*.yaml"))}


def profile_file(name_or_path: str | Path) -> Path:
    """The file of a profile given by name or by path. UserError, with the nearest names, when there is none."""
    known = profile_names()
    path = Path(name_or_path).expanduser()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    if path.is_file():
        return path.resolve()
    if path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        raise UserError(
            f"profile file {path} does not exist; give one that does, or one of: {', '.join(known)}"
        )
    raise UserError(f"unknown profile '{name_or_path}'{nearest(str(name_or_path), known)}")


def load_profile(name_or_path: str | Path, changes: dict[str, Any] | None = None) -> Profile:
    """Read a profile, apply changes (field -> value), validate all of it.

    Relative paths in the file count from the file's folder when they exist there. Raises UserError in one sentence
    for an unknown profile, a file that is not YAML, an unknown field (with nearest names), a wrong type or range.
    """
    path = profile_file(name_or_path)
    try:
        values = parse_yaml(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = f", line {error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        raise UserError(f"profile file {path}{where} is not YAML; write one 'name: value' a line") from None
    if not isinstance(values, dict):
        raise UserError(
            f"profile file {path} is not a list of 'name: value' lines; see {PROFILES / 'glyphs.yaml'}"
        )
    return make_profile(absolute_paths(values, path.parent) | (changes or {}), f"profile {path.stem}")


def make_profile(values: dict[str, Any], source: str) -> Profile:
    """A Profile of values; UserError naming source, the field, its fault and its meaning."""
    for name in values:
        if name not in Profile.model_fields:
            raise UserError(f"{source}: unknown parameter '{name}'{nearest(str(name), Profile.model_fields)}")
    try:
        return Profile(**values)
    except ValidationError as error:
        first = error.errors()[0]
        fault = first["msg"].removeprefix("Value error, ")
        fault = fault[0].lower() + fault[1:]
        if not first["loc"]:
            raise UserError(f"{source}: {fault}") from None
        field = str(first["loc"][0])
        meaning = Profile.model_fields[field].description
        raise UserError(
            f"{source}: {field} = {values.get(field)!r} is refused: {fault} ({meaning})"
        ) from None


def parse_changes(pairs: Sequence[str]) -> dict[str, Any]:
    """Profile values from key=value words, read as YAML (text fields as they stand), paths made absolute."""
    changes = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UserError(f"-p {pair} has no value; write -p {key}=VALUE")
        field = Profile.model_fields.get(key)
        if field is None:
            raise UserError(f"unknown parameter '{key}'{nearest(key, Profile.model_fields)}")
        try:
            changes[key] = text if field.annotation is str else parse_yaml(text)
        except yaml.YAMLError:
            raise UserError(f"-p {key}={text} is not a YAML value; quote it for the shell") from None
    return absolute_paths(changes, Path.cwd())


def absolute_paths(values: dict[str, Any], base: Path) -> dict[str, Any]:
    """Values with every relative path that exists below base made absolute (data_root, ood_roots, corpus, weights)."""

    def absolute(value: Any) -> Any:
        looks_like_path = isinstance(value, str) and ("/" in value or os.sep in value or "." in value)
        path = base / Path(value).expanduser() if looks_like_path else None
        return str(path.resolve()) if path is not None and path.exists() else value

    values = dict(values)
    for name in {"data_root", "corpus", "pretrained"} & values.keys():
        values[name] = absolute(values[name])
    if isinstance(values.get("ood_roots"), dict):
        values["ood_roots"] = {key: absolute(value) for key, value in values["ood_roots"].items()}
    return values


# --- files -----------------------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well it replaces `path`, else nothing is left.

    An OSError (disk full, not writable) becomes a UserError that names the file and the remedy.
    """
    aside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        os.replace(aside, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free space or rights there, "
            "or set OOD_OUTPUTS to another folder"
        ) from error
    finally:
        aside.unlink(missing_ok=True) if aside.parent.is_dir() else None


def atomic_write(path: Path | str, content: bytes | str) -> Path:
    """Write a whole file or nothing (aside, then rename). UserError when the disk refuses."""
    with replacing(Path(path)) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


def file_hash(path: Path | str) -> str:
    """SHA-256 (64 hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(value: Any) -> str:
    """SHA-256 (64 hex) of a JSON value, keys sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def plain(value: Any) -> Any:
    """A value as JSON knows it: numpy scalars and arrays unpacked, keys as text, NaN and infinities as None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # numpy and torch
        value = value.tolist()
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, {} when there is no file; UserError when the file is broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); delete it or use --force or another --run name"
        ) from None


# --- where and with what a run was made ------------------------------------------------------------------------------


def now() -> str:
    """The time as UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _command(*words: str) -> str | None:
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Versions of Python and of the main packages, read without importing them."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Operating system, processor, cores, memory (GiB) and GPUs; the host's name is nobody's business."""
    cpu = platform.processor()
    if (info := Path("/proc/cpuinfo")).is_file():
        cpu = next((x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x), cpu)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, OSError, ValueError):  # Windows
        memory = 0.0
    gpus = _command("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return {
        "system": platform.platform(),
        "cpu": cpu or platform.machine(),
        "cores": cores,
        "memory_gib": round(memory, 1),
        "gpus": gpus.splitlines() if gpus else [],
    }


def provenance() -> dict[str, Any]:
    """Facts that say what made a result: time, commit, uncommitted changes, versions, machine, torch's settings."""
    commit = _command("git", "rev-parse", "HEAD")
    status = _command("git", "status", "--porcelain") if commit else None
    diff = _command("git", "diff", "HEAD") if status else None
    return {
        "time": now(),
        "commit": commit,
        "dirty": None if status is None else bool(status),
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
        "versions": versions(),
        "machine": machine(),
        "torch": torch_facts(),
    }


def torch_facts() -> dict[str, Any] | None:
    """torch's threads, determinism flags and CUDA, or None where torch has not been imported (it is never imported)."""
    if (torch := sys.modules.get("torch")) is None:
        return None
    cuda = torch.cuda.is_available()
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
    }


def seed_everything(seed: int) -> None:
    """Seed python, numpy and (only if it has been imported) torch. Modules still pass their own generators."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def progress(iterable: Iterable | None = None, total: int | None = None, desc: str = "") -> Any:
    """tqdm, from the third second on: a live bar on a terminal, elsewhere plain text every 5 seconds at most."""
    from tqdm import tqdm

    stream, interval = (sys.stderr, 0.1) if sys.stderr.isatty() else (sys.stdout, 5)
    return tqdm(iterable, total=total, desc=desc, file=stream, mininterval=interval, delay=3)


# --- the run ---------------------------------------------------------------------------------------------------------


def run_name(run: str, profile: str | Path) -> str:
    """The name of a run's folder: `run`, or the profile's name. UserError when it cannot be a folder's name."""
    name = run or Path(profile).stem
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"run name '{name}' is refused: use letters, digits, '.', '_' and '-' only")
    return name


def read_record(folder: Path) -> dict[str, Any]:
    """run.json of a run folder ({} when there is none). UserError when another version wrote it."""
    record = read_json(folder / "run.json")
    if record and record.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{folder} was written by another version (schema {record.get('schema_version')}, this is "
            f"{SCHEMA_VERSION}); run again with --force or with another --run name"
        )
    return record


@dataclass(frozen=True)
class Run:
    """What a notebook holds: its profile and its place. Made by `start`."""

    folder: Path
    profile: Profile
    notebook: str

    @property
    def id(self) -> str:
        """Short name for figure footers: run name + 8 hex of the hash of the profile's values."""
        return f"{self.folder.name}-{self.profile.key()[:8]}"

    @property
    def device(self) -> str:
        """'cuda' or 'cpu', as the profile asks. UserError when CUDA is asked for and absent. Imports torch."""
        import torch

        if self.profile.device == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "device = cuda, but torch sees no GPU; use device = auto or cpu, or install a CUDA torch"
            )
        return "cuda" if self.profile.device != "cpu" and torch.cuda.is_available() else "cpu"

    def path(self, kind: str, name: str = "") -> Path:
        """Path of a file or folder of this run; the folder that holds it is created. kind: one of KINDS."""
        if kind not in KINDS:
            raise ValueError(f"unknown kind '{kind}'{nearest(kind, KINDS)}")
        path = self.folder / kind / name
        (path.parent if name else path).mkdir(parents=True, exist_ok=True)
        return path

    def save_table(self, name: str, frame: pd.DataFrame) -> pd.DataFrame:
        """Write tables/<name>.parquet and .csv (whole or not at all); returns the frame, for the cell to show."""
        with replacing(self.path("tables", f"{name}.parquet")) as aside:
            frame.to_parquet(aside)
        numbered = frame.index.name is None and frame.index.nlevels == 1
        atomic_write(self.path("tables", f"{name}.csv"), frame.to_csv(index=not numbered))
        return frame

    def load_table(self, name: str, made_by: str = "an earlier notebook") -> pd.DataFrame:
        """Read a table; UserError naming the notebook that makes it when it is missing."""
        import pandas as pd

        path = self.folder / "tables" / f"{name}.parquet"
        if not path.is_file():
            raise UserError(f"tables/{name} is missing in {self.folder}; run notebook {made_by} first")
        return pd.read_parquet(path)

    def save_figure(self, name: str, figure: Figure, data: pd.DataFrame | None = None) -> None:
        """Write figures/<name>.png (150 dpi, run id in the footer) and, beside it, the data as .csv."""
        from PIL import Image

        figure = getattr(figure, "figure", figure)  # a seaborn grid holds one
        if not any(text.get_gid() == "run-id" for text in figure.texts):
            figure.text(0.995, 0.005, self.id, ha="right", va="bottom", size=6, color="0.45", gid="run-id")
        path = self.path("figures", f"{name}.png")
        with replacing(path) as aside:  # no software tag: the same picture is the same file
            figure.savefig(aside, dpi=150, bbox_inches="tight", format="png", metadata={"Software": None})
            with Image.open(aside) as full:  # 256 colours are plenty for a chart, and a third of the bytes
                small = full.convert("RGB").quantize(256, dither=Image.Dither.NONE)
            small.save(aside, format="png", optimize=True)
        if data is not None:
            atomic_write(path.with_suffix(".csv"), data.to_csv(index=data.index.name is not None))

    def save_html(self, name: str, html: str) -> Path:
        """Write a stand-alone page figures/<name>.html."""
        return atomic_write(self.path("figures", f"{name}.html"), html)

    def save_results(self, results: dict[str, Any]) -> None:
        """Write results/<notebook>.json: plain numbers and texts, NaN as null.

        A dict under the key "provenance" (weights hash, data fingerprint and counts) is completed with torch's
        facts; the runner copies it into run.json.
        """
        facts = results.get("provenance", {}) | {"torch": torch_facts()}
        text = json.dumps(
            plain(results | {"provenance": facts}), indent=1, ensure_ascii=False, allow_nan=False
        )
        atomic_write(self.path("results", f"{self.notebook}.json"), text + "\n")

    def load_results(self, notebook: str) -> dict[str, Any]:
        """Read what another notebook saved; UserError naming it when it has not run."""
        path = self.folder / "results" / f"{notebook}.json"
        if not path.is_file():
            raise UserError(f"results/{path.name} is missing in {self.folder}; run notebook {notebook} first")
        return read_json(path)


def start(notebook: str, profile: str, run: str = "", changes: dict[str, Any] | None = None) -> Run:
    """Begin a notebook: validate its parameters, seed, find its folder, print one line of facts.

    Works from any working directory. Under the runner (OOD_RUNNER=1) run.json is the runner's; in JupyterLab this
    function notes the use there. UserError for anything wrong with the parameters or the folder.
    """
    values = load_profile(profile, changes)
    begun = Run(OUTPUTS / run_name(run, profile), values, notebook)
    seed_everything(values.data_seed)
    facts = provenance()
    if os.environ.get("OOD_RUNNER") != "1":
        _note_interactive(begun, profile, changes or {}, facts)
    commit = (
        f"commit {facts['commit'][:8]}{' + changes' if facts['dirty'] else ''}"
        if facts["commit"]
        else "no commit"
    )
    torch = f"torch {facts['versions'].get('torch', 'missing')}"
    device = begun.device if "torch" in sys.modules else values.device
    place = begun.folder.relative_to(ROOT) if begun.folder.is_relative_to(ROOT) else begun.folder
    print(f"profile {Path(profile).stem} | run {begun.id} in {place} | {device} | {torch} | {commit}")
    return begun


def _note_interactive(run: Run, profile: str, changes: dict[str, Any], facts: dict[str, Any]) -> None:
    """Note in run.json that a notebook was used by hand. A done notebook stays done: the runner compares its files."""
    record = read_record(run.folder) or new_record(run.folder.name, profile, run.profile, changes, facts)
    entry = record["notebooks"].setdefault(run.notebook, {"status": "interactive"})
    entry["interactive"] = {"time": now(), "id": run.id, "changes": plain(changes), "commit": facts["commit"]}
    write_record(run.folder, record)


def new_record(
    name: str, profile: str, values: Profile, changes: dict[str, Any], facts: dict[str, Any]
) -> dict:
    """A fresh run.json."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run": name,
        "id": f"{name}-{values.key()[:8]}",
        "status": "interactive",
        "profile": Path(profile).stem,
        "changes": plain(changes),
        "parameters": values.model_dump(),
        "provenance": facts,
        "notebooks": {},
    }


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write run.json, whole or not at all."""
    atomic_write(folder / "run.json", json.dumps(plain(record), indent=1, ensure_ascii=False) + "\n")
