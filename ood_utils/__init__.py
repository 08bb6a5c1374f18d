"""The thin module behind the notebook series. An arrow between rooms points downward only
(tests/test_rooms.py).

Notebooks import the rooms by their names, ``from ood_utils import data, geometry, plots``, and begin with
``start``.
"""

import warnings
from typing import Any

# open_clip imports huggingface_hub, whose tqdm.auto asks for ipywidgets in every notebook; our bars need none
warnings.filterwarnings("ignore", "IProgress not found")


def __getattr__(name: str) -> Any:
    """``start`` and ``Detector``, found when asked for: importing the package imports nothing heavy."""
    if name == "start":
        from .store import start

        return start
    if name == "Detector":
        from .detector import Detector

        return Detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
