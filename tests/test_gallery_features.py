"""Feature- and weight-level adaptations: limiting cases, closed forms, float64 by hand, scikit-learn."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from scipy.special import erf, softmax
from sklearn.linear_model import LogisticRegression
from tiny import one_thread  # noqa: F401 - autouse
from torch import Tensor

from ood_utils import methods, models, objectives
from ood_utils.config import PROFILES, load_profile
from ood_utils.errors import UserError
from ood_utils.gallery import Evidence, State, Task, every, find, heads
from ood_utils.gallery.adaptations import croft, kr_nft, residual_adapters, sface
from ood_utils.objectives import cm3, cm3_fused

RECIPES = {
    "FLYP": "clip",
    "CMA": "cma",
    "m2-Mix": "m2mix",
    "CMA, class-aware": "cma",
    "CMA + centroid uniformity": "cma_cu",
    "WiSE-FT": "clip",
    "CMA, interpolated": "cma",
    "CM3": "cm3",
    "CM3, fused": "cm3_fused",
}
ON_ROWS, OF_TOWERS = ("LP", "Residual adapters", "CRoFT", "KR-NFT"), ("FFT", "LP-FT", "SFace")


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def evidence(d: int = 8, classes: int = 5, each: int = 12) -> Evidence:
    """Images in noisy clusters near their class texts, with negatives and a corpus."""
    texts, labels = unit(classes, d), np.arange(classes * each) % classes
    train = texts[labels] + 1.2 * unit(len(labels), d, seed=1)
    train /= np.linalg.norm(train, axis=1, keepdims=True)
    rest = {"train": train, "train_labels": labels, "corpus_text": unit(50, d, seed=3)}
    return Evidence(train[:0], texts, unit(40, d, seed=2), 0.05, encode=lambda t: unit(len(t), d), **rest)


def task(known: Evidence, name: str, **changes: Any) -> Task:
    hyper = find("adaptations", name).world | {"steps": 0} | changes
    return Task(
        known, hyper, 0, SimpleNamespace(), None, SimpleNamespace(data="embeddings", device="cpu"), Path()
    )  # type: ignore[arg-type]


def adapted(known: Evidence, name: str, **changes: Any) -> Evidence:
    """The evidence that an adaptation makes of ``known``; by default before its first step."""
    chosen = find("adaptations", name)
    return chosen.apply(known.change(), chosen.fit(task(known, name, **changes)))


# --- recipes ---


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(("mode", "lane"), [("world", "glyphs"), ("paper", "imagenet")])
def test_recipes_are_recipes(name: str, mode: str, lane: str) -> None:
    chosen = find("adaptations", name)
    recipe = load_profile(PROFILES / f"{lane}.yaml").recipe(**chosen.recipe | getattr(chosen, mode))
    assert recipe.objective == RECIPES[name] and chosen.fit is None
    assert (recipe.wise < 1) == (name in ("WiSE-FT", "CMA, interpolated"))
    assert recipe.class_aware == (name == "CMA, class-aware")
    assert (recipe.lr, recipe.batch) == ((1e-5, 512) if mode == "paper" else (2e-4, 128))


def test_all_of_them_are_found_with_notes() -> None:
    found = every("adaptations")
    names = {*RECIPES, *ON_ROWS, *OF_TOWERS}
    assert names <= set(found)
    assert all(found[name].note and found[name].source and found[name].scores for name in names)


# --- objectives ---


def pairs(count: int = 7, width: int = 5) -> list[Tensor]:
    """Image and text leaves of unit rows in float64, and a scale."""
    made = [torch.from_numpy(unit(count, width, seed=seed)).double() for seed in (5, 6)]
    leaves = [F.normalize(rows, dim=1).requires_grad_() for rows in made]
    return [*leaves, torch.tensor(20.0, dtype=torch.float64, requires_grad=True)]


LABELS = torch.tensor([0, 1, 0, 2, 3, 3, 1])
NEW = ("cma_cu", "cm3", "cm3_fused")


@pytest.mark.parametrize("name", NEW)
def test_lam_0_is_flyp(name: str) -> None:
    leaves = pairs()
    ours = objectives.parts(name, *leaves, lam=0.0, seed=1, step=2).loss
    flyp = objectives.parts("clip", *leaves).loss
    torch.testing.assert_close(
        torch.autograd.grad(ours, leaves, retain_graph=True), torch.autograd.grad(flyp, leaves)
    )
    assert ours.item() == pytest.approx(flyp.item(), abs=1e-12)


@pytest.mark.parametrize("name", NEW)
def test_the_order_of_a_batch_says_nothing(name: str) -> None:
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    image, text, scale = pairs()
    options = {"lam": 0.4, "seed": 1, "step": 2}
    one = objectives.parts(name, image, text, scale, **options).loss
    other = objectives.parts(name, image[order], text[order], scale, **options).loss
    assert one.item() == pytest.approx(other.item(), rel=1e-12)


def test_class_aware_is_plain_where_all_labels_differ() -> None:
    leaves = pairs()
    plain, aware = (
        objectives.parts("cma", *leaves, lam=0.1, labels=of).loss for of in (None, torch.arange(7))
    )
    torch.testing.assert_close(plain, aware, rtol=1e-12, atol=1e-12)


def test_centroid_uniformity_by_hand() -> None:
    image, text, scale = pairs()
    total = 0.0
    for i in range(7):
        for j in range(7):
            if i != j:
                apart = (image[i] + text[i]) / 2 - (image[j] + text[j]) / 2
                total += math.exp(-2 * float((apart @ apart).detach()))
    cma = objectives.parts("cma", image, text, scale, lam=0.3).loss
    found = objectives.parts("cma_cu", image, text, scale, lam=0.3).loss
    assert (found - cma).item() == pytest.approx(0.3 * 20 / 2 * math.log(total / 7), rel=1e-10)


def test_calibrated_uniformity_at_its_ends_and_by_hand() -> None:
    rows = pairs()[0].detach()
    apart = torch.pdist(rows).square()
    plain = (-2 * apart).exp().mean().log()
    ones = torch.ones(7, 7, dtype=torch.float64)
    torch.testing.assert_close(cm3.calibrated_uniformity(rows, ones), plain, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(cm3.calibrated_uniformity(rows, 0 * ones), plain + 4, rtol=1e-10, atol=1e-10)
    like = torch.from_numpy(np.random.default_rng(0).uniform(size=(7, 7)))
    total = [
        math.exp(-2 * (float((rows[i] - rows[j]).square().sum()) - 2 + 2 * like[i, j]))
        for i in range(7)
        for j in range(i + 1, 7)
    ]
    found = cm3.calibrated_uniformity(rows, like).item()
    assert found == pytest.approx(math.log(sum(total) / len(total)), rel=1e-10)


def test_cm3_repels_images_of_like_texts_less_and_does_not_train_the_likeness() -> None:
    """The gradient by a pair's cosine is its softmax share of exp(2 t (cos - s)): less for a larger s."""
    rows = F.normalize(torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]), dim=1).requires_grad_()
    like = torch.tensor([[1.0, 0.9, 0.1], [0.9, 1.0, 0.1], [0.1, 0.1, 1.0]])
    (found,) = torch.autograd.grad(cm3.calibrated_uniformity(rows, like), rows)
    assert found[0, 1] < found[0, 2]  # towards the one it is like, and towards the other
    image, text, scale = pairs()
    own = objectives.parts("cm3", image, text, scale, lam=1.0).loss
    text_part = (image - text).square().sum(1).mean() + cm3.GAMMA / 2 * cm3.calibrated_uniformity(
        text, torch.ones(7, 7)
    )
    expected = torch.autograd.grad(10 * text_part, text)[0]
    torch.testing.assert_close(torch.autograd.grad(own, text)[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0])
def test_fused_items_lie_on_the_arcs(mix: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cm3_fused, "draw_mix", lambda seed, step: mix)
    image, text, scale = (leaf.detach() for leaf in pairs())
    items = {0.0: text, 0.5: F.normalize(image + text, dim=1), 1.0: image}[mix]
    fused, plain = (objectives.parts(name, image, text, scale, lam=1.0).loss for name in ("cm3_fused", "cm3"))
    like = (text @ text.T).clamp(0, 1)
    change = cm3.calibrated_uniformity(items, like) - cm3.calibrated_uniformity(image, like)
    assert (fused - plain).item() == pytest.approx(10 * cm3.GAMMA / 2 * change.item(), abs=1e-9)


def test_sface_gradient_is_that_of_gated_pulls_and_pushes() -> None:
    image, text, _ = pairs()
    a, b = 1.2, 1.7
    found = sface.sface(image @ text.T, LABELS, a, b)
    (gradient,) = torch.autograd.grad(found, image)
    angles = np.arccos((image @ text.T).detach().numpy())
    assert (angles < b).any() and (angles > b).any()
    expected = np.zeros((7, 5))
    for k in range(7):
        for c in range(7):
            pull, push = 1 / (1 + np.exp(-80 * (angles[k, c] - a))), 1 / (1 + np.exp(80 * (angles[k, c] - b)))
            expected[k] += (-pull if c == LABELS[k] else push) * text[c].detach().numpy() / 7
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-9, atol=1e-9)


def test_sface_measures_its_angles_before_training(tmp_path: Path) -> None:
    asked, _ = tower_task(tmp_path, "SFace")
    state, known = find("adaptations", "SFace").fit(asked), asked.known
    cosines = known.train.astype(np.float64) @ known.class_text.T
    own = np.arange(4) == known.train_labels[:, None]
    for name, of in (("matched", cosines[own]), ("mismatched", cosines[~own])):
        # of the angle's quantile q is the cosine's 1 - q
        assert math.cos(state[name]) == pytest.approx(np.quantile(of, 1 - asked.hyper[name]), abs=0.02)


def test_cm3_refuses_a_weight_beyond_1() -> None:
    with pytest.raises(UserError, match="lam is 2; give 0"):
        objectives.parts("cm3", *pairs(), lam=2)


# --- before the first step all is zero-shot ---


@pytest.mark.parametrize("name", ON_ROWS)
def test_before_the_first_step_it_is_the_start(name: str) -> None:
    known, images = evidence(), unit(30, 8, seed=9)
    start, now = known.of(images), adapted(known, name).of(images)
    np.testing.assert_allclose(now.cosines, start.cosines, atol=1e-6)
    for score in ("MSP", "Energy") if name == "LP" else ("Energy", "NegLabel"):
        method = methods.find(score)
        np.testing.assert_allclose(method(now), method(start), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ON_ROWS)
def test_training_classifies_better_and_is_a_function_of_the_seed(name: str) -> None:
    known = evidence()
    options = {"steps": 60, "batch": 30, "lr": 0.01} | ({"l2": 0.1, "shots": 12} if name == "KR-NFT" else {})

    def likelihood(of: Evidence) -> float:
        p = softmax(of.of(known.train).cosines / known.temperature, axis=1)
        return np.log(p[np.arange(len(p)), known.train_labels]).mean()

    assert likelihood(adapted(known, name, **options)) > likelihood(known) + 0.05
    chosen = find("adaptations", name)
    first, again = (chosen.fit(task(known, name, **options)) for _ in range(2))
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert all(isinstance(part, np.ndarray | np.generic) for part in first.values())
    assert int(first["parameters"]) == sum(part.size for part in first.values() if part.ndim)


@pytest.mark.parametrize("name", (*ON_ROWS, *OF_TOWERS))
def test_the_papers_values_can_be_taken(name: str, tmp_path: Path) -> None:
    chosen = find("adaptations", name)
    hyper = chosen.paper | {"steps": 2, "warmup": 0}
    if "probe" in hyper:
        hyper["probe"] = hyper["probe"] | {"steps": 2}
    asked = tower_task(tmp_path, name)[0] if name in OF_TOWERS else task(evidence(), name)
    state = chosen.fit(replace(asked, hyper=hyper))
    assert all(np.isfinite(part).all() for part in state.values())
    assert set(chosen.world) - {"optimiser", "warmup", "weight_decay"} <= set(chosen.paper)


# --- heads ---


def test_a_probe_is_scikit_learns() -> None:
    """Trained to the end without decay it is the maximum-likelihood softmax regression, which is unique."""
    known = evidence(d=4, classes=3, each=40)
    known = known.change(temperature=0.5)
    options = {"steps": 1500, "batch": 120, "lr": 0.03, "weight_decay": 0.0, "warmup": 0}
    found = adapted(known, "LP", **options).of(known.train)
    theirs = LogisticRegression(C=np.inf, max_iter=2000, tol=1e-9).fit(known.train, known.train_labels)
    np.testing.assert_allclose(
        softmax(found.cosines / 0.5, axis=1), theirs.predict_proba(known.train), atol=5e-3
    )
    assert np.abs(theirs.predict_proba(known.train)).max(1).min() < 0.9  # no separable classes


def test_a_head_has_no_negatives() -> None:
    now = adapted(evidence(), "LP")
    np.testing.assert_allclose(np.linalg.norm(now.class_text, axis=1), 1, rtol=1e-6)
    with pytest.raises(UserError, match="NegLabel needs negative_text"):
        methods.find("NegLabel")(now.of(unit(3, 8)))


def tower_task(folder: Path, name: str, **changes: Any) -> tuple[Task, torch.nn.Module]:
    """A task with the tiny CLIP, its images and their rows."""
    model, train = tiny.model(), tiny.images(24, 4)
    rows, labels = zip(*(train.dataset[key] for key in range(24)), strict=True)
    with torch.no_grad():
        kept = F.normalize(model.encode_image(torch.stack(rows)), dim=1).numpy()
    known = Evidence(kept[:0], unit(4, 16), unit(9, 16), 0.1, train=kept, train_labels=np.array(labels))
    profile = SimpleNamespace(data="glyphs", device="cpu", loaders=lambda: 0)
    network, study = SimpleNamespace(parts=(model, None, None), name="tiny"), SimpleNamespace(train=train)
    hyper = find("adaptations", name).world | {"steps": 0, "batch": 8, "lr": 1e-3, "warmup": 0} | changes
    return Task(known, hyper, 0, network, study, profile, folder), model  # type: ignore[arg-type]


def written(folder: Path, model: torch.nn.Module) -> torch.nn.Module:
    from safetensors.torch import load_file

    other = copy.deepcopy(model)
    other.load_state_dict(load_file(folder / "model.safetensors"))
    return other


@pytest.mark.parametrize("name", OF_TOWERS)
def test_tuning_a_tower_starts_at_zero_shot_and_leaves_the_texts(name: str, tmp_path: Path) -> None:
    none = {"probe": {"steps": 0, "batch": 8, "lr": 0.01}} if name == "LP-FT" else {}
    asked, model = tower_task(tmp_path, name, **none)
    before, chosen = models.weights_hash(model), find("adaptations", name)
    state = chosen.fit(asked)
    assert models.weights_hash(written(tmp_path, model)) == before
    np.testing.assert_array_equal(state.get("weight", asked.known.class_text), asked.known.class_text)
    images = unit(6, 16)
    now = chosen.apply(asked.known.change(), state).of(images)
    np.testing.assert_allclose(now.cosines, asked.known.of(images).cosines, atol=1e-6)
    asked = replace(asked, hyper=asked.hyper | {"steps": 3})
    state, tuned = chosen.fit(asked), written(tmp_path, model).state_dict()
    start = model.state_dict()
    assert models.weights_hash(model) == before  # the network is shared, a copy is trained
    moved = {key for key in start if not torch.equal(start[key], tuned[key])}
    assert moved and all(key.startswith("visual.") for key in moved)
    assert not any("running" in key for key in moved)
    visual = sum(part.numel() for part in model.visual.parameters())
    head = 0 if name == "SFace" else 4 * 16 + 4
    assert int(state["parameters"]) == visual + head


def test_a_tower_is_tuned_by_the_gradient_of_its_cross_entropy(tmp_path: Path) -> None:
    """One step of plain AdamW from zero moves each weight by the rate against its gradient's sign."""
    asked, model = tower_task(tmp_path, "FFT", steps=1, batch=24, lr=1e-3, weight_decay=0.0)
    find("adaptations", "FFT").fit(asked)
    images = torch.stack([asked.study.train.dataset[key][0] for key in range(24)])
    texts, labels = torch.from_numpy(asked.known.class_text), torch.from_numpy(asked.known.train_labels)
    cosines = F.normalize(model.encode_image(images), dim=1) @ texts.T
    weight = model.visual.conv1.weight
    (gradient,) = torch.autograd.grad(F.cross_entropy(cosines / 0.1, labels), weight)
    step = written(tmp_path, model).visual.conv1.weight - weight
    clear = gradient.abs() > 1e-5
    assert clear.any()
    torch.testing.assert_close(step[clear], -1e-3 * gradient[clear].sign(), rtol=0.02, atol=1e-6)


def test_lp_ft_without_steps_of_the_tower_is_the_probe(tmp_path: Path) -> None:
    probe = {"steps": 20, "batch": 8, "lr": 0.01}
    asked, _ = tower_task(tmp_path, "LP-FT", probe=probe)
    head = heads.start(asked.known)
    heads.probe(asked, head, **probe)
    np.testing.assert_array_equal(
        find("adaptations", "LP-FT").fit(asked)["weight"], heads.kept(head)["weight"]
    )


@pytest.mark.parametrize("name", OF_TOWERS)
def test_given_embeddings_have_no_tower_to_tune(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} needs a model to train"):
        find("adaptations", name).fit(task(evidence(), name))


# --- maps on kept rows ---


def test_residual_adapters_move_everything_by_their_formula() -> None:
    known = evidence()
    state = find("adaptations", "Residual adapters").fit(task(known, "Residual adapters", steps=5, lr=0.05))
    now = residual_adapters.apply(known.change(), state)

    def by_hand(rows: np.ndarray, side: str) -> np.ndarray:
        rows, part = rows.astype(np.float64), {k: v.astype(np.float64) for k, v in state.items()}
        centred = rows - rows.mean(-1, keepdims=True)
        x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        x = x * part[f"{side}.0.weight"] + part[f"{side}.0.bias"]
        x = x @ part[f"{side}.1.weight"].T + part[f"{side}.1.bias"]
        x = x * (1 + erf(x / math.sqrt(2))) / 2
        found = rows + x @ part[f"{side}.3.weight"].T + part[f"{side}.3.bias"]
        return found / np.linalg.norm(found, axis=-1, keepdims=True)

    images, patches = unit(6, 8, seed=4), unit(6, 3, 8, seed=5)
    seen = now.of(images, patches)
    assert np.abs(seen.images - images).max() > 0.01
    for found, given, side in (
        (seen.images, images, "image"),
        (seen.patches, patches, "image"),
        (now.train, known.train, "image"),
        (now.class_text, known.class_text, "text"),
        (now.negative_text, known.negative_text, "text"),
        (now.corpus_text, known.corpus_text, "text"),
        (now.encode(["a", "b"]), known.encode(["a", "b"]), "text"),
    ):
        np.testing.assert_allclose(found, by_hand(given, side), atol=2e-6)


def croft_parts() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    rows, texts = (F.normalize(torch.randn(n, 6, dtype=torch.float64), dim=1) for n in (4, 5))
    return rows, (torch.eye(6) + 0.3 * torch.randn(6, 6)).double().requires_grad_(), texts


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_crofts_energy_gradient_is_autograds(share: float) -> None:
    rows, matrix, texts = croft_parts()
    found = croft.steepness(rows, matrix, texts, share, 0.07)
    for row, value in zip(rows, found, strict=True):
        cosines = croft.moved(matrix, row, share)[0] @ texts.T
        energy = -0.07 * (cosines / 0.07).logsumexp(0)
        (gradient,) = torch.autograd.grad(energy, matrix)
        assert gradient.square().sum().item() == pytest.approx(value.item(), rel=1e-9)
    torch.autograd.gradcheck(lambda m: croft.steepness(rows, m, texts, share, 0.5), matrix)


def test_croft_flattens_the_energy() -> None:
    known = evidence()
    rows, texts = torch.from_numpy(known.train), torch.from_numpy(known.class_text)

    def steep(l2: float) -> float:
        options = {"steps": 40, "batch": 60, "lr": 0.01, "share": 0.5, "l1": 0.0}
        state = find("adaptations", "CRoFT").fit(task(known, "CRoFT", l2=l2, **options))
        image, text = (torch.from_numpy(state[name]) for name in ("image", "text"))
        texts_now = croft.moved(text, texts, 0.5)[0]
        return croft.steepness(rows, image, texts_now, 0.5, 0.05).mean().item()

    assert steep(10.0) < 0.8 * steep(0.0)


def test_crofts_worst_shift_of_length_0_is_no_shift() -> None:
    """Then the loss is twice the cross-entropy, and AdamW does not see the factor."""

    def trained(**options: float) -> np.ndarray:
        asked = task(evidence(), "CRoFT", **{"steps": 10, "batch": 60, "lr": 0.01, "l2": 0.0} | options)
        return find("adaptations", "CRoFT").fit(asked)["image"]

    plain = trained(l1=0.0, reach=0.5)
    np.testing.assert_allclose(trained(l1=1.0, reach=0.0), plain, atol=1e-3)
    assert np.abs(trained(l1=1.0, reach=0.5) - plain).max() > 0.01


def random_change(d: int = 8) -> kr_nft.Affine:
    torch.manual_seed(1)
    change = kr_nft.Affine(d, 4).double()
    for part in change.parameters():
        part.data += 0.3 * torch.randn_like(part)
    return change.requires_grad_(False)


def changed(change: kr_nft.Affine, image: Tensor, texts: Tensor) -> Tensor:
    """t' of one image, as it is written: (K, d)."""
    scale = change.base[0] + change.by_image[0](image)
    shift = change.base[1] + change.by_image[1](image)
    return F.normalize(scale * texts + shift, dim=1)


def test_kr_nfts_cosines_are_those_with_each_images_own_texts() -> None:
    change = random_change()
    images, texts = (torch.from_numpy(unit(n, 8, seed=n)).double() for n in (6, 9))
    found, kept = change(images, texts)
    for i, image in enumerate(images):
        own = changed(change, image, texts)
        torch.testing.assert_close(found[i], own @ image, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(kept[i], (own * texts).sum(1), rtol=1e-6, atol=1e-6)


def test_kr_nfts_losses_by_hand() -> None:
    change = torch.nn.ModuleList([random_change(), random_change()])
    rows, outside, ours, theirs = (torch.from_numpy(unit(n, 8, seed=n)).double() for n in (4, 3, 5, 23))
    labels, tau = torch.tensor([0, 4, 2, 2]), 0.2
    found = kr_nft.losses(rows, labels, outside, [ours, theirs], change, tau)
    positive, negative, same = [], [], []
    for images, of in ((rows, positive), (outside, negative)):
        for i, image in enumerate(images):
            inside, others = (changed(c, image, t) for c, t in zip(change, (ours, theirs), strict=True))
            for group in range(10):  # 23 negatives: two a group, three left over
                p = torch.cat([inside, others[2 * group : 2 * group + 2]]) @ image / tau
                mass = p.softmax(0)
                of.append(-mass[labels[i]].log() if of is positive else mass[:5].sum().log())
            if of is positive:
                same += [*(inside * ours).sum(1), *(others * theirs).sum(1)]
    expected = [torch.stack(positive).mean(), torch.stack(negative).mean(), 1 - torch.stack(same).mean()]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-6, atol=1e-6)


def test_kr_nfts_pseudo_negatives_lie_between_classes_and_lose_id_mass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known, seen, real = evidence(), [], kr_nft.losses

    def noted(rows: Tensor, labels: Tensor, outside: Tensor, *rest: Any) -> Any:
        found = real(rows, labels, outside, *rest)
        seen.append((rows, labels, outside, found[1].item()))
        return found

    monkeypatch.setattr(kr_nft, "losses", noted)
    options = {"steps": 30, "batch": 60, "lr": 0.01, "shots": 12, "l2": 0.0}
    mass = []
    for l1 in (0.0, 3.0):
        find("adaptations", "KR-NFT").fit(task(known, "KR-NFT", l1=l1, **options))
        mass.append(seen[-1][3])
    assert mass[1] < mass[0] - 0.5
    for rows, labels, outside, _ in seen[:3]:
        for row, label, point in zip(rows, labels, outside, strict=True):
            middles = F.normalize(row + torch.from_numpy(known.train), dim=1)
            partner = int((middles @ point).argmax())
            assert middles[partner] @ point > 1 - 1e-5 and known.train_labels[partner] != label


def test_kr_nft_keeps_what_it_knows_where_that_weighs_enough() -> None:
    known, images = evidence(), unit(20, 8, seed=9)
    options = {"steps": 30, "batch": 30, "lr": 0.01, "shots": 12}

    def away(l2: float) -> float:
        now = adapted(known, "KR-NFT", l2=l2, **options).of(images)
        return np.abs(now.cosines - known.of(images).cosines).mean()

    assert away(1e4) < 0.5 * away(0.0)


def test_states_survive_the_disk(tmp_path: Path) -> None:
    from safetensors.numpy import load, save

    known, images = evidence(), unit(5, 8, seed=9)
    for name in ON_ROWS:
        chosen = find("adaptations", name)
        state: State = chosen.fit(task(known, name, steps=3))
        again = load(save({key: np.asarray(part) for key, part in state.items()}))
        one, other = (chosen.apply(known.change(), of).of(images).cosines for of in (state, again))
        np.testing.assert_array_equal(one, other)
