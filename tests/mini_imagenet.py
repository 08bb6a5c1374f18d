"""A miniature ImageNet in the real layouts: train and val by wnid, MOS and OpenOOD sets, lists, a WordNet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ood_utils.data.lanes.imagenet import SETS

LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by  \n"
SYNSETS = {  # wnid -> words of its synset in WordNet 3.0, for the classes used here
    "n01440764": ["tench", "Tinca_tinca"],
    "n01443537": ["goldfish", "Carassius_auratus"],
    "n01484850": ["great_white_shark", "white_shark", "man-eater"],
    "n01491361": ["tiger_shark", "Galeocerdo_cuvieri"],
    "n01494475": ["hammerhead", "hammerhead_shark"],
    "n01496331": ["electric_ray", "crampfish", "numbfish", "torpedo"],
}
PLACES = (
    "anchor bridge canyon desert engine forest garden harbour "
    "island jungle kettle ladder meadow needle orchard"
)
QUALITIES = (
    "able bright calm dark early faint grey heavy icy jolly keen loud mild narrow odd plain quiet rough soft"
)


def noise(path: Path, mode: str = "RGB", seed: int = 0, colour: int = 0) -> None:
    """An image of noise around a colour; a palette one is a PNG whatever its name, as ImageNet has some."""
    path.parent.mkdir(parents=True, exist_ok=True)
    base = [200 * (1 + colour >> k & 1) for k in range(3)]  # seven colours
    image = Image.fromarray(
        (np.random.default_rng(seed).integers(0, 56, (24, 30, 3)) + base).astype(np.uint8)
    )
    image.convert(mode).save(path, format="PNG" if mode == "P" or path.suffix == ".png" else "JPEG")


def wordnet(folder: Path) -> Path:
    """A Princeton-format dict folder: the synsets of the classes, some places, some qualities."""

    def line(offset: str, number: int, kind: str, words: list[str]) -> str:
        pairs = " ".join(f"{w} 0" for w in words)
        return f"{offset} {number:02d} {kind} {len(words):02x} {pairs} 000 | a gloss\n"

    nouns = [line(wnid[1:], 5, "n", names) for wnid, names in SYNSETS.items()]
    # "goldfish" and a synonym again, where NegLabel's corpus does not leave them out: leaks for `clean`
    nouns += [
        line(f"{i:08d}", 6, "n", [w])
        for i, w in enumerate([*PLACES.split(), "goldfish", "man-eater"], start=1)
    ]
    adjectives = [line(f"{i:08d}", 0, "a", [w]) for i, w in enumerate(QUALITIES.split(), start=1)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.noun").write_text(LICENCE + "".join(nouns))
    (folder / "data.adj").write_text(LICENCE + "".join(adjectives))
    return folder


def build(root: Path, classes: int = 3, images: int = 4, ood: int = 3) -> Path:
    """Everything below ``root``: ``classes`` wnids of ``images`` in train and val, ``ood`` images a set."""
    lists = root / "benchmark_imglist/imagenet"
    lists.mkdir(parents=True)
    held = []
    for k, wnid in enumerate(list(SYNSETS)[:classes]):
        for i in range(images):
            noise(root / "imagenet/train" / wnid / f"{wnid}_{i}.JPEG", seed=k * 99 + i, colour=k)
            mode = {1: "CMYK", 2: "P", 3: "L"}.get(i, "RGB")
            noise(root / "imagenet/val" / wnid / f"ILSVRC2012_val_{k}{i}.JPEG", mode, 5000 + k * 99 + i, k)
        held += [f"imagenet_1k/val/ILSVRC2012_val_{k}{i}.JPEG {k}" for i in range(max(1, images // 4))]
    (lists / "val_imagenet.txt").write_text("\n".join(held))
    for number, (name, (_, folder, listed, _)) in enumerate(SETS.items()):
        paths = [Path(name) / f"{i}.jpg" for i in range(ood)]
        for i, path in enumerate(paths):
            noise(root / folder / path, seed=100 * number + i, colour=number % 7)
        if listed:
            (lists / listed).write_text("".join(f"{p} -1\n" for p in paths))
    return root
