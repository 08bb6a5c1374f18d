"""Prompt-level adaptations: learnt contexts, image regions, and every loss against a float64 brute force."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from scipy.special import log_softmax, logsumexp, softmax
from tiny import CONTEXT, images, model, one_thread, tokenizer  # noqa: F401 (one_thread is a fixture)

from ood_utils import embeddings, gallery, models, residual
from ood_utils.config import Profile
from ood_utils.errors import UserError
from ood_utils.gallery import Evidence, State, Task, patches
from ood_utils.gallery.adaptations import clipn, coop, fa, locoop, negprompt, ogen, sct
from ood_utils.gallery.prompts import Prompts, Shots, frozen

NAMES = ["b", "cd", "efg", "xy", "the h", "q"]
MINE = ["CoOp", "FA", "LoCoOp", "SCT", "NegPrompt", "CLIPN", "OGEN"]
SHORT = {"steps": 3, "batch": 8, "warmup": 0, "apart": 1, "negative_context": 2}


def unit(count: int, seed: int, d: int = 16) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def tower() -> torch.nn.Module:
    return model("resnet")


def task(tower: torch.nn.Module, hyper: dict, seed: int = 0, **profile: object) -> Task:
    """22 images of 6 classes, which an untrained CLIP embeds."""
    train = images(22, 6)
    known = Evidence(
        images=np.empty((0, 16), np.float32),
        class_text=embeddings.encode_texts(tower, tokenizer, [f"a {name}" for name in NAMES]),
        negative_text=unit(9, 5),
        train=embeddings.encode_images(tower, train.dataset, progress=False),
        train_labels=train.labels,
        class_names=NAMES,
    )
    texts = SimpleNamespace(class_texts=lambda prompt: [prompt.replace("{}", name) for name in NAMES])
    study = SimpleNamespace(train=train, **vars(texts))
    network = SimpleNamespace(parts=(tower, None, tokenizer))
    return Task(known, hyper, seed, network, study, Profile(device="cpu", **profile), Path())


def fitted(tower: torch.nn.Module, name: str, seed: int = 0, **hyper: object) -> State:
    found = gallery.find("adaptations", name)
    return found.fit(task(tower, found.world | SHORT | hyper, seed))


# --- learnt contexts ---


@pytest.mark.parametrize("kind", ["GlyphCLIP", "ViT-S-32-alt", "tiny"])
def test_the_hand_prompts_words_as_context_give_the_hand_prompts_embedding(kind: str) -> None:
    if kind == "tiny":
        tower, tokens, template = model(), tokenizer, "an {}"
    else:
        tower, _, tokens = models.load(kind, "builtin" if kind == "GlyphCLIP" else "random")
        template = "a {}" if kind == "GlyphCLIP" else "a photo of a {}."
    texts = [template.replace("{}", name) for name in NAMES]
    prompts = Prompts(tower, tokens, template, NAMES)
    with torch.no_grad():
        found = prompts.encode(prompts.start(0, 0))
    np.testing.assert_allclose(found, embeddings.encode_texts(tower, tokens, texts), atol=1e-5)


def test_grouping_and_cutting_change_nothing_and_rows_are_the_names_asked_for(tower) -> None:
    prompts = Prompts(tower, tokenizer, "a {}", NAMES * 20)  # more than one group
    context = prompts.start(3, seed=1)
    assert context.shape == (3, 16) and 0.01 < context.std() < 0.04
    with torch.no_grad():
        found = prompts.encode(context)
        for k in (0, 2, 4):
            row = tokenizer([NAMES[k]])[0]
            x = tower.token_embedding(row)
            x = torch.cat([x[:1], context, x[1:]])[:CONTEXT][None] + tower.positional_embedding
            x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask))
            alone = F.normalize(x[0, int(row.argmax()) + 3] @ tower.text_projection, dim=-1)
            np.testing.assert_allclose(found[k], alone, atol=1e-6)
        np.testing.assert_allclose(prompts.encode(context, torch.tensor([4, 1])), found[[4, 1]], atol=1e-6)


def test_the_gradient_goes_to_the_context_alone(tower) -> None:
    tower.ln_final.bias.requires_grad_(False)
    before = {name: p.requires_grad for name, p in tower.named_parameters()}
    prompts = Prompts(tower, tokenizer, "a {}", NAMES)
    context = prompts.start(0, 0).requires_grad_()
    with frozen(tower):
        prompts.encode(context)[:, 0].sum().backward()
    assert context.grad.abs().sum() > 0 and all(p.grad is None for p in tower.parameters())
    assert {name: p.requires_grad for name, p in tower.named_parameters()} == before
    tower.ln_final.bias.requires_grad_(True)


def test_what_cannot_be_learnt_is_refused_in_one_sentence(tower) -> None:
    with pytest.raises(UserError, match="has no word before its {}; set context"):
        Prompts(tower, tokenizer, "{} alone", NAMES).start(0, 0)
    with pytest.raises(UserError, match="context = 9 leaves no room for the class name 'the h'; lower it"):
        Prompts(tower, tokenizer, "a {}", NAMES).start(9, 0)
    real = open_clip.get_tokenizer("ViT-B-32")
    with pytest.raises(UserError, match="runs into the name; put a space"):
        Prompts(tower, real, "pre{}", ["view"])
    other = open_clip.CLIP(
        16,
        open_clip.CLIPVisionCfg(layers=1, width=16, head_width=8, patch_size=16, image_size=32),
        open_clip.CLIPTextCfg(CONTEXT, 64, 16, 2, 1, pool_type="last"),
    )
    for name in MINE:
        with pytest.raises(UserError, match=f"{name} needs a text tower as CLIP's.*'GlyphCLIP' is another"):
            fitted(other, name)
    given = residual.Residual(4, torch.zeros(1, 8), torch.zeros(1, dtype=torch.uint8))
    for name in MINE:
        found = gallery.find("adaptations", name)
        with pytest.raises(UserError, match=f"{name} needs a model to train; on given embeddings"):
            found.fit(task(tower, found.world, data="embeddings"))
    with pytest.raises(UserError, match="image tower is Map; leave out GL-MCM"):
        patches.encode(given, [])


# --- regions ---


def test_regions_of_a_vit_are_the_value_path_of_its_last_block() -> None:
    torch.manual_seed(0)
    visual = VisionTransformer(48, 16, width=32, layers=2, heads=4, mlp_ratio=4, output_dim=8).eval()
    pixels = torch.randn(5, 3, 48, 48)
    found = patches.encode(SimpleNamespace(visual=visual, **_moves(visual)), pairs(pixels), progress=False)
    with torch.no_grad():
        x = visual.transformer.resblocks[0](visual._embeds(pixels))
        last = visual.transformer.resblocks[1]
        weight, bias = last.attn.in_proj_weight[64:], last.attn.in_proj_bias[64:]
        x = x + last.attn.out_proj(last.ln_1(x) @ weight.T + bias)
        x = x + last.mlp(last.ln_2(x))
        wanted = F.normalize((visual.ln_post(x) @ visual.proj)[:, 1:], dim=-1)
    assert found.shape == (5, 9, 8) and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_regions_of_a_resnet_are_the_value_path_of_its_pool_at_each_position() -> None:
    torch.manual_seed(0)
    visual = ModifiedResNet((1, 1, 1, 1), 8, heads=2, image_size=64, width=4).eval()
    pixels = torch.randn(3, 3, 64, 64)
    found = patches.encode(SimpleNamespace(visual=visual, **_moves(visual)), pairs(pixels), progress=False)
    with torch.no_grad():
        maps, pool = visual.forward_intermediates(pixels, intermediates_only=True), visual.attnpool
        grid = maps["image_intermediates"][-1]
        for place in range(4):
            seen = grid[:, :, place // 2, place % 2] + pool.positional_embedding[1 + place]
            wanted = F.normalize(pool.c_proj(pool.v_proj(seen)), dim=-1)
            np.testing.assert_allclose(found[:, place], wanted, atol=1e-5)


def test_regions_where_the_map_is_one_position_are_overlapping_crops(tower) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    found = patches.encode(tower, pairs(pixels), progress=False)
    assert found.shape == (2, 9, 16)
    for place in range(9):
        y, x = 4 * (place // 3), 4 * (place % 3)
        crop = F.interpolate(pixels[:, :, y : y + 24, x : x + 24], size=32, mode="bilinear")
        with torch.no_grad():
            wanted = F.normalize(tower.encode_image(crop), dim=-1)
        np.testing.assert_allclose(found[:, place], wanted, atol=1e-5)


def test_regions_of_shots_are_those_images_own_and_read_once(tower) -> None:
    asked = task(tower, {})
    whole = patches.encode(tower, asked.study.train.dataset, progress=False)
    rows = np.array([2, 5, 11])
    found = patches.of_shots(asked, "LoCoOp", rows)
    np.testing.assert_allclose(found, whole[rows], atol=1e-5)
    assert patches.of_shots(asked, "SCT", rows.copy()) is found
    assert len(patches.of_shots(asked, "SCT", rows[:2])) == 2
    short = replace(asked, known=asked.known.change(train=asked.known.train[1:]))
    with pytest.raises(UserError, match="LoCoOp needs each training image's regions.* 1 are unreadable"):
        patches.of_shots(short, "LoCoOp", rows)


def pairs(pixels: torch.Tensor) -> list[tuple[torch.Tensor, int]]:
    return [(image, 0) for image in pixels]


def _moves(visual: torch.nn.Module) -> dict:
    return {"to": visual.to, "eval": visual.eval}


# --- what is alike in all ---


@pytest.mark.parametrize("name", MINE)
def test_a_state_follows_from_task_and_seed_and_the_tower_stays_as_it_was(tower, name: str) -> None:
    weights = models.weights_hash(tower)
    first, again, other = fitted(tower, name), fitted(tower, name), fitted(tower, name, seed=1)
    assert models.weights_hash(tower) == weights and all(p.requires_grad for p in tower.parameters())
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])
    found = gallery.find("adaptations", name)
    evidence = found.apply(task(tower, {}).known, first)
    learnt = [key for key in ("class_text", "negative_text", "no_text") if key in first]
    assert learnt
    for key in learnt:
        np.testing.assert_allclose(np.linalg.norm(getattr(evidence, key), axis=1), 1, atol=1e-5)
        assert np.abs(first[key] - other[key]).max() > 1e-6
    own = {"steps", "epochs", "weight_decay", "optimiser"}
    assert set(found.paper) - own == set(found.world) - own
    small = {"epochs": 1, "context": 2, "negative_context": 2, "apart": 1}
    paper = found.fit(task(tower, found.paper | small))
    assert all(np.isfinite(paper[key]).all() for key in paper)


def test_coop_learns_its_images(tower) -> None:
    started, ended = (fitted(tower, "CoOp", lr=0.01, steps=steps) for steps in (1, 60))
    shots = Shots(task(tower, coop.WORLD), "CoOp")
    loss, everything = coop.loss(shots), np.arange(len(shots.rows))
    before, after = (float(loss(shots.put(s["class_text"]), everything)) for s in (started, ended))
    assert after < before - 0.1


def test_limits_fa_without_force_and_locoop_without_lam_are_coop_sct_with_one_weight_is_locoop(tower) -> None:
    plain = fitted(tower, "CoOp")["class_text"]
    np.testing.assert_array_equal(fitted(tower, "FA", forced=0)["class_text"], plain)
    np.testing.assert_allclose(fitted(tower, "LoCoOp", lam=0)["class_text"], plain, atol=1e-5)
    assert np.abs(fitted(tower, "FA", forced=1)["class_text"] - plain).max() > 1e-3
    background = fitted(tower, "LoCoOp", top=0.5, lam=2.0)["class_text"]
    assert np.abs(background - plain).max() > 1e-3
    hyper = sct.ADAPTATION.world | SHORT | {"top": 0.5, "lam": 2.0}
    constant = locoop.fit(task(tower, hyper), "SCT", weigh=locoop.constant)["class_text"]
    np.testing.assert_array_equal(constant, background)


# --- losses against float64 ---


def shots(tower) -> tuple[Shots, np.ndarray, np.ndarray]:
    """Shots of a soft temperature, a batch, and class texts."""
    made = Shots(task(tower, coop.WORLD), "test")
    made.temperature = 0.2
    made.images = made.put(unit(len(made.rows), 1))
    return made, np.array([3, 0, 7, 12, 20]), unit(6, 2)


def test_forced_loss(tower) -> None:
    made, batch, text = shots(tower)
    rows, hand = made.images.numpy()[batch].astype(float), made.class_text.numpy().astype(float)
    ours, theirs = rows @ text.T / 0.2, rows @ hand.T / 0.2
    y = made.labels.numpy()[batch]
    total = np.exp(ours).sum(1) + 2.5 * np.exp(theirs).sum(1)
    wanted = -np.log(np.exp(ours[np.arange(5), y]) / total).mean()
    assert float(fa.loss(made, 2.5)(made.put(text), batch)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("weigh", [locoop.constant, sct.calibrated])
def test_background_loss(tower, weigh) -> None:
    made, batch, text = shots(tower)
    regions = unit(len(made.rows) * 4, 3).reshape(-1, 4, 16)
    found = locoop.loss(made, made.put(regions), 0.7, 0.5, weigh)(made.put(text), batch)
    ce, entropies = [], []
    for i in batch:
        y = int(made.labels[i])
        p_y = softmax(made.images[i].numpy().astype(float) @ text.T / 0.2)[y]
        of_class, of_background = (1, 1) if weigh is locoop.constant else (1 - p_y, p_y)
        ce.append(-of_class * np.log(p_y))
        for region in regions[i].astype(float):
            p = softmax(region @ text.T / 0.2)
            if y not in np.argsort(-p)[:3]:
                entropies.append(-of_background * (p * np.log(p)).sum())
    assert 0 < len(entropies) < 20
    assert float(found) == pytest.approx(np.mean(ce) - 0.7 * np.mean(entropies), rel=1e-5)


def test_no_background_is_no_fault(tower) -> None:
    made, batch, text = shots(tower)
    regions = made.put(unit(len(made.rows) * 4, 3).reshape(-1, 4, 16))
    found = locoop.loss(made, regions, 0.7, 1.0, locoop.constant)(made.put(text), batch)
    assert float(found) == pytest.approx(float(coop.loss(made)(made.put(text), batch)), rel=1e-5)


def test_negprompts_loss() -> None:
    negatives, positives, rows = unit(15, 1).reshape(3, 5, 16), unit(5, 2), unit(7, 3)
    logits = rows.astype(float) @ negatives.reshape(15, 16).T / 0.1
    wanted = -log_softmax(logits, axis=1).mean()
    wanted -= 0.1 * np.mean([negatives[j, c] @ positives[c] for j in range(3) for c in range(5)])
    others = [(j, k) for j in range(3) for k in range(3) if j != k]
    wanted += 0.05 * np.mean([negatives[j, c] @ negatives[k, c] for j, k in others for c in range(5)])
    given = (torch.from_numpy(x).double() for x in (logits, negatives, positives))
    assert float(negprompt.loss(*given, near=0.1, spread=0.05)) == pytest.approx(wanted, rel=1e-6)


def test_negprompts_negatives_go_where_its_loss_says(tower) -> None:
    def nearness(**hyper: float) -> tuple[float, float]:
        state = fitted(tower, "NegPrompt", steps=20, lr=0.03, negative_context=2, **hyper)
        negatives = state["negative_text"].reshape(2, 6, 16)
        return (negatives * state["class_text"]).sum(2).mean(), (negatives[0] * negatives[1]).sum(1).mean()

    assert nearness(near=100.0)[0] > nearness(near=-100.0)[0] + 0.05
    assert nearness(spread=100.0)[1] < nearness(spread=-100.0)[1] - 0.05


def test_negprompts_score_is_the_largest_id_probability() -> None:
    method, text, negatives = gallery.find("scores", "NegPrompt"), unit(6, 1), unit(20, 2)
    rows = np.concatenate([unit(30, 3), text[:1], negatives[:1]])
    known = Evidence(images=rows, class_text=text, negative_text=negatives, temperature=0.05)
    logits = np.concatenate([rows @ text.T, rows @ negatives.T], 1).astype(float) / 0.05
    wanted = (logits - logsumexp(logits, axis=1, keepdims=True))[:, :6].max(1)
    np.testing.assert_allclose(method(known), wanted, atol=1e-5)
    assert wanted[-2] > wanted[-1] + 1  # an image at a class text, one at a negative's
    turned = known.change(images=rows[::-1], class_text=text[::-1], negative_text=negatives[::-1])
    np.testing.assert_allclose(method(turned)[::-1], method(known), atol=1e-9)
    with pytest.raises(UserError, match="NegPrompt needs negative_text"):
        method(known.change(negative_text=None))


def test_clipns_loss() -> None:
    rows, text, no = unit(7, 1), unit(4, 2), unit(4, 3)
    matching = np.arange(7)[:, None] % 4 == np.arange(4)
    yes_mass, no_mass = (np.exp(rows.astype(float) @ t.T.astype(float) / 0.2) for t in (text, no))
    p_no = no_mass / (yes_mass + no_mass)
    wanted = -np.log(1 - p_no)[matching].mean() - np.log(p_no)[~matching].mean()
    wanted += np.mean(2 - np.linalg.norm(text - no, axis=1))
    given = [torch.from_numpy(x).double() for x in (rows, text, no)]
    found = clipn.loss(*given, torch.from_numpy(matching), 0.2)
    assert float(found) == pytest.approx(wanted, rel=1e-3)  # the guard under the root
    same = clipn.loss(given[0], given[1], given[1], torch.from_numpy(matching), 0.2)
    assert float(same) == pytest.approx(2 * np.log(2) + 2 - 0.01, abs=1e-6)  # p_no = 1/2 at q = g
    alone = clipn.loss(given[0], given[1][:1], given[2][:1], torch.ones(7, 1, dtype=torch.bool), 0.2)
    assert torch.isfinite(alone)  # a last batch of one class


def test_the_no_tower_starts_as_the_text_tower_and_learns_without_it(tower) -> None:
    texts = [f"a {name}" for name in NAMES]
    no = clipn.NoTower(tower)
    with torch.no_grad():
        start = no(tokenizer(texts)).numpy()
    np.testing.assert_allclose(start, embeddings.encode_texts(tower, tokenizer, texts), atol=1e-6)
    batches = {"steps": 120, "batch": 5, "lr": 0.01}  # fewer images than classes
    asked = task(tower, clipn.ADAPTATION.world | SHORT | batches)
    apart = unit(22, 1) * 0.1 + unit(6, 2)[asked.known.train_labels]
    known = asked.known.change(train=apart / np.linalg.norm(apart, axis=1, keepdims=True))
    state = clipn.fit(replace(asked, known=known))
    says_no = (known.train[:, None] * (state["no_text"] - known.class_text)).sum(2) > 0  # p_no > 1/2
    shown = known.train_labels[:, None] == np.arange(6)
    assert says_no[shown].mean() < 0.2 and says_no[~shown].mean() > 0.8


def test_clipns_images_match_their_own_class(tower, monkeypatch) -> None:
    seen, asked = [], task(tower, clipn.ADAPTATION.world | SHORT | {"batch": 5})
    asked = replace(asked, known=asked.known.change(train=unit(22, 1)))
    plain = clipn.loss
    monkeypatch.setattr(clipn, "loss", lambda *given: seen.append(given) or plain(*given))
    clipn.fit(asked)
    for image, text, _, matching, _ in seen:
        rows = (image.numpy() @ asked.known.train.T).argmax(1)
        labels = asked.known.train_labels[rows]
        assert (matching.sum(1) == 1).all() and matching.shape[1] == len(set(labels)) < 6
        np.testing.assert_array_equal(text[matching.int().argmax(1)], asked.known.class_text[labels])
    np.testing.assert_allclose(seen[0][2].detach(), seen[0][1], atol=1e-6)  # "no" texts of the same classes


def test_ogens_generator_with_one_neighbour_is_a_linear_map_of_its_value() -> None:
    torch.manual_seed(0)
    made = ogen.Generator(16, 4, 0.1).eval()
    query, value = (torch.from_numpy(unit(5, seed)) for seed in (1, 2))
    weight, bias = made.attention.in_proj_weight[32:], made.attention.in_proj_bias[32:]
    with torch.no_grad():
        wanted = F.normalize(made.ffn(query) + made.attention.out_proj(value @ weight.T + bias), dim=-1)
        for seed in (3, 4):  # whatever the key
            keys = torch.from_numpy(unit(5, seed))[:, None]
            np.testing.assert_allclose(made(query, keys, value[:, None]), wanted, atol=1e-6)
        both = torch.stack([value, value], 1)  # two neighbours of one value: the keys decide nothing
        np.testing.assert_allclose(made(query, torch.randn(5, 2, 16), both), wanted, atol=1e-6)


def test_ogens_moments() -> None:
    rows, labels = unit(12, 1), np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 3, 3])
    mean, sd = (x.numpy() for x in ogen.moments(torch.from_numpy(rows), torch.from_numpy(labels), 4))
    for k in (0, 1, 3):
        np.testing.assert_allclose(mean[k], rows[labels == k].mean(0), atol=1e-6)
        np.testing.assert_allclose(sd[k], rows[labels == k].std(0), atol=1e-5)
    assert not mean[2].any() and not sd[2].any()


def test_ogens_neighbours_are_the_nearest_others() -> None:
    known = unit(7, 1)
    for k, row in enumerate(ogen.neighbours(torch.from_numpy(known), 3).numpy()):
        assert row.tolist() == [j for j in np.argsort(-(known @ known[k])) if j != k][:3]


def test_ogens_cross_entropies() -> None:
    shown, again, new, text, words = (unit(n, s) for s, n in enumerate((5, 5, 4, 6, 4)))
    labels, both = np.array([0, 3, 5, 1, 1]), np.concatenate([text, words]).astype(float)
    wanted = sum(
        weight * -log_softmax(rows @ both.T, axis=1)[np.arange(len(rows)), at].mean()
        for rows, at, weight in ((shown, labels, 0.25), (again, labels, 0.25), (new, np.arange(6, 10), 0.5))
    )
    given = (torch.from_numpy(x) for x in (shown, again, new, labels, text, words))
    assert float(ogen.told(*given)) == pytest.approx(wanted, rel=1e-5)
