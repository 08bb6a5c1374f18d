"""Whole files or none, hashes, plain JSON, arrays kept by a key, and the one progress bar."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    import numpy as np


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
            "or choose another folder (OOD_OUTPUTS is that of all runs)"
        ) from error
    finally:
        if aside.parent.is_dir():
            aside.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path, mark: str) -> Iterator[Path]:
    """As ``replacing``, for a whole folder. UserError if there is one without ``mark``, a file of our own."""
    new, old = (folder.with_name(f".{os.getpid()}.{word}.{folder.name}") for word in ("new", "old"))
    try:
        if folder.exists() and not (folder / mark).is_file() and any(folder.iterdir()):
            raise UserError(f"{folder} holds other things and is not replaced; give another folder")
        new.mkdir(parents=True)
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except OSError as error:
        fault = f"cannot write {folder}: {error.strerror or error}"
        raise UserError(f"{fault}; free space or rights there, or give another folder") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for aside in (new, old):
            shutil.rmtree(aside, ignore_errors=True)


def atomic_write(path: Path | str, content: bytes | str) -> Path:
    """Write a whole file or nothing (aside, then rename). UserError when the disk refuses.

    Of text, a lone surrogate (a file name's byte that is no UTF-8) is written as ``\\udcNN``, JSON's way too.
    """
    with replacing(Path(path)) as aside:
        aside.write_bytes(
            content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
        )
    return Path(path)


def file_hash(path: Path | str) -> str:
    """SHA-256 (64 hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(value: Any) -> str:
    """SHA-256 (64 hex) of a JSON value, keys sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def plain(value: Any) -> Any:
    """A value as JSON knows it: numpy unpacked, keys as text, NaN and infinities as None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # numpy and torch
        value = value.tolist()
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def write_json(path: Path, value: Any) -> Path:
    """Write a value as ``plain`` JSON, whole or not at all."""
    return atomic_write(path, json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, {} when there is no file; UserError when it holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"it holds no JSON object but a {type(value).__name__}")
        return value
    except FileNotFoundError:
        return {}
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); delete it or use --force or another --run name"
        ) from None


def write_arrays(path: Path, key: str, arrays: Mapping[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Keep arrays of any shape and JSON facts as one safetensors file, for ``read_arrays`` with that key."""
    import numpy as np
    from safetensors.numpy import save

    whole = {name: np.asarray(values, order="C") for name, values in arrays.items()}
    facts = {"key": key, "sha256": _bytes_hash(whole), **facts}
    # one entry of metadata: safetensors shuffles several
    atomic_write(path, save(whole, {"facts": json.dumps(facts)}))


def read_arrays(path: Path, key: str) -> tuple[dict[str, np.ndarray] | None, dict[str, Any]]:
    """(arrays, facts) of a file kept with that key; (None, {}) where it is missing, damaged or another's."""
    from safetensors import SafetensorError, safe_open

    with suppress(OSError, SafetensorError, KeyError, ValueError), safe_open(path, "np") as file:
        facts = json.loads((file.metadata() or {})["facts"])
        if facts["key"] == key:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if facts["sha256"] == _bytes_hash(arrays):
                return arrays, facts
    return None, {}


def _bytes_hash(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(arrays[name])
    return digest.hexdigest()


def progress(
    iterable: Iterable | None = None, total: float | None = None, desc: str = "", **more: Any
) -> Any:
    """tqdm, from the third second on: a live bar on a terminal, elsewhere plain text every 5 seconds."""
    from tqdm import tqdm

    stream, interval = (sys.stderr, 0.1) if sys.stderr.isatty() else (sys.stdout, 5)
    return tqdm(iterable, total=total, desc=desc, file=stream, mininterval=interval, delay=3, **more)
