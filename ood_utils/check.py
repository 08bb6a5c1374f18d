"""Self-check: what this machine has, what each profile needs, whether it is there and where to get what is not."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from . import run as runs
from .errors import UserError
from .run import Profile

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
WORDNET = "10 MB; Debian package wordnet-base, or nltk.download('wordnet'); WordNet licence (free)"


@dataclass(frozen=True)
class Item:
    """One thing looked for. ok is None for a plain fact."""

    ok: bool | None
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"  { ({True: 'ok', False: 'MISSING', None: '-'}[self.ok]):8}{self.what}"


def main(profile: str | None = None, changes: dict[str, Any] | None = None) -> int:
    """Print the check; 0 when all that is needed is there, 1 when something is missing."""
    print("This machine")
    good = _show(environment())
    names = [profile] if profile else list(runs.profile_names())
    for name in names:
        values = runs.load_profile(name, changes)
        print(f"Profile {name}: {values.title}")
        whole = _show(needs(values))
        good = good and (whole or (profile is None and values.data != "glyphs"))  # other lanes need the user's data
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
            print(f"          get it: {item.remedy}")
    return good


def environment() -> Iterator[Item]:
    """Versions, devices, memory, disk, writable outputs."""
    yield Item(sys.version_info >= (3, 11), f"Python {sys.version.split()[0]}", "Python 3.11 or later")
    found = runs.versions()
    for name in [*runs.PACKAGES, "nbconvert"]:
        try:
            version = found.get(name) or metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Item(False, f"package {name}", "pip install -e '.[notebooks]' in the project's folder")
            continue
        if name in ("torch", "open_clip_torch", "scikit-learn", "umap-learn", "papermill"):
            yield Item(True, f"{name} {version}")
    facts = runs.machine()
    yield Item(None, f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB memory, {facts['system']}")
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
    probe = runs.OUTPUTS / ".probe"
    try:
        runs.atomic_write(probe, "")
        probe.unlink()
    except UserError as error:
        return Item(False, f"outputs folder {runs.OUTPUTS}", str(error))
    free = shutil.disk_usage(runs.OUTPUTS).free / 2**30
    return Item(free > 0.5, f"outputs folder {runs.OUTPUTS} is writable, {free:.1f} GiB free", "at least 0.5 GiB free")


def needs(profile: Profile) -> Iterator[Item]:
    """What a profile needs: images, weights, corpus, device; and how long it should take."""
    if profile.data == "imagenet":
        yield from _imagenet(profile)
    elif profile.data == "folder":
        yield _folder("data_root", profile.data_root, "-p data_root=FOLDER, or write it in a copy of the profile")
        for name, root in profile.ood_roots.items():
            yield _folder(f"ood_roots {name}", root, "correct the folder in the profile")
        if not profile.ood_roots:
            yield Item(False, "ood_roots: no OoD set", "-p 'ood_roots={name: FOLDER}', or write it in the profile")
    yield _weights(profile)
    if profile.corpus != "names":
        yield Item(Path(profile.corpus).exists(), f"corpus {profile.corpus}", WORDNET)
    if profile.device == "cuda":
        yield Item(bool(_gpus()), "a CUDA GPU that torch sees", "a GPU machine with a CUDA build of torch")
    times = ", ".join(f"{name} {minutes:g}" for name, minutes in profile.minutes.items())
    total = sum(profile.minutes.values())
    yield Item(None, f"expected minutes: {times} (all {total:g})" if times else "expected minutes: not yet measured")


def _folder(name: str, path: str, remedy: str) -> Item:
    there = bool(path) and Path(path).is_dir()
    return Item(there, f"{name} '{path}'" + (f": {len(os.listdir(path))} entries" if there else ""), remedy)


def _imagenet(profile: Profile) -> Iterator[Item]:
    """The folders and lists below data_root; class folders are counted, images are not (that would take minutes)."""
    from .data import IMAGENET_SETS

    root = Path(profile.data_root or "DATA_ROOT").expanduser()
    yield _folder("data_root", profile.data_root, "-p data_root=FOLDER, or write it in the profile")
    if root.is_dir():
        yield Item(None, f"{shutil.disk_usage(root).free / 2**30:.0f} GiB free at {root}")
    wanted = profile.id_classes or 1000
    for part in ("imagenet/train", "imagenet/val"):
        count = sum(entry.is_dir() for entry in os.scandir(root / part)) if (root / part).is_dir() else 0
        yield Item(count == wanted, f"{root / part}: {count} of {wanted} class folders", SOURCES[part])
    lists = "benchmark_imglist/imagenet"
    listed = ["val_imagenet.txt", *(row[2] for row in IMAGENET_SETS.values() if row[2])]
    gone = [name for name in listed if not (root / lists / name).is_file()]
    what = f"{len(listed) - len(gone)} of {len(listed)} image lists in {root / lists}"
    yield Item(not gone, what + (f" (not {', '.join(gone)})" if gone else ""), SOURCES[lists])
    for name, (group, folder, _, count) in IMAGENET_SETS.items():
        there = (root / folder).is_dir() and any(os.scandir(root / folder))
        yield Item(there, f"{name} ({group}, {count:,} images) in {root / folder}", SOURCES.get(folder, OPENOOD))


def _weights(profile: Profile) -> Item:
    """The weights, looked for without a network."""
    what = f"weights of {profile.model}: {profile.pretrained}"
    if profile.pretrained == "builtin":
        path = runs.PACKAGE / "assets" / f"{profile.model}.safetensors"
        return Item(path.is_file(), what, f"install the package anew, or make {path.name} with `ood pretrain`")
    if Path(profile.pretrained).is_file():
        return Item(True, f"{what} ({Path(profile.pretrained).stat().st_size / 2**20:.0f} MiB)")
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    known = list_pretrained_tags_by_model(profile.model)
    if profile.pretrained not in known:
        return Item(False, what, f"give a file or a tag{runs.nearest(profile.pretrained, known)}")
    config = get_pretrained_cfg(profile.model, profile.pretrained)
    source = config.get("hf_hub") or config.get("url", "")
    remedy = f"open_clip downloads it at first use (ViT-B/16: 0.6 GB) from {source}; OpenAI's weights are under MIT"
    return Item(_cached(config), what, remedy)


def _cached(config: dict[str, Any]) -> bool:
    from huggingface_hub import try_to_load_from_cache

    repository, _, file = config.get("hf_hub", "").rpartition("/")
    names = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    if repository and any(isinstance(try_to_load_from_cache(repository, name), str) for name in names):
        return True
    return (Path.home() / ".cache" / "clip" / Path(config.get("url") or "none").name).is_file()
