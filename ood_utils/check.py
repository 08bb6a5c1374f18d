"""Self-check: what this machine has, what each profile needs, whether it is there and where to get what is
not.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from . import config, errors, files, provenance, store
from .config import Profile
from .errors import UserError

IMAGENET = "image-net.org after registration; ImageNet terms of access: non-commercial research"
OPENOOD = "OpenOOD v1.5's download script (github.com/Jingkang50/OpenOOD)"
WISC = "pages.cs.wisc.edu/~huangrui/imagenet_ood_dataset"
# path below data_root -> size, where it is obtained, licence (core_methods 8); "est." = reckoned from the image count
SOURCES = {
    "imagenet/train": f"138 GB; {IMAGENET}",
    "imagenet/val": f"6.3 GB; {IMAGENET}",
    "MOS/iNaturalist": f"est. 2 GB; {WISC}/iNaturalist.tar.gz; photographers' CC BY-NC and the like, research",
    "MOS/SUN": f"est. 2 GB; {WISC}/SUN.tar.gz; research only",
    "MOS/Places": f"est. 2 GB; {WISC}/Places.tar.gz; research only",
    "MOS/dtd/images": "0.6 GB; www.robots.ox.ac.uk/~vgg/data/dtd; research only",
    "benchmark_imglist/imagenet": f"30 MB; {OPENOOD}, file 1lI1j0_fDDvjIt9JlWAw09X8ks-yrR_H1; MIT",
    "images_largescale": f"est. 10 GB besides ImageNet; {OPENOOD}, NINCO: zenodo.org/records/8013288; see there",
    "images_classic": f"est. 1 GB; {OPENOOD}, file 1OSz1m3hHfVWbRdmMwKbUzoU8Hg9UKcam; research only",
}
WNIDS = "name each class folder by its wnid (n01440764, ...) and move all others away"
WORDNET = "10 MB; Debian package wordnet-base, or nltk.download('wordnet'); WordNet licence (free)"


@dataclass(frozen=True)
class Item:
    """One thing looked for. ok is None for a plain fact; ``fault`` is the word shown where ok is False."""

    ok: bool | None
    what: str
    remedy: str = ""
    fault: str = "MISSING"

    def __str__(self) -> str:
        return f"  { ({True: 'ok', False: self.fault, None: '-'}[self.ok]):8}{self.what}"


def main(profile: str | None = None, changes: dict[str, Any] | None = None) -> int:
    """Print the check; 0 when all that is needed is there, 1 when something is missing."""
    print("This machine")
    good = _show(environment())
    names = [profile] if profile else list(config.profile_names())
    for name in names:
        values = config.load_profile(name, changes)
        print(f"Profile {name}: {values.title}")
        whole = _show(needs(values))
        good = good and (
            whole or (profile is None and values.data != "glyphs")
        )  # other lanes need the user's data
    print("Ready." if good else "Something is missing: see the lines above.")
    return 0 if good else 1


def _show(items: Iterator[Item]) -> bool:
    remedies = []
    good = True
    for item in items:
        print(item, flush=True)
        good = good and item.ok is not False
        if item.ok is False and item.remedy not in remedies:  # several sets may come in one file
            remedies.append(item.remedy)
            print(f"          {'get it' if item.fault == 'MISSING' else 'remedy'}: {item.remedy}")
    return good


def environment() -> Iterator[Item]:
    """Versions, devices, memory, disk, writable outputs."""
    yield Item(sys.version_info >= (3, 11), f"Python {sys.version.split()[0]}", "Python 3.11 or later")
    found = provenance.versions()
    for name in [*provenance.PACKAGES, "nbconvert"]:
        try:
            version = found.get(name) or metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Item(False, f"package {name}", "pip install -e '.[notebooks]' in the project's folder")
            continue
        if name in ("torch", "open_clip_torch", "scikit-learn", "umap-learn", "papermill"):
            yield Item(True, f"{name} {version}")
    facts = provenance.machine()
    yield Item(
        None, f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB memory, {facts['system']}"
    )
    yield Item(None, f"GPU: {', '.join(_gpus()) or 'none; everything runs on the CPU'}")
    yield _outputs()


def _gpus() -> list[str]:
    try:
        import torch
    except ImportError:
        return []
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.cuda.get_device_name(i) for i in range(count)]


def _outputs() -> Item:
    probe = store.OUTPUTS / ".probe"
    try:
        files.atomic_write(probe, "")
        probe.unlink()
    except UserError as error:
        return Item(False, f"outputs folder {store.OUTPUTS}", str(error))
    return Item(True, f"outputs folder {store.OUTPUTS} is writable, {_free(store.OUTPUTS):.1f} GiB free")


def _free(path: Path) -> float:
    """GiB free on the disk of a path, or of the first folder above it that exists."""
    return shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free / 2**30


def needs(profile: Profile) -> Iterator[Item]:
    """What a profile needs: images, weights, corpus, device, disk; and how long it should take."""
    if profile.data == "imagenet":
        yield from _imagenet(profile)
    elif profile.data == "folder":
        yield _folder(
            "data_root", profile.data_root, "-p data_root=FOLDER, or write it in a copy of the profile"
        )
        for name, root in profile.ood_roots.items():
            yield _folder(f"ood_roots {name}", root, "correct the folder in the profile")
        if not profile.ood_roots:
            yield Item(
                False, "ood_roots: no OoD set", "-p 'ood_roots={name: FOLDER}', or write it in the profile"
            )
    yield _weights(profile)
    if profile.corpus != "names":
        path = Path(profile.corpus).expanduser()
        gone = [name for name in ("data.noun", "data.adj") if path.is_dir() and not (path / name).is_file()]
        what = f"corpus {path}" + (f" without {' and '.join(gone)}" if gone else "")
        yield Item(path.exists() and not gone, what, WORDNET)
    if profile.device == "cuda":
        yield Item(bool(_gpus()), "a CUDA GPU that torch sees", "a GPU machine with a CUDA build of torch")
    yield _disk(profile)
    times = ", ".join(f"{name} {minutes:g}" for name, minutes in profile.minutes.items())
    total = sum(profile.minutes.values())
    yield Item(
        None, f"expected minutes: {times} (all {total:g})" if times else "expected minutes: not yet measured"
    )


def room(profile: Profile) -> dict[str, float]:
    """Estimated GiB that a run of the profile fills in outputs/, by what for. UserError: a model that cannot
    be built.

    An upper bound: the sweep's models are reckoned to embed everything. Optimiser states go when a training
    ends.
    """
    import torch

    from . import models, training

    width = models._config(profile.model)["embed_dim"]
    try:
        with torch.device("meta"):  # sizes without the memory
            model, _, _ = models.load(profile.model, "random", device="meta")
    except (ImportError, OSError, RuntimeError) as fault:  # a tokenizer that wants more packages or a network
        raise UserError(
            f"model {profile.model!r} cannot be built here: {str(fault).splitlines()[0]}"
        ) from None
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values()) / 2**30
    count = training.plan(profile, profile.lam).query("method != 'zero-shot'").tag.nunique()
    at_once = 1 if profile.processes > 1 or profile.device == "cuda" else max(1, profile.parallel)
    rows = _images(profile) + (profile.corpus_words or (7_000 if profile.corpus == "names" else 71_000))
    return {
        f"{count} checkpoints": count * weights,
        "state while training": at_once
        * 6
        * weights,  # weights and two moments; the last state and the one to come
        f"embeddings of {count + 1} models": (count + 1) * rows * width * 4 / 2**30,
        "figures, tables, notebooks": 0.1,
    }


def _images(profile: Profile) -> int:
    """About how many images a run embeds with each model."""
    if profile.data == "imagenet":
        from .data import IMAGENET_SETS

        return 50_000 + sum(min(count, profile.ood_images or count) for *_, count in IMAGENET_SETS.values())
    if profile.data == "glyphs":
        return 20_000
    roots = [Path(root).expanduser() for root in (profile.data_root, *profile.ood_roots.values()) if root]
    return sum(len(files) for root in roots for _, _, files in os.walk(root))


def _disk(profile: Profile) -> Item:
    try:
        parts = room(profile)
    except UserError:
        return Item(None, "disk needed: not known for this model")
    wanted, free = sum(parts.values()), _free(store.OUTPUTS)
    of = ", ".join(f"{name} {size:.1f}" for name, size in parts.items())
    what = f"disk for outputs: about {wanted:.1f} GiB ({of}; an estimate), {free:.1f} GiB free"
    remedy = "free that much, or set OOD_OUTPUTS to a folder on a larger disk; a run that is partly there needs less"
    return Item(free >= wanted, what, remedy, "LOW")


def _folder(name: str, path: str, remedy: str) -> Item:
    there = bool(path) and Path(path).is_dir()
    return Item(there, f"{name} '{path}'" + (f": {len(os.listdir(path))} entries" if there else ""), remedy)


def _imagenet(profile: Profile) -> Iterator[Item]:
    """The folders and lists below data_root; class folders are counted, images are not (that would take
    minutes).
    """
    from .data import IMAGENET_SETS, imagenet_wnids

    root = Path(profile.data_root or "DATA_ROOT").expanduser()
    yield _folder("data_root", profile.data_root, "-p data_root=FOLDER, or write it in the profile")
    if root.is_dir():
        yield Item(None, f"{_free(root):.0f} GiB free at {root}")
    wnids, wanted = set(imagenet_wnids()), profile.id_classes or 1000
    for part in ("imagenet/train", "imagenet/val"):
        names = {e.name for e in os.scandir(root / part) if e.is_dir()} if (root / part).is_dir() else set()
        known, foreign = len(names & wnids), sorted(names - wnids)
        if foreign:  # labels are positions among the sorted wnids: one foreign folder would shift them
            what = f"{root / part}: {len(foreign)} folders whose names are no ImageNet-1k wnid, first '{foreign[0]}'"
            yield Item(False, what, WNIDS, "WRONG")
        enough = known >= wanted if profile.id_classes else known == wanted
        yield Item(enough, f"{root / part}: {known} of {wanted} class folders", SOURCES[part])
    lists = "benchmark_imglist/imagenet"
    listed = ["val_imagenet.txt", *(row[2] for row in IMAGENET_SETS.values() if row[2])]
    gone = [name for name in listed if not (root / lists / name).is_file()]
    what = f"{len(listed) - len(gone)} of {len(listed)} image lists in {root / lists}"
    yield Item(not gone, what + (f" (not {', '.join(gone)})" if gone else ""), SOURCES[lists])
    for name, (group, folder, _, count) in IMAGENET_SETS.items():
        there = (root / folder).is_dir() and any(os.scandir(root / folder))
        yield Item(
            there, f"{name} ({group}, {count:,} images) in {root / folder}", SOURCES.get(folder, OPENOOD)
        )


def _weights(profile: Profile) -> Item:
    """The weights, looked for without a network."""
    from . import models

    what = f"weights of {profile.model}: {profile.pretrained}"
    try:
        models._config(profile.model)
    except UserError as mistake:
        return Item(False, what, str(mistake), "WRONG")
    if profile.pretrained == "random":
        return Item(True, what)
    if profile.pretrained == "builtin":
        path = config.PACKAGE / "assets" / f"{profile.model}.safetensors"
        return Item(
            path.is_file(), what, f"install the package anew, or make {path.name} with `ood pretrain`"
        )
    if Path(profile.pretrained).is_file():
        return Item(True, f"{what} ({Path(profile.pretrained).stat().st_size / 2**20:.0f} MiB)")
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    known = list_pretrained_tags_by_model(profile.model)
    if profile.pretrained not in known:
        own = ["builtin"] if profile.model == "GlyphCLIP" else []
        return Item(
            False, what, f"give a file or a tag{errors.nearest(profile.pretrained, [*own, *known, 'random'])}"
        )
    known_as = get_pretrained_cfg(profile.model, profile.pretrained)
    source = known_as.get("hf_hub") or known_as.get("url", "")
    licence = (
        "OpenAI's weights are under MIT" if profile.pretrained == "openai" else "its licence is said there"
    )
    remedy = f"open_clip downloads it at first use (ViT-B/16: 0.6 GB) from {source}; {licence}"
    return Item(_cached(known_as), what, remedy)


def _cached(config: dict[str, Any]) -> bool:
    from huggingface_hub import try_to_load_from_cache

    repository, _, file = config.get("hf_hub", "").rpartition("/")
    names = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    if repository and any(isinstance(try_to_load_from_cache(repository, name), str) for name in names):
        return True
    return (Path.home() / ".cache" / "clip" / Path(config.get("url") or "none").name).is_file()
