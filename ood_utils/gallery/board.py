"""The gallery under one protocol: the same images, negatives, seeds and intervals for every model and score.

A *model* is a start ("zero-shot", "CMA") and what an adaptation made of it; a *row* is a model read by a
score. Both are kept in ``<run>/gallery`` by their content (the method's own code, hyper-parameters, seed,
start, images), so that a new method runs alone, and one that fails leaves the others standing.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch.utils.data import Subset

from .. import data, embeddings, files, geometry, methods, metrics, models, sweep
from ..config import Profile
from ..data import Study
from ..data.study import digest
from ..embeddings import EmbeddedSet, StudyEmbeddings
from ..errors import UserError
from ..leaderboard import ScoreBook
from ..methods import Method
from ..negatives import NegativeList
from . import Adaptation, Evidence, Kind, Task, every, find, modules
from .stream import CONDITIONS, Streamed, simulate

ZERO_SHOT = "zero-shot"
IN_FULL = (ZERO_SHOT, "FLYP", "CMA")  # starts that every score reads; other models: the core's and their own
COMBINED = (("CMA", "KR-NFT"),)  # (start, adaptation) beside those of the zero-shot model
PLAN = ["model", "start", "adaptation", "seed"]
STREAMED = (ZERO_SHOT, "CMA")  # models that adaptive scores start from
PLAIN = CONDITIONS[0]  # balanced and shuffled
BESIDE = ("NegLabel",)  # static scores shown on the same streams
PATCHED = 1000  # images whose patches are held in memory at a time: 400 MB of a ViT-B/16
TIMED = 512  # images on which a score is timed


@dataclass(frozen=True)
class Model:
    """One model of the gallery, ready to be scored: its evidence without images, and its image sets' rows.

    ``facts``: start, adaptation, data, seconds to adapt, trainable parameters; ``key``: hash of all of it.
    """

    name: str
    seed: int
    known: Evidence
    embedded: StudyEmbeddings
    patches: Callable[[str, slice], np.ndarray]
    facts: dict[str, Any]
    key: str
    folder: Path

    def of(self, name: str, part: slice = slice(None), patched: bool = False) -> Evidence:
        """Evidence with the images of one set, or with some of them."""
        return self.known.of(self.embedded[name].rows[part], self.patches(name, part) if patched else None)

    def to(self, method: Method, name: str, part: slice = slice(None)) -> Evidence:
        """The same, only what a method says it needs."""
        return self.of(name, part, "patches" in method.needs).only(method.needs)

    def read(self, method: Method, name: str) -> np.ndarray:
        """A method's scores (n,) of one set; with patches ``PATCHED`` images at a time.

        UserError where they are not one finite number for each image.
        """
        count = len(self.embedded[name])
        if "patches" in method.needs:
            starts = range(0, count, PATCHED)
            made = np.concatenate([method(self.to(method, name, slice(k, k + PATCHED))) for k in starts])
        else:
            made = np.asarray(method(self.to(method, name)))
        if made.shape != (count,) or made.dtype.kind not in "fiu":
            given = f"{made.dtype} of shape {made.shape} for the {count} images of {name}"
            raise UserError(f"{method.name} gave {given}; it has to give one number for each")
        if not np.isfinite(made).all():
            raise UserError(f"{method.name} gave scores of {name} that are not finite")
        return made


class Stream(NamedTuple):
    """One test stream, scored: which, and its scores."""

    model: str
    score: str
    order: str
    ratio: str
    set: str
    seed: int
    found: Streamed


@dataclass
class Gallery:
    """The gallery of one study in a run's folder; ``listed``: the negative labels that all share.

    ``failed``: (model, seed, score or "") -> why a row is missing; ``tuned``: (adaptation, seed) -> folder of
    its fine-tuning, notebook 02's own where it is the same.
    """

    folder: Path
    study: Study
    profile: Profile
    listed: NegativeList
    failed: dict[tuple[str, int, str], str] = field(default_factory=dict)
    tuned: dict[tuple[str, int], Path] = field(default_factory=dict)

    # --- models ---

    def plan(self, adaptations: Iterable[str] | None = None) -> pd.DataFrame:
        """The models: columns model, start, adaptation ("" for none), seed; by default those of the profile.

        UserError for unknown names.
        """
        files_of = {Path(file.__file__).stem: name for name, file in modules("adaptations").items()}
        chosen = [files_of[stem] for stem in self.profile.gallery_models] or list(files_of.values())
        names = chosen if adaptations is None else list(adaptations)
        wanted = [(name, ZERO_SHOT, name) for name in names if find("adaptations", name)]
        both = [(start, name) for start, name in COMBINED if {start, name} <= {*names}]
        wanted += [(f"{start} + {name}", start, name) for start, name in both]
        seeds = self.profile.seeds[: self.profile.gallery_seeds]
        rows = [(ZERO_SHOT, ZERO_SHOT, "", 0), *((*row, seed) for row in wanted for seed in seeds)]
        return pd.DataFrame(rows, columns=PLAN)

    def models(self, plan: pd.DataFrame) -> Iterator[Model]:
        """Each model of a plan, made where it is not kept, one at a time. What cannot be is in ``failed``."""
        for row in plan.itertuples(index=False):
            if (row.model, row.seed, "") not in self.failed:
                with self._standing(row.model, row.seed):
                    yield self._model(*row)

    def zero_shot(self) -> Model:
        """The start of all, as it is."""
        return self._read(ZERO_SHOT, 0, self.profile.pretrained, {})

    def _ahead(self, plan: pd.DataFrame) -> None:
        """Have children make models and rows, as many side by side as trainings; they are read afterwards."""
        count = min(self.profile.parallel, len(plan))
        rows = list(plan.itertuples(index=False, name=None))
        rows.sort(key=lambda row: row[0] not in STREAMED)  # what takes longest goes first
        if count < 2 or embeddings.resolve_device(self.profile.device) != "cpu":
            return
        task = self.folder, self.profile, self.listed, self.tuned
        bar = files.progress(total=len(rows), desc="the gallery's models")
        with sweep.children(count, cpu=True) as pool, suppress(BrokenProcessPool), bar:
            for done in as_completed([pool.submit(_make, *task, row) for row in rows]):
                self.failed |= done.result()
                bar.update()

    @contextmanager
    def _standing(self, model: str, seed: int, score: str = "") -> Iterator[None]:
        """A failure becomes the reason of a missing row; Ctrl-C does not."""
        try:
            yield
        except UserError as fault:
            self.failed[model, seed, score] = str(fault)
        except Exception as fault:  # a method of anybody's: its fault must not end the others
            self.failed[model, seed, score] = f"{type(fault).__name__}: {fault}"

    def _recipes(self, plan: pd.DataFrame) -> dict[tuple[str, int], Any]:
        """(adaptation, seed) -> recipe of what is fine-tuned as in notebook 02."""
        wanted = {(name, int(seed)) for name, seed in plan[["adaptation", "seed"]].to_numpy() if name}
        recipes = {}
        for name, seed in sorted(wanted):
            adaptation = find("adaptations", name)
            if adaptation.recipe is not None:
                changes = {"relation": 0.0} | adaptation.recipe | self._hyper(adaptation) | {"seed": seed}
                with self._standing(name, seed):
                    recipes[name, seed] = self.profile.recipe(**changes)
        return recipes

    def _hyper(self, adaptation: Adaptation) -> dict[str, Any]:
        chosen = getattr(adaptation, self.profile.gallery)
        if "steps" in chosen and adaptation.recipe is None:
            chosen = chosen | {"steps": max(2, round(chosen["steps"] * self.profile.gallery_steps))}
        return chosen

    def _fine_tune(self, plan: pd.DataFrame) -> None:
        recipes = self._recipes(plan)
        asked = {self._place(name, seed): recipe for (name, seed), recipe in recipes.items()}
        cards = self.folder.resolve().glob("checkpoints/*/card.json")
        places = {files.read_json(card).get("identity"): card.parent for card in cards}
        jobs = sweep.identified(asked, self.profile, self.study) if asked else []
        todo = {}
        for (name, seed), (job, key) in zip(recipes, jobs, strict=True):
            self.tuned[name, seed] = place = places.get(key, job.folder)
            todo[place] = job._replace(folder=place), key
        try:
            sweep.train(todo.values(), self.profile)
        except (UserError, RuntimeError):  # one by one, to know whose fault it is
            for name, seed in recipes:
                with self._standing(name, seed):
                    sweep.train([todo[self.tuned[name, seed]]], self.profile)

    def _place(self, name: str, seed: int) -> Path:
        return self.folder / "gallery" / f"{slug(name)}_seed{seed}"

    def _weights(self, name: str, seed: int) -> str:
        """Weights of a start: a tag, or a path below the run's folder."""
        if name == ZERO_SHOT:
            return self.profile.pretrained
        if (folder := self.tuned.get((name, seed))) is None or (name, seed, "") in self.failed:
            raise UserError(f"{name}, seed {seed}, was not trained: {self.failed.get((name, seed, ''), '')}")
        return str((folder / "model.safetensors").relative_to(self.folder.resolve()))

    def _model(self, name: str, start: str, adaptation: str, seed: int) -> Model:
        facts = {"start": start, "adaptation": adaptation, "data": "none", "seconds": 0.0, "parameters": 0}
        chosen = find("adaptations", adaptation) if adaptation else None
        tuned = chosen is not None and chosen.recipe is not None
        weights = self._weights(adaptation if tuned else start, seed)
        model = self._read(name, seed, weights, facts)
        if tuned:
            card = files.read_json(self.tuned[adaptation, seed] / "card.json")
            trained = sum(p.numel() for p in self._network(weights).parts[0].parameters())
            model.facts.update(data=chosen.data, seconds=card["seconds"], parameters=trained)
        elif chosen is not None:
            model = self._adapted(model, chosen, weights)
        inside, seen = model.embedded["id_test"], model.of("id_test")
        share, ends = metrics.share(seen.cosines.argmax(axis=1) == inside.labels, inside.together)
        model.facts.update(accuracy=share, accuracy_low=ends.low, accuracy_high=ends.high)
        matched = model.known.class_text[inside.labels]
        gap = geometry.centroid_gap(seen.images, matched) if model.known.look is None else float("nan")
        model.facts.update(centroid_gap=gap)
        return model

    def _network(self, weights: str) -> models.Network:
        path = self.folder / weights
        return models.Network(self.profile.model, str(path) if path.is_file() else weights)

    def _read(self, name: str, seed: int, weights: str, facts: dict[str, Any]) -> Model:
        """A model as its weights are."""
        network, profile = self._network(weights), self.profile
        whole = replace(self.study, ood={"train": self.study.train, **self.study.ood})
        embedded = embeddings.embed(whole, profile, self.folder / "embeddings", network=network)
        embedded = embedded.with_negatives(self.listed)
        train = embedded.sets.pop("train")
        known = Evidence(
            train.rows[:0], embedded.class_text, embedded.negative_text, profile.temperature, profile.groups,
            profile.beta, train=train.rows, train_labels=train.labels, class_names=embedded.class_names,
            corpus=embedded.corpus, corpus_text=embedded.corpus_text, encode=self._encoder(network),
            synonyms=embedded.synonyms, prompt=profile.negative_prompt,
        )  # fmt: skip
        rows = {of: digest(one.rows) for of, one in (*embedded.sets.items(), ("train", train))}
        texts = [digest(part) for part in (embedded.class_text, embedded.corpus_text)]
        read = [profile.temperature, profile.groups, profile.beta, self.listed.hash]
        key = files.hash_of([network.key, rows, texts, read])[:16]
        patches = self._patches(network, embedded.sets)
        return Model(name, seed, known, embedded, patches, facts, key, self._place(name, seed))

    def _encoder(self, network: models.Network) -> Callable[[list[str]], np.ndarray]:
        def encode(texts: list[str]) -> np.ndarray:
            model, _, tokenizer = network.parts
            device = embeddings.resolve_device(self.profile.device)
            return embeddings.encode_texts(model, tokenizer, texts, device=device)

        return encode

    def _patches(
        self, network: models.Network, sets: dict[str, EmbeddedSet]
    ) -> Callable[[str, slice], np.ndarray]:
        """Patches of some images of a set, computed anew at each call: those of all would fill the memory."""

        def of(name: str, part: slice) -> np.ndarray:
            from . import patches

            profile, images = self.profile, self.study.sets[name].dataset
            options = {"device": profile.device, "precision": profile.precision, "progress": False}
            options |= {"batch": profile.embed_batch, "workers": profile.loaders()}
            return patches.encode(
                network.parts[0], Subset(images, sets[name].index[part].tolist()), **options
            )

        return of

    def _adapted(self, model: Model, chosen: Adaptation, weights: str) -> Model:
        """What an adaptation makes of a model: learnt now, or as it is kept."""
        if lacking := chosen.lacks(model.known):
            raise UserError(f"{chosen.name} needs {lacking[0]}, which this model or lane lacks; leave it out")
        hyper, path = self._hyper(chosen), model.folder / "state.safetensors"
        made_of = [code_of("adaptations", chosen.name), hyper, model.seed, model.key, self.profile.prompt]
        key, written = files.hash_of(made_of)[:16], model.folder / "model.safetensors"
        state, facts = files.read_arrays(path, key)
        if state is None or facts["weights"] != _hash_if_there(written):
            written.unlink(missing_ok=True)
            own = self._network(weights)
            task = Task(model.known, hyper, model.seed, own, self.study, self.profile, model.folder)
            began = time.perf_counter()
            state = chosen.fit(task)
            facts = {"seconds": time.perf_counter() - began, "weights": _hash_if_there(written)}
            files.write_arrays(path, key, state, facts)
        if facts["weights"]:
            model = self._read(model.name, model.seed, str(written.relative_to(self.folder)), model.facts)
        trained = {"data": chosen.data, "parameters": int(state.get("parameters", 0))}
        model.facts.update(trained, seconds=facts["seconds"])
        return replace(model, known=chosen.apply(model.known.change(), state), key=key)

    # --- scores ---

    def wanted(self, model: Model) -> list[str]:
        """The scores by which a model is read: all for a start, else the core's and the adaptation's own."""
        if model.name in IN_FULL:
            return list(every("scores"))
        own = find("adaptations", model.facts["adaptation"]).scores
        return list(dict.fromkeys([*methods.every(), *own]))

    def score(self, model: Model, name: str) -> tuple[dict[str, np.ndarray], float] | None:
        """(set -> scores (n,), microseconds per image) of one row; None where it failed or lacks a need."""
        method, path = find("scores", name), model.folder / f"{slug(name)}.safetensors"
        key = files.hash_of([code_of("scores", name), model.key])[:16]
        found, facts = files.read_arrays(path, key)
        if found is None and (model.name, model.seed, name) not in self.failed:
            with self._standing(model.name, model.seed, name):
                first = slice(TIMED)
                method(model.to(method, "id_val", first))  # fits what it fits once
                again = model.to(method, "id_val", first)
                began = time.perf_counter()
                method(again)
                facts = {"microseconds": 1e6 * (time.perf_counter() - began) / len(again.images)}
                made = {x: model.read(method, x) for x in model.embedded.sets}
                files.write_arrays(path, key, made, facts)
                found = made
        return None if found is None else (found, facts["microseconds"])

    def stream(self, model: Model, name: str) -> list[Stream]:
        """What an adaptive score, or a static one beside it, gave on every test stream; [] where it failed.

        One stream a condition, OoD test set and seed: the model's own, or the zero-shot model's several; and
        the plain one for each validation set, to choose by.
        """
        kind: Kind = "adaptive" if name in every("adaptive") else "scores"
        method, path = find(kind, name), model.folder / f"{slug(name)}_streams.safetensors"
        known, test = model.known.only(method.needs), model.embedded.of_split()
        own = self.profile.seeds[: self.profile.gallery_seeds]
        seeds = own if model.name == ZERO_SHOT else [model.seed]
        key = files.hash_of([code_of(kind, name), model.key, seeds])[:16]
        asked = [(*how, of, seed) for how in CONDITIONS for of in test for seed in seeds]
        asked += [(*PLAIN, of, seed) for of in model.embedded.of_split("validation") for seed in seeds]
        names = ["|".join(map(str, one)) for one in asked]
        found, _ = files.read_arrays(path, key)
        if found is None and (model.name, model.seed, name) not in self.failed:
            with self._standing(model.name, model.seed, name):
                made = {}
                for label, (order, ratio, of, seed) in zip(names, asked, strict=True):
                    how = {"order": order, "ratio": ratio, "seed": seed}
                    inside = model.embedded["id_test" if of in test else "id_val"].rows
                    one = simulate(method, known, inside, model.embedded[of].rows, **how)
                    made |= {f"{label}|{part}": values for part, values in one._asdict().items()}
                files.write_arrays(path, key, made, {})
                found = made
        if found is None:
            return []
        parts = [Streamed(*(found[f"{label}|{part}"] for part in Streamed._fields)) for label in names]
        return [Stream(model.name, name, *one, part) for one, part in zip(asked, parts, strict=True)]

    def rows(self, model: Model) -> tuple[dict[str, tuple[dict[str, np.ndarray], float]], list[Stream]]:
        """A model read by its scores, name -> as ``score``, and on test streams where it starts them."""
        streamed = [*every("adaptive"), *BESIDE] if model.name in STREAMED else []
        streams = [one for name in streamed for one in self.stream(model, name)]
        found = {name: self.score(model, name) for name in self.wanted(model)}
        return {name: of for name, of in found.items() if of is not None}, streams

    def run(self, plan: pd.DataFrame | None = None) -> Board:
        """Every model of a plan, by default all, read by its scores; some on test streams too."""
        plan = self.plan() if plan is None else plan
        self._fine_tune(plan)
        self._ahead(plan)
        scores: dict[tuple[str, int, str], dict[str, np.ndarray]] = {}
        streams: list[Stream] = []
        facts, model = [], None
        for model in self.models(plan):
            found, own = self.rows(model)
            streams += own
            for name, (values, microseconds) in found.items():
                scores[model.name, model.seed, name] = values
                row = {"model": model.name, "seed": model.seed, "score": name, "microseconds": microseconds}
                facts.append(row | model.facts)
        if model is None or not scores:
            raise UserError(f"no row of the gallery could be made: {next(iter(self.failed.values()), '')}")
        return Board(scores, streams, pd.DataFrame(facts), model.embedded, self.profile.bootstrap)


_OWN: dict[tuple[Path, str], Gallery] = {}  # a child's


def _make(
    folder: Path, profile: Profile, listed: NegativeList, tuned: dict[tuple[str, int], Path], row: tuple
) -> dict[tuple[str, int, str], str]:
    """In a child: make a model of the plan and its rows, kept in the folder; returns what failed."""
    if (key := (folder, profile.key())) not in _OWN:
        _OWN[key] = Gallery(folder, data.load(profile), profile, listed)
    own = _OWN[key]
    own.tuned.update(tuned)
    own.failed.clear()
    for model in own.models(pd.DataFrame([row], columns=PLAN)):
        own.rows(model)
    return dict(own.failed)


@dataclass(frozen=True)
class Board:
    """The gallery's rows: scores of every image by (model, seed, score), and what each row cost."""

    scores: dict[tuple[str, int, str], dict[str, np.ndarray]]
    streams: list[Stream]
    facts: pd.DataFrame
    embedded: StudyEmbeddings
    draws: int

    def book(self, split: str = "test") -> ScoreBook:
        """The rows as the leaderboard's own book: of the test, or of the validation split for choices."""
        inside, sets = "id_test" if split == "test" else "id_val", self.embedded.of_split(split)
        if not sets:
            raise UserError(f"there are no OoD {split} sets; the gallery's rows cannot be compared on them")
        stacked = {x: np.stack([of[x] for of in self.scores.values()]) for x in (inside, *sets)}
        clusters = {x: self.embedded[x].together for x in stacked}
        groups = {x: one.group for x, one in sets.items()}
        own = clusters.pop(inside)
        return ScoreBook(list(self.scores), stacked.pop(inside), stacked, groups, self.draws, own, clusters)


def slug(name: str) -> str:
    """A name as part of a file name."""
    return re.sub(r"\W+", "_", name.lower()).strip("_")


def code_of(kind: Kind, name: str) -> list[str]:
    """Hashes of a method's file and of the gallery's other files that it uses, however it came by them."""
    found: dict[str, str] = {}
    queue = [modules(kind)[name]]
    while queue:
        file = queue.pop()
        found[file.__name__] = files.file_hash(file.__file__)
        origins = {getattr(x, "__module__", None) or getattr(x, "__name__", "") for x in vars(file).values()}
        used = {x for x in origins if str(x).startswith(f"{__package__}.")} - found.keys()
        queue += [sys.modules[origin] for origin in sorted(used)]
    return [found[origin] for origin in sorted(found)]


def _hash_if_there(path: Path) -> str:
    return files.file_hash(path) if path.is_file() else ""
