"""Found by name: the files of a package are what there is to choose from, so adding one is adding a file."""

import importlib
from pathlib import Path
from types import ModuleType

from .errors import UserError, nearest

HERE = Path(__file__).parent


def names(package: str) -> list[str]:
    """The names of a package's modules, such as ``names("objectives")``, sorted; nothing is imported."""
    return sorted(p.stem for p in (HERE / package).glob("*.py") if not p.stem.startswith("_"))


def find(package: str, name: str) -> ModuleType:
    """The module of that name. Raises UserError with the nearest names when there is none."""
    if name not in names(package):
        raise UserError(f"no file {name!r} in ood_utils/{package}{nearest(name, names(package))}")
    return importlib.import_module(f"{__package__}.{package.replace('/', '.')}.{name}")
