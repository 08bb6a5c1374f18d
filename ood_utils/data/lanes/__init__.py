"""One file per lane, found by its name. A lane imports lightly and has two functions:

``needs(profile)`` yields what must be on disk (asked by ``check`` and by the runner, before torch is loaded);
``study(profile, classes)`` gives the Study, or raises UserError naming what is missing or does not fit.
"""
