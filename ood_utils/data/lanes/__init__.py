"""One file per lane, found by its name. A lane imports lightly and has three functions:

``needs(profile)`` yields what must be on disk (asked by ``check`` and by the runner, before torch is loaded);
``count(profile)`` tells about how many images a run embeds with each model (``check`` reckons the disk);
``study(profile, classes)`` gives the Study, or raises UserError naming what is missing or does not fit;
and, where it reads files that the profile does not name, ``reads(profile)`` gives their paths: a run is done
again when they change.
"""
