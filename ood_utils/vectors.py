"""Embeddings that a user already has: ``study.yaml`` and the .npy, .npz, .safetensors, .parquet or .txt files
that it names (docs/DATA.md). No pickle is read; every fault is one UserError naming the file.

A *reference* is ``FILE`` or ``FILE:NAME``, the array or column of that name; a folder stands for its parts in
the order of their numbers (``img_emb`` = img_emb_0.npy, img_emb_1.npy, ...). Paths count from study.yaml.
"""

import os
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import yaml
from pydantic import Field

from .config import SetName, Share, Template, Text, Values, parse_yaml
from .errors import UserError, nearest
from .negatives import prompts

KINDS = (".npy", ".npz", ".safetensors", ".parquet", ".txt")
ID_SETS = ("train", "id_val", "id_test")
Several = Text | list[Text] | None


class SetFile(Values):
    """One set of images; a field left out is that of the study."""

    group: Literal["id", "near", "far", "unseen", "validation"] = Field("far", description="OoD set's group")
    images: Several = Field(None, description="reference(s) of the embeddings, (n, d)")
    labels: Text | None = Field(None, description="reference of a class (name or number) a row")
    ids: Text | None = Field(None, description="reference of a name a row")
    clusters: Text | None = Field(None, description="reference of a whole number a row: what is resampled")
    where: dict[str, str | int | list[str | int]] = Field(
        {}, description="takes only rows: labels, ids or a reference -> value or list of values"
    )


class StudyFile(Values):
    """What study.yaml may hold."""

    model: Text = Field("not named", description="model that made the embeddings; it is never run")
    logit_scale: float = Field(100.0, gt=0, description="exp of the model's logit scale")
    prompt: Template = Field("{}", description="how class_texts were prompted, as in the profile")
    negative_prompt: Template = Field("{}", description="the same of word_texts")
    adjective_prompt: Template = Field("{}", description="the same of the word_texts of adjectives")
    images: Several = Field(None, description="embeddings of all sets that name none, (n, d)")
    labels: Text | None = Field(None, description="their classes, names or numbers")
    ids: Text | None = Field(None, description="their names")
    clusters: Text | None = Field(None, description="their clusters")
    classes: list[Text] | dict[str | int, Text] | Text = Field(
        description="ID class names: a list, label -> name, or a reference"
    )
    class_texts: Several = Field(None, description="reference, (K, d); left out: the words of these names")
    synonyms: dict[str, list[str]] = Field({}, description="class name -> further names, never negatives")
    words: Several = Field(None, description="reference(s) of the words from which negatives are mined")
    word_texts: Several = Field(None, description="reference(s) of their embeddings, (C, d)")
    parts: Several = Field(None, description="reference(s) of their parts of speech, noun or adj")
    other_texts: Several = Field(None, description="reference of further texts, such as bare class names")
    other_embeddings: Several = Field(None, description="reference of their embeddings")
    id: SetFile | None = Field(None, description="the one ID set, split by class into train, id_val, id_test")
    split: list[Share] = Field([0.6, 0.2, 0.2], min_length=3, max_length=3, description="shares of that")
    train: SetFile | None = Field(None, description="ID images to train on")
    id_val: SetFile | None = Field(None, description="ID images for choices")
    id_test: SetFile | None = Field(None, description="ID images for the test")
    ood: dict[SetName, SetFile | Literal["near", "far", "unseen", "validation"]] = Field(
        {}, description="name -> set, or its group alone: then the rows with that label"
    )
    made_with: dict = Field({}, description="where it comes from, for people")


class Rows(NamedTuple):
    """A set as read: ``images`` (n, d) float, checked, as long as they were; ``labels`` (n,), -1 for OoD."""

    group: str
    images: np.ndarray
    labels: np.ndarray
    ids: list[str]
    clusters: np.ndarray | None

    def take(self, index: np.ndarray) -> "Rows":
        """These rows alone."""
        clusters = None if self.clusters is None else self.clusters[index]
        ids = [self.ids[i] for i in index]
        return self._replace(images=self.images[index], labels=self.labels[index], ids=ids, clusters=clusters)


def study_file(root: str | Path) -> Path:
    """The yaml file that ``data_root`` means: itself, or study.yaml in it. UserError where there is none."""
    path = Path(os.path.expanduser(root))
    path = path / "study.yaml" if path.is_dir() else path
    if not str(root) or not path.is_file():
        raise UserError(f"data_root = '{root}' is no study.yaml and no folder with one; docs/DATA.md has it")
    return path


class VectorStudy:
    """A study.yaml and what it names; everything is read when it is first asked for, and read once."""

    def __init__(self, root: str | Path) -> None:
        self.path = study_file(root)
        self.base, self._read = self.path.parent, {}
        try:
            values = parse_yaml(self.path.read_text(encoding="utf-8"))
            self.file = StudyFile(**self._defaults() | {str(k): v for k, v in values.items()})
        except (yaml.YAMLError, UnicodeDecodeError, AttributeError):
            raise UserError(f"{self.path} is no YAML of 'name: value' lines; docs/DATA.md has one") from None
        except UserError as fault:
            raise UserError(f"{self.path}: {fault}") from None
        own = [name for name in ID_SETS if getattr(self.file, name)]
        if own and (len(own) < 3 or self.file.id):
            raise UserError(f"{self.path} gives {', '.join(own)}; give all of train, id_val, id_test, or id")

    def _defaults(self) -> dict[str, str]:
        """What need not be written where clip-retrieval's folders lie beside study.yaml."""
        found = {}
        if (self.base / "img_emb").is_dir():
            found = {"images": "img_emb", "ids": "metadata:image_path"}
        if (self.base / "text_emb").is_dir():
            found |= {"words": "metadata:caption", "word_texts": "text_emb"}
        return found

    # --- files ---

    def references(self) -> list[str]:
        """Every reference that the study names, for a look at what is there."""
        file, found = self.file, []
        sets = [file, *(getattr(file, name) for name in ("id", *ID_SETS)), *file.ood.values()]
        for one in sets:
            if isinstance(one, SetFile | StudyFile):
                found += [one.images, one.labels, one.ids, one.clusters]
            if isinstance(one, SetFile):
                found += [name for name in one.where if name not in ("labels", "ids")]
        found += [file.classes if isinstance(file.classes, str) else None, file.class_texts, file.words]
        found += [file.word_texts, file.parts, file.other_texts, file.other_embeddings]
        flat = [r for one in found if one for r in (one if isinstance(one, list) else [one])]
        return list(dict.fromkeys(flat))

    def place(self, reference: str) -> tuple[Path, str]:
        """(file or folder, name within or "") of a reference."""
        whole = self.base / os.path.expanduser(reference)  # leaves a "~nobody" as it is
        before, colon, name = reference.rpartition(":")
        if whole.exists() or not colon:
            return whole, ""
        return self.base / os.path.expanduser(before), name

    def array(self, references: str | Sequence[str]) -> np.ndarray:
        """The array of a reference, or of several one below the other."""
        several = [references] if isinstance(references, str) else list(references)
        for reference in several:
            if reference not in self._read:
                path, name = self.place(reference)
                parts = [read(part, name) for part in parts_of(path)]
                self._read[reference] = _joined(parts, reference)
        return _joined([self._read[reference] for reference in several], ", ".join(several))

    def table(self, references: str | Sequence[str]) -> np.ndarray:
        """(n, d) embeddings, float16 as they are, all else float32; UserError for a row without direction."""
        named = references if isinstance(references, str) else ", ".join(references)
        rows = self.array(references)
        if rows.ndim != 2 or 0 in rows.shape or rows.dtype.kind not in "fiu":
            fault = f"{named} has shape {rows.shape} of {rows.dtype}"
            raise UserError(f"{self.path}: {fault}; give embeddings as rows of numbers")
        rows = rows if rows.dtype == np.float16 else rows.astype(np.float32, copy=False)
        lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float32))
        if len(bad := np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))):
            what = f"{len(bad)} rows that are zero or not finite, the first is row {bad[0]}"
            raise UserError(f"{self.path}: {named} has {what}; take them out or embed them again")
        return rows

    def column(self, reference: str, rows: int, beside: Several) -> np.ndarray:
        """A 1-D array of a value for each of ``rows`` rows of ``beside``."""
        values = self.array(reference)
        if values.ndim != 1 or len(values) != rows:
            fault = f"{reference} has shape {values.shape}, but {beside} has {rows} rows"
            raise UserError(f"{self.path}: {fault}; give one value a row")
        return values

    # --- texts ---

    @cached_property
    def classes(self) -> dict[str, str]:
        """Label as it stands in the files -> name of the ID class; the classes are numbered in this order."""
        given = self.file.classes
        names = [str(name) for name in self.array(given)] if isinstance(given, str) else list(given)
        found = {str(key): name for key, name in given.items()} if isinstance(given, dict) else {}
        found = found or dict(zip(names, names, strict=True))
        if len(set(found.values())) < max(2, len(names)):
            raise UserError(f"{self.path}: classes must be at least 2 different names, but are {names[:5]}")
        if lost := sorted(self.file.synonyms.keys() - set(found.values())):
            known = nearest(lost[0], found.values())
            raise UserError(f"{self.path}: synonyms name {lost[0]!r}, which is no class{known}")
        return found

    @property
    def class_names(self) -> list[str]:
        """The K names of the ID classes."""
        return list(self.classes.values())

    @cached_property
    def corpus(self) -> tuple[list[tuple[str, str]], np.ndarray]:
        """((word, part of speech) pairs, embeddings (C, d)); of equal words the first counts."""
        if not (self.file.words and self.file.word_texts):
            raise UserError(f"{self.path} lacks words and word_texts; negatives are mined from them")
        texts = self.table(self.file.word_texts)
        words = self.column(self.file.words, len(texts), self.file.word_texts)
        parts = ["noun"] * len(words)
        if self.file.parts:
            parts = self.column(self.file.parts, len(texts), self.file.word_texts)
        row: dict[tuple[str, str], int] = {}
        for i, (word, part) in enumerate(zip(words, parts, strict=True)):
            row.setdefault((str(word), str(part)), i)
        return list(row), texts[list(row.values())]

    @cached_property
    def class_text(self) -> np.ndarray:
        """(K, d) embeddings of the classes: those given, or those of the words of the same names."""
        if self.file.class_texts:
            texts = self.table(self.file.class_texts)
            if len(texts) != len(self.class_names):
                fault = f"{self.file.class_texts} has {len(texts)} rows for {len(self.class_names)} classes"
                raise UserError(f"{self.path}: {fault}; give one a class, in the same order")
            return texts
        row = {word: i for i, (word, _) in enumerate(self.corpus[0])}
        if gone := [name for name in self.class_names if name not in row]:
            fault = f"class_texts is not given and the words lack the class name {gone[0]!r}"
            raise UserError(f"{self.path}: {fault}; give class_texts, or call the class as a word")
        return self.corpus[1][[row[name] for name in self.class_names]]

    def texts(self) -> tuple[list[str], np.ndarray]:
        """(prompted texts, their embeddings): classes, words, others; the first of equal texts counts."""
        file, (corpus, word_texts) = self.file, self.corpus
        names = [file.prompt.replace("{}", name) for name in self.class_names]
        asked = prompts(corpus, file.negative_prompt, file.adjective_prompt)
        blocks = [(names, self.class_text), (asked, word_texts)]
        if file.other_texts and file.other_embeddings:
            others = self.table(file.other_embeddings)
            blocks.append((self.column(file.other_texts, len(others), file.other_embeddings), others))
        widths = {rows.shape[1] for _, rows in blocks}
        if len(widths) > 1:
            raise UserError(f"{self.path}: the texts are {sorted(widths)} wide; embed all with one model")
        names = np.array([str(text) for texts, _ in blocks for text in texts])
        first = np.sort(np.unique(names, return_index=True)[1])
        return names[first].tolist(), np.concatenate([rows for _, rows in blocks])[first]

    # --- sets ---

    def id_sets(self, seed: int) -> dict[str, Rows]:
        """train, id_val and id_test: as given, or one set split by class, stratified, by the seed."""
        if self.file.train:
            return {name: self._set(name, getattr(self.file, name)) for name in ID_SETS}
        whole = self._set("id", self.file.id or SetFile())
        train, val, test = self.file.split
        if abs(train + val + test - 1) > 1e-6 or 0 in self.file.split:
            raise UserError(f"{self.path}: split = {self.file.split}; give three shares above 0 of sum 1")
        from sklearn.model_selection import train_test_split

        try:
            rows = np.arange(len(whole.labels))
            rest, third = train_test_split(rows, test_size=test, random_state=seed, stratify=whole.labels)
            share = val / (train + val)
            first, second = train_test_split(
                rest, test_size=share, random_state=seed, stratify=whole.labels[rest]
            )
        except ValueError:
            counts = np.bincount(whole.labels, minlength=len(self.class_names))
            few = f"class {self.class_names[counts.argmin()]!r} has {counts.min()} of the {len(rows)} ID rows"
            raise UserError(f"{self.path}: {few}, too few to split; give at least 5 of each class") from None
        return dict(zip(ID_SETS, (whole.take(np.sort(part)) for part in (first, second, third)), strict=True))

    def ood_sets(self) -> dict[str, Rows]:
        """The OoD sets by name. UserError where there is none for the test."""
        found = {}
        for name, one in self.file.ood.items():
            if isinstance(one, str):
                one = SetFile(group=one, where={"labels": name})
            if one.group == "id":
                raise UserError(f"{self.path}: OoD set {name!r} has the group id; give near, far or unseen")
            found[name] = self._set(name, one)
        if not [one for one in found.values() if one.group != "validation"]:
            raise UserError(f"{self.path}: ood names no test set; give at least one (near, far or unseen)")
        return found

    def unused(self, sets: Iterable[Rows]) -> int:
        """How many rows of the table that all sets share are in none; 0 where some have their own."""
        given = [self.file.id, *(getattr(self.file, name) for name in ID_SETS), *self.file.ood.values()]
        if not self.file.images or any(isinstance(one, SetFile) and one.images for one in given):
            return 0
        return len(self.array(self.file.images)) - sum(len(rows.labels) for rows in sets)

    def _set(self, name: str, given: SetFile) -> Rows:
        """The rows of one set; those of an ID set with their class numbers."""
        is_id, shared = name in ("id", *ID_SETS), not given.images
        images, beside, columns = self._columns(name, given)
        kept = self._chosen(name, given, columns, len(images), beside)
        labels = np.full(len(images), -1)
        if is_id:
            labels = self._numbers(given.labels or self.file.labels, columns["labels"], kept, shared)
            kept &= labels >= 0
        elif shared and columns["labels"] is not None:
            if len(both := np.flatnonzero(kept & (self._numbers(None, columns["labels"], kept, True) >= 0))):
                fault = f"OoD set {name!r} has row {both[0]} of {beside}, which is of an ID class"
                raise UserError(f"{self.path}: {fault}; choose its rows by where")
        if not kept.any():
            raise UserError(f"{self.path}: set {name!r} has no row of {beside}; correct its labels or where")
        ids, clusters = columns["ids"], columns["clusters"]
        named = [f"{name} {i}" for i in range(len(images))] if ids is None else [str(i) for i in ids]
        clusters = None if clusters is None else clusters.astype(np.int64)
        whole = Rows("id" if is_id else given.group, images, labels.astype(np.int64), named, clusters)
        return whole if kept.all() else whole.take(np.flatnonzero(kept))

    def _columns(self, name: str, given: SetFile) -> tuple[np.ndarray, Several, dict]:
        """(embeddings, their reference, labels, ids and clusters beside them) of a set."""
        beside, kinds = given.images or self.file.images, ("labels", "ids", "clusters")
        if not beside:
            raise UserError(f"{self.path}: set {name!r} has no images; name the file of its embeddings")
        images = self.table(beside)
        if images.shape[1] != (width := self.class_text.shape[1]):
            fault = f"{beside} is {images.shape[1]} wide but the texts are {width}"
            raise UserError(f"{self.path}: {fault}; embed images and texts with one model")
        named = {kind: getattr(given, kind) for kind in kinds}
        if not given.images:  # the columns of the study stand beside its own table alone
            named = {kind: one or getattr(self.file, kind) for kind, one in named.items()}
        columns = {kind: one and self.column(one, len(images), beside) for kind, one in named.items()}
        if columns["labels"] is None and named["ids"] == "metadata:image_path":
            columns["labels"] = np.array([Path(str(path)).parent.name for path in columns["ids"]])
        if columns["labels"] is None and name in ("id", *ID_SETS):
            raise UserError(f"{self.path}: ID set {name!r} has no labels; name the file or column of them")
        return images, beside, columns

    def _chosen(self, name: str, given: SetFile, columns: dict, rows: int, beside: Several) -> np.ndarray:
        """(rows,) bool: what ``where`` takes."""
        kept = np.ones(rows, dtype=bool)
        for key, wanted in given.where.items():
            values = columns.get(key) if key in columns else self.column(key, rows, beside)
            if values is None:
                raise UserError(f"{self.path}: set {name!r} chooses by {key}, which are not given")
            wanted = [str(value) for value in (wanted if isinstance(wanted, list) else [wanted])]
            kept &= np.isin(values.astype(str), wanted)
        return kept

    def _numbers(self, named: Several, values: np.ndarray, kept: np.ndarray, shared: bool) -> np.ndarray:
        """(n,) class numbers; -1 for other labels, which only a table that several sets share may have."""
        number = {label: k for k, label in enumerate(self.classes)}
        if values.dtype.kind in "iu" and not isinstance(self.file.classes, dict):
            numbers = np.where((values >= 0) & (values < len(number)), values, -1)
            known = f"; give 0 to {len(number) - 1}"
        else:
            distinct, place = np.unique(values.astype(str), return_inverse=True)
            numbers = np.array([number.get(value, -1) for value in distinct])[place]
            known = "; the classes are " + ", ".join(list(number)[:8])
        if not shared and len(bad := np.flatnonzero(kept & (numbers < 0))):
            fault = f"{named} has {values[bad[0]]!s} in row {bad[0]}, which is no class"
            raise UserError(f"{self.path}: {fault}{known}")
        return numbers


# --- reading ---


def parts_of(path: Path) -> list[Path]:
    """The file itself, or a folder's parts of one kind by number. UserError where there is none."""
    if path.is_file():
        return [path]
    found = [p for p in path.glob("*") if p.suffix in KINDS] if path.is_dir() else []
    if len({p.suffix for p in found}) != 1:
        what = "holds several kinds of files" if found else "holds none of " + ", ".join(KINDS)
        raise UserError(f"{path} {what if path.is_dir() else 'does not exist'}; correct study.yaml")
    return sorted(found, key=lambda p: [int(n) for n in re.findall(r"\d+", p.stem)] + [p.name])


def read(path: Path, name: str = "") -> np.ndarray:
    """One array of a file. UserError for a pickle, an absent or unclear name, a file of another kind."""
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return file[_only(path, name, file.files)]
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "np") as file:
                return file.get_tensor(_only(path, name, list(file.keys())))
        if path.suffix == ".parquet":
            return _parquet(path, name)
        if path.suffix == ".txt":
            return np.array([line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()])
    except UserError:
        raise
    except Exception as fault:  # zip, safetensors, arrow and numpy have errors of their own
        reason = str(fault).splitlines()[0][:120] if str(fault) else type(fault).__name__
        if "allow_pickle" in reason or "Object arrays" in reason or "Python objects" in reason:
            reason = "it holds Python objects, a pickle, which could run code; save plain numbers and texts"
        raise UserError(f"{path} cannot be read: {reason}") from None
    raise UserError(f"{path} is none of {', '.join(KINDS)}; save it as one of them")


def _only(path: Path, name: str, names: list[str]) -> str:
    if name in names or (not name and len(names) == 1):
        return name or names[0]
    what = f"has no {name!r}" if name else "holds several arrays"
    raise UserError(f"{path} {what}; write {path.name}:NAME with one of {', '.join(sorted(names)[:12])}")


def _parquet(path: Path, name: str) -> np.ndarray:
    import pyarrow.parquet as parquet

    column = _only(path, name, parquet.read_schema(path).names)
    values = parquet.read_table(path, columns=[column])[column].to_pandas()
    if values.isna().any():
        raise UserError(f"{path}: column {column} is empty in row {int(values.isna().argmax())}; fill it")
    if values.dtype != object:
        return values.to_numpy()
    return np.stack(list(values)) if isinstance(values.iloc[0], np.ndarray) else values.to_numpy(dtype=str)


def _joined(parts: list[np.ndarray], named: str) -> np.ndarray:
    if len(parts) == 1:
        return parts[0]
    if len(shapes := {part.shape[1:] for part in parts}) > 1:
        raise UserError(f"the parts of {named} have different widths {sorted(shapes)}; embed with one model")
    return np.concatenate(parts)
