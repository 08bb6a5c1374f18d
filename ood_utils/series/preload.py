"""Imported by the fork server alone, for its effect: all that the series' notebooks import is loaded once."""

import gc
import importlib
import os
import signal
from contextlib import suppress

signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the runner
for name in ("ipykernel.kernelapp", "psutil", *os.environ["OOD_PRELOAD"].split()):
    with suppress(Exception):  # the notebook that needs it will say what is wrong with it
        importlib.import_module(name)
gc.collect()
gc.freeze()  # a collection in a fork would copy every page that it looks at
