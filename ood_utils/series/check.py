"""Self-check: what this machine has, what a profile needs, what of it is there, where to get the rest."""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import config, data, files, provenance, registry, store
from ..config import Profile
from ..data.study import Need, refuse, wrong
from ..errors import UserError


def main(profile: str | None = None, changes: dict[str, Any] | None = None) -> int:
    """Print the check; 0 when all that is needed is there, 1 when something is missing."""
    print("This machine")
    good = _show(environment())
    for name in [profile] if profile else config.profile_names():
        values = config.load_profile(name, changes)
        print(f"Profile {name}: {values.title}")
        optional = profile is None and values.data != "glyphs"  # other lanes need the user's data
        good &= _show(needs(values)) or optional
    print("Ready." if good else "Something is missing: see the lines above.")
    return 0 if good else 1


def _show(found: Iterator[Need]) -> bool:
    """Print each need, and once each remedy; whether none is wanting."""
    remedies, good = set(), True
    for need in found:
        print(need, flush=True)
        good &= need.ok is not False
        if need.ok is False and need.remedy not in remedies:  # several sets may come in one file
            remedies.add(need.remedy)
            print(f"          {'get it' if need.fault == 'MISSING' else 'remedy'}: {need.remedy}")
    return good


def environment() -> Iterator[Need]:
    """Versions, devices, memory, disk, writable outputs."""
    found = provenance.versions()
    yield Need(True, f"Python {found['python']}")
    for name in provenance.PACKAGES:
        if name not in found:
            yield Need(False, f"package {name}", "pip install -e '.[notebooks]' in the project's folder")
        elif name in ("torch", "open_clip_torch", "scikit-learn", "umap-learn", "papermill"):
            yield Need(True, f"{name} {found[name]}")
    facts = provenance.machine()
    yield Need(None, "{cpu}, {cores} cores, {memory_gib} GiB memory, {system}".format(**facts))
    yield Need(None, f"GPU: {', '.join(_gpus()) or 'none; everything runs on the CPU'}")
    try:
        files.atomic_write(store.OUTPUTS / ".probe", "").unlink()
    except UserError as error:
        yield Need(False, f"outputs folder {store.OUTPUTS}", str(error))
    else:
        yield Need(True, f"outputs folder {store.OUTPUTS} is writable, {_free():.1f} GiB free")


def _gpus() -> list[str]:
    if not provenance.machine()["gpus"]:  # torch takes seconds to import
        return []
    with suppress(ImportError):
        import torch

        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return []


def _free() -> float:
    """GiB free where outputs go: on the disk of the folder, or of the first above it that exists."""
    there = next(path for path in (store.OUTPUTS, *store.OUTPUTS.parents) if path.exists())
    return shutil.disk_usage(there).free / 2**30


def needs(profile: Profile) -> Iterator[Need]:
    """What a profile needs: data, weights, device, disk; and how long it should take."""
    try:
        profile.for_series()
    except UserError as fault:
        yield wrong(fault)
    yield from data.needs(profile)
    if profile.device != "cpu" and profile.workers and (gpus := _gpus()):
        cores = provenance.cores() / len(gpus)
        what = f"{cores:.0f} cores for each of {len(gpus)} GPUs; decoding JPEG for an H100 takes 12 to 25"
        yield Need(cores >= 12 or None, what)
    yield weights_need(profile)
    yield disk_need(profile)
    times = [f"{name} {minutes:g}" for name, minutes in profile.minutes.items()]
    total = f" (all {sum(profile.minutes.values()):g})" if times else "not yet measured"
    yield Need(None, f"expected minutes: {', '.join(times)}{total}")


def room(profile: Profile) -> dict[str, float]:
    """Estimated GiB that a run fills in outputs/, by what for; raises what building the model raises.

    An upper bound: all of the sweep's models embed everything. Optimiser states go when a training ends.
    """
    from .. import sweep

    known = about_model(profile)
    weights, width = known["bytes"] / 2**30, known["width"]
    planned = sweep.plan(profile, max(profile.lams), max(profile.relations, default=0))
    count = planned.query("method != 'zero-shot'").tag.nunique()
    at_once = 1 if profile.processes > 1 or profile.device == "cuda" else max(1, profile.parallel)
    words = profile.corpus_words or (7_000 if profile.corpus == "names" else 71_000)
    rows = words + registry.find("data/lanes", profile.data).count(profile)
    return {
        f"{count} checkpoints": count * weights,
        "state while training": at_once * 6 * weights,  # weights, two moments; the last state and the next
        f"embeddings of {count + 1} models": (count + 1) * rows * width * 4 / 2**30,
        "figures, tables, notebooks": 0.1,
    }


def about_model(profile: Profile) -> dict[str, Any]:
    """bytes, width, path or tag of its weights and what open_clip says ``about`` the tag.

    Kept in outputs/.scans, for open_clip takes seconds to import. Raises what building the model raises; a
    local file must hold its tensors, by name and shape (their numbers are not read).
    """
    given, state = profile.data == "embeddings", None
    with suppress(OSError, ValueError):  # a tag, or no such file
        state = (stat := os.stat(profile.pretrained)).st_size, stat.st_mtime_ns
    code = files.file_hash(config.PACKAGE / "models.py")  # what it refuses
    key = files.hash_of([profile.model, profile.pretrained, state, provenance.versions(), code])[:16]
    kept = store.OUTPUTS / ".scans" / f"model-{key}.json"
    with suppress(UserError):
        if not given and (found := files.read_json(kept)):
            return found
    import open_clip
    import torch

    from .. import models

    facts = {} if given else models.model_config(profile.model)
    path, tag = models.source(profile.model, profile.pretrained)
    about = dict(open_clip.get_pretrained_cfg(profile.model, tag)) if tag else {}
    about["files"] = [open_clip.constants.HF_SAFE_WEIGHTS_NAME, open_clip.constants.HF_WEIGHTS_NAME]
    with torch.device("meta"):  # sizes without the memory
        model = models.build(profile.model, "random" if tag else profile.pretrained, device="meta")
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    width = model.visual.output_dim if given else facts["embed_dim"]
    found = {"bytes": size, "width": width, "path": path and str(path), "tag": tag, "about": about}
    with suppress(UserError):
        files.write_json(kept, found)
    return found


def disk_need(profile: Profile) -> Need:
    """Whether the disk of outputs/ has the room that a run is reckoned to take."""
    try:
        parts = room(profile)
    except (ImportError, OSError, RuntimeError, UserError):  # no such model, or one that wants a network
        return Need(None, "disk needed: not known for this model")
    wanted, free = sum(parts.values()), _free()
    of = ", ".join(f"{name} {size:.1f}" for name, size in parts.items())
    what = f"disk for outputs: about {wanted:.1f} GiB ({of}; an estimate), {free:.1f} GiB free"
    remedy = "free that much, or set OOD_OUTPUTS to a folder on a larger disk; a run partly there needs less"
    return Need(free >= wanted, what, remedy, "LOW")


def weights_need(profile: Profile) -> Need:
    """The weights, looked for without a network."""
    what = f"weights of {profile.model}: {profile.pretrained}"
    if profile.data == "embeddings":
        return Need(None, f"no weights: {profile.model} starts from the embeddings themselves")
    try:
        known = about_model(profile)
    except UserError as fault:
        return wrong(fault)
    path, tag, about = known["path"], known["tag"], known["about"]
    if not tag:
        return Need(True, what + ", the model's by tensor names and shapes" * bool(path))
    source = about.get("hf_hub") or about.get("url", "")
    licence = "OpenAI's weights are under MIT" if tag == "openai" else "its licence is said there"
    remedy = f"open_clip downloads it at first use (ViT-B/16: 0.6 GB) from {source}; {licence}"
    if cached(about):
        return Need(True, what)
    return Need(None, f"{what}, not on this machine: {remedy}")


def require(profile: Profile, name: str) -> None:
    """UserError, in the words of ``main``, saying the first that a run lacks: of its data, or its weights."""
    data.require(profile, name)
    if profile.pretrained != "builtin":  # whose look-up would only take time
        refuse((need for need in [weights_need(profile)] if need.ok is False), f"profile {Path(name).stem}: ")


def cached(about: dict[str, Any]) -> bool:
    """Whether the weights that an open_clip tag means (its config `about`) lie in a cache of this machine."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, file = about.get("hf_hub", "").rpartition("/")
    names = [file] if file else about["files"]
    if repository and any(isinstance(try_to_load_from_cache(repository, name), str) for name in names):
        return True
    return (Path.home() / ".cache" / "clip" / Path(about.get("url") or "none").name).is_file()
