"""``ood embed``: an image lane's study as embeddings in a folder that a group can share (docs/DATA.md)."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from . import data, files, store
from .config import PROFILES, Profile, TrainingValues, load_profile, parse_changes, parse_yaml
from .errors import UserError
from .provenance import provenance

if TYPE_CHECKING:
    from .embeddings import EmbeddedSet, StudyEmbeddings

# of a profile: where images come from and how they are read
OF_IMAGES = (
    "title data data_root ood_roots ood_groups id_classes id_views ood_images train_images pretrained "
    "ensemble crop_scale image_lrs corpus corpus_words conjugated embed_batch max_unreadable processes "
    "parallel workers compile device minutes timeout_minutes"
).split()


def write(profile: Profile, out: Path, cache: Path, source: str) -> Path:
    """Embed every set of an image lane, the training set too, and write the study; returns its study.yaml.

    ``cache``: the folder of embeddings that a run of the profile uses: what is there is not embedded again.
    Rows are float16. ``out`` is not there before it is whole; UserError if it is there already.
    """
    if profile.data == "embeddings":
        raise UserError(f"profile {source} is embeddings already; copy its folder instead")
    if out.exists():
        raise UserError(f"--out {out} is there already; give a new folder, or take that one away")
    study, embedded, bare = _embedded(profile, cache)
    with files.replacing_folder(out, "study.yaml") as aside:
        described = _study_file(study, embedded, profile)
        for name, one in embedded.sets.items():
            _write_set(aside, name, one)
        _write_texts(aside, embedded, bare)
        _yaml(aside / "study.yaml", described, "written by `ood embed`; docs/DATA.md")
        _yaml(aside / f"{out.name}.yaml", _profile(profile, described, source), "ood run --profile THIS_FILE")
    return out / "study.yaml"


def _embedded(profile: Profile, cache: Path) -> tuple[data.Study, StudyEmbeddings, np.ndarray]:
    """The study, its embeddings with the training set among the sets, and those of the bare class names."""
    from . import embeddings, models

    study = data.load(profile)
    whole = replace(study, ood={"train": study.train, **study.ood})
    network = models.Network(profile.model, profile.pretrained)
    embedded = embeddings.embed(whole, profile, cache, network=network)
    plain = profile.model_copy(update={"prompt": "{}", "ensemble": False})
    bare = embeddings.embed(whole, plain, cache, sets=[], network=network).class_text
    return study, embedded, bare


def _study_file(study: data.Study, embedded: StudyEmbeddings, profile: Profile) -> dict[str, Any]:
    """What study.yaml says."""
    prompt = "mean over open_clip's templates of {}" if profile.ensemble else profile.prompt
    sets = {name: _files(name, one) for name, one in embedded.sets.items()}
    known = provenance()
    facts = {key: known[key] for key in ("time", "commit", "dirty", "versions")}
    train = "one view of each image, that of epoch 0 under the training's transform"
    return {
        "model": f"{profile.model} / {Path(profile.pretrained).name}",
        "logit_scale": round(embedded.scale, 6),
        "prompt": prompt,
        "negative_prompt": profile.negative_prompt,
        "adjective_prompt": profile.adjective_prompt,
        "classes": "classes.parquet:name",
        "class_texts": "class_texts.npy",
        "synonyms": {n: list(s) for n, s in zip(study.class_names, study.synonyms, strict=True) if s},
        "words": "words.parquet:word",
        "parts": "words.parquet:part",
        "word_texts": "word_texts.npy",
        "other_texts": "classes.parquet:name",
        "other_embeddings": "bare_class_names.npy",
        **{name: sets.pop(name) for name in ("train", "id_val", "id_test")},
        "ood": sets,
        "made_with": {"profile": profile.title, "data": profile.data, "training set": train} | facts,
    }


def _files(name: str, one: EmbeddedSet) -> dict[str, str]:
    columns = {"ids": "id"} | ({"labels": "label"} if one.group == "id" else {})
    columns |= {"clusters": "cluster"} if one.clusters is not None else {}
    named = {key: f"{name}.parquet:{column}" for key, column in columns.items()}
    return {"group": one.group, "images": f"{name}.npy", **named}


def _half(path: Path, rows: np.ndarray) -> None:
    np.save(path, rows.astype(np.float16), allow_pickle=False)


def _write_set(folder: Path, name: str, one: EmbeddedSet) -> None:
    import pandas as pd

    columns = {"label": one.labels, "id": one.ids}
    if one.clusters is not None:
        columns["cluster"] = one.clusters
    pd.DataFrame(columns).to_parquet(folder / f"{name}.parquet")
    _half(folder / f"{name}.npy", one.rows)


def _write_texts(folder: Path, embedded: StudyEmbeddings, bare: np.ndarray) -> None:
    import pandas as pd

    pd.DataFrame({"name": embedded.class_names}).to_parquet(folder / "classes.parquet")
    pd.DataFrame(embedded.corpus, columns=["word", "part"]).to_parquet(folder / "words.parquet")
    _half(folder / "class_texts.npy", embedded.class_text)
    _half(folder / "word_texts.npy", embedded.corpus_text)
    _half(folder / "bare_class_names.npy", bare)


def _profile(profile: Profile, described: dict[str, Any], source: str) -> dict[str, Any]:
    """The shipped lane's training, and all else as the image lane has it, so that both say the same."""
    shipped = parse_yaml((PROFILES / "embeddings.yaml").read_text(encoding="utf-8"))
    own = profile.model_dump(exclude={*TrainingValues.model_fields, *OF_IMAGES})
    prompts = {name: described[name] for name in ("prompt", "negative_prompt", "adjective_prompt")}
    return shipped | own | prompts | {"title": f"Embeddings of {source}: {profile.title}", "data_root": "./"}


def _yaml(path: Path, values: dict[str, Any], comment: str) -> None:
    text = yaml.safe_dump(files.plain(values), sort_keys=False, allow_unicode=True, width=1000)
    path.write_text(f"# {comment}\n{text}", encoding="utf-8")


# --- the command ---

EMBED = """The embeddings of an image lane, written as a study that runs without images, model or GPU:

  ood embed --profile imagenet -p data_root=/data --out /shared/imagenet-b16     on the GPU
  ood run --profile /shared/imagenet-b16/imagenet-b16.yaml                       on any laptop

It holds the training, validation and test sets, every OoD set, class texts, the word list, the logit scale
and where they come from, in float16: 51 MB for 50,000 rows of width 512. Of each training image it has one
view. Interrupt at will: the same command goes on after the last whole shard; OUT appears when it is whole.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``ood embed``, for ``command``."""
    add = parser.add_argument
    add("--profile", default="glyphs", help="name in notebooks/profiles or path (default: glyphs)")
    add("-p", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change profile values")
    add("--out", type=Path, help="folder to write (default: outputs/<profile>-embeddings)")
    add("--run", default="", help="run whose cache of embeddings is shared (default: the profile's name)")


def command(options: argparse.Namespace) -> int:
    """``ood embed``; returns 0, raises UserError."""
    profile = load_profile(options.profile, parse_changes(options.p))
    data.require(profile, options.profile)
    run = store.run_name(options.run, options.profile)
    out = (options.out or store.OUTPUTS / f"{run}-embeddings").expanduser().resolve()
    store.run_name(out.name, "")  # its profile is called so, and runs are called as their profile
    write(profile, out, store.OUTPUTS / run / "embeddings", Path(options.profile).stem)
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    print(f"{out}: {size:.1f} MB; on any machine: ood run --profile {out / out.name}.yaml")
    return 0
