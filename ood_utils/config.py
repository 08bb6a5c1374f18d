"""What a reader may set, each value with its type and range: a lane's profile, a training's recipe."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from . import registry
from .errors import UserError, nearest, quoted
from .files import hash_of
from .provenance import cores

PACKAGE = Path(__file__).resolve().parent
# profile fields that change how a run is shown or scheduled, never what it computes
NOT_HASHED = {"title", "minutes", "timeout_minutes", "parallel", "workers"}


def _find_root() -> Path:
    if os.environ.get("OOD_ROOT"):
        return Path(os.environ["OOD_ROOT"]).resolve()
    return next((p for p in PACKAGE.parents if (p / "pyproject.toml").is_file()), PACKAGE.parent)


ROOT = _find_root()
PROFILES = ROOT / "notebooks" / "profiles"


def _rule(holds: Callable[[Any], bool], said: str) -> AfterValidator:
    """A rule that a value must keep, and what is said where it does not."""

    def check(value: Any) -> Any:
        if not holds(value):
            raise ValueError(said)
        return value

    return AfterValidator(check)


def _one_of(package: str) -> AfterValidator:
    """The name of a file of a package, so that a new one is known at once."""

    def check(name: str) -> str:
        if name not in (known := registry.names(package)):
            raise ValueError(f"there is no such file in ood_utils/{package}{nearest(name, known)}")
        return name

    return AfterValidator(check)


def _set_name(name: str) -> bool:
    """Whether a name can be a file's, a table's key and an OoD set's on any system."""
    if not name.isprintable() or name != name.strip(" .") or re.search(r'[/\\:*?"<>|]|\.\.', name):
        return False
    taken = name in {"id", "train", "id_val", "id_test"} or name.startswith("average ")
    return 0 < len(name.encode()) <= 100 and not taken


def _place(path: str) -> str:
    """A path without "~"; its names short enough for a disk."""
    if (path := os.path.expanduser(path)).startswith("~"):
        raise ValueError("there is no such user's home; write the folder in full")
    if max(map(len, os.fsencode(path).split(b"/"))) > 255:
        raise ValueError("a name in it is longer than the 255 bytes that a disk takes")
    return path


Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float | None, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=10**9)]
Positive = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # times a million and a step, torch's 64 bits still hold it
Text = Annotated[str, Field(min_length=1)]
Place = Annotated[str, AfterValidator(_place)]
SetName = Annotated[
    str,
    _rule(
        _set_name,
        "an OoD set's name becomes a file's: give 1 to 100 bytes, printable, without / \\ : * ? \" < > | or "
        ".., no space or dot at its ends, and not id, train, id_val, id_test or 'average ...'",
    ),
]
Template = Annotated[str, _rule(lambda t: t.count("{}") == 1, 'it must contain "{}" once, for the name')]
Different = Annotated[list[Seed], _rule(lambda v: len(set(v)) == len(v) > 0, "give different values")]
Crop = Annotated[
    list[float], _rule(lambda v: len(v) == 2 and 0 < v[0] <= v[1] <= 1, "give two shares, rising")
]


class Values(BaseModel):
    """Typed, read-only values; a wrong one is a UserError: the field, its fault, its meaning."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=(),
        validate_default=True,
    )  # fmt: skip

    def __init__(self, **values: Any) -> None:
        fields = type(self).model_fields
        for name in values:
            if name not in fields:
                raise UserError(f"unknown parameter {quoted(name)}{nearest(name, fields)}")
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            fault = first["msg"].removeprefix("Value error, ")
            fault = fault[0].lower() + fault[1:]
            if not first["loc"]:
                raise UserError(fault) from None
            field = str(first["loc"][0])
            meaning = fields[field].description
            raise UserError(
                f"{field} = {quoted(values.get(field))} is refused: {fault} ({meaning})"
            ) from None


class TrainingValues(Values):
    """What decides a fine-tuning and is alike in all of a study (paper values: core_methods 1.4)."""

    model: Text = Field("GlyphCLIP", description="an open_clip model name")
    lam: Share = Field(
        0.003, description="weight of the alignment term, 0 (FLYP) to 1, or of the m2-Mix term"
    )
    steps: Positive = Field(400, description="optimiser steps of a fine-tuning")
    epochs: Count = Field(0, description="passes over the training set; above 0 it decides instead of steps")
    batch: int = Field(128, ge=2, description="image-text pairs of a step, over all processes")
    lr: float = Field(2e-4, gt=0, le=1, description="peak learning rate")
    image_lr: Rate = Field(None, description="peak of the image tower; none = lr, 0 = locked (LiT)")
    text_lr: Rate = Field(None, description="peak of the text tower; none = lr, 0 = locked")
    relation: float = Field(
        0, ge=0, description="weight of relation distillation (ours) in `ood train`; the series: relations"
    )
    relation_words: int = Field(256, ge=2, description="corpus words drawn a step for relation")
    wise: Share = Field(
        1, description="WiSE-FT: share of the fine-tuned weights, the rest zero-shot; 1 = all"
    )
    warmup: Count = Field(40, description="steps of linear warm-up")
    weight_decay: Share = Field(0.1, description="AdamW weight decay")
    betas: list[Share] = Field([0.9, 0.999], min_length=2, max_length=2, description="AdamW betas")
    decay_all: bool = Field(False, description="decay LayerNorm, biases and the scale too (paper mode)")
    scale_mode: Literal["clamped", "learned", "frozen"] = Field(
        "clamped", description="logit scale: learned and kept below 100, learned freely (paper), or frozen"
    )
    class_aware: bool = Field(False, description="count every pair of one class as positive")
    chunk: Count = Field(0, description="rows encoded at a time with cached gradients, 0 = the whole batch")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of encoders; losses are fp32")
    deterministic: bool = Field(False, description="deterministic GPU algorithms: same bits again, slower")


class Recipe(TrainingValues):
    """All that decides one fine-tuning besides its data and starting weights; JSON-able."""

    objective: Annotated[str, _one_of("objectives")] = Field("cma", description="clip is FLYP")
    seed: Seed = Field(0, description="training seed")
    classes: Count = Field(0, description="ID classes, 0 = all of the profile's")


class Profile(TrainingValues):
    """One lane of the series: every value a notebook may read. Flat and read-only."""

    title: str = Field("", description="one line shown in the report")
    data: Annotated[str, _one_of("data/lanes")] = Field("glyphs", description="where images come from")
    data_root: Place = Field("", description="folder of the images, or of study.yaml")
    ood_roots: dict[SetName, Place] = Field({}, description="folder lane: OoD set name -> folder of images")
    ood_groups: dict[SetName, Literal["near", "far", "unseen", "validation"]] = Field(
        {}, description="OoD set name -> near, far, unseen or validation"
    )
    names_file: Place = Field("", description="folder lane: CSV file of folder, name, synonyms (a | b)")
    held_out: Count | None = Field(
        None, description="folder lane: ID classes that play OoD; none = a fifth where ood_roots is empty"
    )
    smoke_test: bool = Field(False, description="try GlyphCLIP on photographs, whose results mean nothing")
    id_classes: Count = Field(0, description="number of ID classes, 0 = all; a series needs 5")
    id_test: Literal["held-out", "all"] = Field(
        "held-out", description="ImageNet: test on all of val (the paper) or without id_val's (OpenOOD)"
    )
    id_views: Positive = Field(4, description="views of each ID test drawing")
    ood_images: Count = Field(800, description="images kept of each OoD set, 0 = all; a series needs 2")
    train_images: Count = Field(0, description="training images kept, 0 = all")
    data_seed: Seed = Field(0, description="seed of everything drawn at random in the data")
    pretrained: Annotated[Place, Field(min_length=1)] = Field(
        "builtin", description="builtin, an open_clip tag, or a path to weights"
    )
    prompt: Template = Field("a {}", description='template of ID class names, with "{}" for the name')
    ensemble: bool = Field(False, description="class texts: mean over open_clip's templates, not the prompt")
    negative_prompt: Template = Field("a {}", description='template of the negative labels, with "{}"')
    adjective_prompt: Template = Field("This is a {} photo", description='of adjectives, with "{}"')
    lams: list[Share] = Field([0, 1e-3, 3e-3, 1e-2, 1e-1], min_length=1, description="the sweep of lam")
    relations: list[Share] = Field([0.1, 0.3, 1], description="the sweep of relation, with FLYP")
    image_lrs: list[Share] = Field([0, 2e-5], description="the sweep of image_lr, with FLYP")
    seeds: Different = Field([0, 1, 2], description="training seeds, different ones")
    sweep_seeds: Positive = Field(1, description="how many of the seeds the sweep is run with")
    processes: Positive = Field(1, description="torchrun processes of one training")
    parallel: Count = Field(2, description="trainings side by side on the CPU, 0 = in the notebook's process")
    crop_scale: Crop = Field([0.9, 1.0], description="random crop, share of area")
    corpus: Annotated[Place, Field(min_length=1)] = Field(
        "names", description="names, a WordNet dict folder, or a text file"
    )
    negatives: Place = Field(
        "", description="a finished list of negative labels, taken as it is; empty: mined"
    )
    corpus_words: Count = Field(0, description="corpus words kept, drawn with the data seed; 0 = all")
    quantile: Share = Field(0.95, description="NegMine: quantile of the similarities to the ID names")
    keep: float = Field(0.15, gt=0, le=1, description="NegMine: share of the candidates kept")
    keep_counts: dict[Literal["adj", "noun", "conjugated"], Count] = Field(
        {}, description="NegMine: numbers kept by part of speech, not a share (CMA: adj 1500, noun 8500)"
    )
    cleaned: bool = Field(
        True, description="take ID names, their synonyms and artefacts out of the negatives"
    )
    conjugated: bool = Field(False, description="CSP: each adjective of WordNet becomes adjective + noun")
    groups: Positive = Field(1, description="groups of negative labels")
    temperature: float = Field(0.01, gt=0, description="temperature of MSP, Energy and NegLabel")
    beta: Share = Field(0.25, description='weight of the negatives in the score "P - beta N"')
    beta_sweep: list[Share] = Field([0, 0.125, 0.25, 0.5, 1], min_length=1, description="betas tried")
    embed_batch: Positive = Field(256, description="images or texts embedded at once")
    workers: int = Field(
        0, ge=-1, le=1024, description="data loader processes; -1 = the cores, shared by the ranks"
    )
    compile: bool = Field(False, description="torch.compile the image encoder when embedding")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes the GPU if there is one")
    max_unreadable: Share = Field(0.001, description="share of images that may be unreadable")
    bootstrap: int = Field(1000, ge=2, description="bootstrap draws behind each 95 % interval")
    projections: list[Literal["gap-latitude", "PCA", "UMAP", "DOSNES"]] = Field(
        ["gap-latitude", "PCA", "UMAP", "DOSNES"], min_length=1, description="maps that notebook 03 draws"
    )
    gallery: Literal["world", "paper"] = Field(
        "world", description="notebook 05: hyper-parameters of its methods, this world's or the papers'"
    )
    gallery_models: list[Annotated[str, _one_of("gallery/adaptations")]] = Field(
        [], description="notebook 05: adaptations it trains, by the names of their files; empty = all"
    )
    gallery_seeds: Positive = Field(2, description="notebook 05: how many of the seeds its methods get")
    gallery_steps: float = Field(
        1, gt=0, le=1, description="notebook 05: share of each small training's steps that is taken"
    )
    points: int = Field(1000, ge=10, description="points drawn on the sphere")
    minutes: dict[str, float] = Field({}, description="expected minutes of each notebook, by its number")
    timeout_minutes: float = Field(60, gt=0, le=1e6, description="wall-clock limit of one notebook, minutes")

    @model_validator(mode="before")
    @classmethod
    def _given(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Given embeddings are their own starting weights."""
        if values.get("data") == "embeddings":
            own = {"model": "residual-64", "pretrained": values.get("data_root") or "none"}
            return own | values
        return values

    @field_validator("*")
    @classmethod
    def _writable(cls, value: Any) -> Any:
        """Texts that a file, a table and a terminal's line can hold."""
        texts = [*value, *value.values()] if isinstance(value, dict) else [value]
        if any(re.search("[\x00-\x1f\x7f\ud800-\udfff]", text) for text in texts if isinstance(text, str)):
            raise ValueError("it holds a line break, another control character, or bytes that are no UTF-8")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.lam or 0 not in self.lams or not any(self.lams):
            fault = f"lam = {self.lam:g}, lams = {self.lams} cannot be compared"
            raise ValueError(f"{fault}: lam must be above 0, and lams hold 0 (FLYP) and a value above 0")
        if self.batch % self.processes:
            raise ValueError(f"batch = {self.batch} cannot be shared evenly by processes = {self.processes}")
        if lost := set(self.ood_groups) - set(self.ood_roots) if self.data == "folder" else set():
            raise ValueError(f"ood_groups names {sorted(lost)}, which ood_roots does not have")
        if (self.data == "embeddings") != self.model.startswith("residual-"):
            raise ValueError(f"model = {self.model!r} does not go with data = {self.data!r}; leave model out")
        return self

    def recipe(self, **changes: Any) -> Recipe:
        """The recipe of one fine-tuning: the profile's training values, with changes (seed, objective)."""
        return Recipe(**{name: getattr(self, name) for name in TrainingValues.model_fields} | changes)

    def loaders(self, ranks: int = 0) -> int:
        """Data loader processes of each of the ``ranks`` on this machine (0: as many as torchrun says)."""
        ranks = ranks or int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return self.workers if self.workers >= 0 else max(1, cores() // ranks)

    def for_series(self) -> Self:
        """The profile itself; UserError for what a training may have, but not the comparisons of a series."""
        if 0 < self.id_classes < 5:
            raise UserError(f"id_classes = {self.id_classes} tell too little; give 5 or more, or 0 for all")
        if self.ood_images == 1:
            raise UserError("ood_images = 1 has no interval; give 2 or more, or 0 for all")
        if weight := self.relation:
            raise UserError(
                f"relation = {weight:g} is for `ood train`; a series takes relations=[{weight:g}]"
            )
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
    """The value of a YAML text; yaml.YAMLError when it is not YAML, or holds no value (2020-99-99)."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:  # of its constructors
        raise yaml.YAMLError(str(fault)) from None


def profile_names() -> dict[str, Path]:
    """Profile name -> file, of the folder notebooks/profiles."""
    return {path.stem: path for path in sorted(PROFILES.glob("*.yaml"))}


def profile_file(name_or_path: str | Path) -> Path:
    """The file of a profile given by name or by path; UserError with the nearest names if there is none."""
    known = profile_names()
    path = Path(os.path.expanduser(name_or_path))  # leaves a "~nobody" as it is
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    if os.path.isfile(path):  # not Path's: it raises where a name is too long
        return path.resolve()
    if path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        names = ", ".join(known)
        raise UserError(
            f"profile file {quoted(str(name_or_path))} does not exist; give one that does, or one of: {names}"
        )
    raise UserError(f"unknown profile {quoted(name_or_path)}{nearest(str(name_or_path), known)}")


def load_profile(name_or_path: str | Path, changes: dict[str, Any] | None = None) -> Profile:
    """Read a profile, apply changes (field -> value), validate all of it.

    Relative paths in the file count from the file's folder when they exist there. Raises UserError in one
    sentence for an unknown profile, a file that is not YAML, an unknown field (with nearest names), a wrong
    type or range.
    """
    path = profile_file(name_or_path)
    try:
        values = parse_yaml(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = f", line {error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        raise UserError(f"profile file {path}{where} is not YAML; write one 'name: value' a line") from None
    if not isinstance(values, dict):
        example = PROFILES / "glyphs.yaml"
        raise UserError(f"profile file {path} is not a list of 'name: value' lines; see {example}")
    return make_profile(absolute_paths(values, path.parent) | (changes or {}), f"profile {path.stem}")


def make_profile(values: dict[str, Any], source: str) -> Profile:
    """A Profile of values; UserError naming source, the field, its fault and its meaning."""
    try:
        return Profile(**{str(name): value for name, value in values.items()})
    except UserError as mistake:
        raise UserError(f"{source}: {mistake}") from None


def parse_changes(pairs: Sequence[str]) -> dict[str, Any]:
    """Profile values from key=value words, read as YAML (text fields as they stand), paths made absolute."""
    changes = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UserError(f"-p {quoted(pair)[1:-1]} has no value; write -p KEY=VALUE")
        if (field := Profile.model_fields.get(key)) is None:
            raise UserError(f"unknown parameter {quoted(key)}{nearest(key, Profile.model_fields)}")
        try:
            changes[key] = text if field.annotation is str else parse_yaml(text)
        except yaml.YAMLError:
            raise UserError(
                f"-p {key}={quoted(text)[1:-1]} is not a YAML value; quote it for the shell"
            ) from None
    return absolute_paths(changes, Path.cwd())


def absolute_paths(values: dict[str, Any], base: Path) -> dict[str, Any]:
    """Values with every relative path that exists below base made absolute (images, corpus, weights)."""

    def absolute(value: Any, always: bool = True) -> Any:
        is_path = isinstance(value, str) and (always or any(mark in value for mark in ("/", os.sep, ".")))
        path = base / os.path.expanduser(value) if is_path and value else None
        return str(path.resolve()) if path is not None and os.path.exists(path) else value

    values = dict(values)
    paths = ("data_root", "names_file", "negatives")
    for name in {*paths, "corpus", "pretrained"} & values.keys():
        values[name] = absolute(values[name], name in paths)
    if isinstance(values.get("ood_roots"), dict):
        values["ood_roots"] = {key: absolute(value) for key, value in values["ood_roots"].items()}
    return values
