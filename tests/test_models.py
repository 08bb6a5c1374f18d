"""Models: one code path for GlyphCLIP and open_clip's own, and every way a weights file can be wrong."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from ood_utils import glyphs, models, pretrain
from ood_utils.errors import UserError


@pytest.fixture(scope="module")
def glyph_clip():
    return models.load()


def test_glyph_clip_is_an_open_clip_model(glyph_clip) -> None:
    model, preprocess, tokenizer = glyph_clip
    assert isinstance(model, open_clip.CLIP) and not model.training
    assert models.GLYPH_WEIGHTS.stat().st_size <= 8e6
    assert model.logit_scale.exp().item() == pytest.approx(100, rel=1e-3)
    assert tokenizer(["a latin small letter a"]).shape == (1, model.context_length)


def test_cut_context_is_exact(glyph_clip) -> None:
    model, _, tokenizer = glyph_clip
    tokens = tokenizer(["a", "the nice latin capital letter a with acute", "playing card two of clubs"])
    with torch.no_grad():
        torch.testing.assert_close(models.encode_text(model, tokens), model.encode_text(tokens), atol=1e-5, rtol=1e-5)


def test_cut_context_is_exact_for_vit_text_tower() -> None:
    model = open_clip.create_model("ViT-S-32-alt").eval()
    tokens = open_clip.get_tokenizer("ViT-S-32-alt")(["a photo of a cat", "the nice dog that barks"])
    with torch.no_grad():
        torch.testing.assert_close(models.encode_text(model, tokens), model.encode_text(tokens), atol=1e-5, rtol=1e-5)


def test_every_glyph_name_has_its_own_code(glyph_clip) -> None:
    tokenizer = glyph_clip[2]
    codes = {tuple(tokenizer.encode(name)) for name in glyphs.world().names}
    assert len(codes) == len(glyphs.world().names)
    assert max(map(len, codes)) + 6 <= tokenizer.context_length
    kept = json.loads((models.ASSETS / "GlyphCLIP.vocabulary.json").read_text())
    assert kept == pretrain.vocabulary(), "the vocabulary asset is not what pretrain.vocabulary() makes"


def test_unknown_words_are_spelled(glyph_clip) -> None:
    tokens = glyph_clip[2](["quixotic wérd ✓"])
    assert tokens.max() == glyph_clip[2].eot_token_id and (tokens[0, :6] > 0).all()


def test_save_and_load_round_trip(tmp_path, glyph_clip) -> None:
    model = glyph_clip[0]
    models.save(model, tmp_path / "w.safetensors", "GlyphCLIP")
    again, _, _ = models.load("GlyphCLIP", str(tmp_path / "w.safetensors"))
    assert models.weights_hash(again) == models.weights_hash(model)
    assert not list(tmp_path.glob("*.part"))


def test_a_plain_state_dict_loads(tmp_path, glyph_clip) -> None:
    state = {"state_dict": {f"module.{k}": v for k, v in glyph_clip[0].state_dict().items()}}
    torch.save(state, tmp_path / "w.pt")
    assert models.weights_hash(models.load("GlyphCLIP", str(tmp_path / "w.pt"))[0]) == models.weights_hash(
        glyph_clip[0]
    )


class _Nasty:
    def __reduce__(self):
        return print, ("unpickled code ran",)


def _damage(tmp_path, kind: str) -> str:
    path = tmp_path / "w.safetensors"
    state = load_file(models.GLYPH_WEIGHTS)
    if kind == "missing":
        return str(tmp_path / "none.safetensors")
    if kind == "truncated":
        path.write_bytes(models.GLYPH_WEIGHTS.read_bytes()[:100_000])
    elif kind == "pickle":
        path = tmp_path / "w.pt"
        torch.save({"x": _Nasty()}, path)
    elif kind == "not a state dict":
        path = tmp_path / "w.pt"
        torch.save([1, 2, 3], path)
    elif kind == "shape":
        save_file({**state, "text_projection": torch.zeros(3, 3)}, path)
    elif kind == "other model":
        save_file(state, path, metadata={"model": "ViT-B-32"})
    elif kind == "missing key":
        save_file({k: v for k, v in state.items() if k != "text_projection"}, path)
    return str(path)


@pytest.mark.parametrize(
    "kind", ["missing", "truncated", "pickle", "not a state dict", "shape", "other model", "missing key"]
)
def test_bad_weights_are_refused_in_one_sentence(tmp_path, kind: str, capsys) -> None:
    path = _damage(tmp_path, kind)
    with pytest.raises(UserError) as caught:
        models.load("GlyphCLIP", path)
    assert path in str(caught.value) and "\n" not in str(caught.value)
    assert "unpickled code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "pretrained", "hint"),
    [
        ("ViT-B-61", "openai", "ViT-B-16"),
        ("ViT-B-16-quickgelu", "opnai", "openai"),
        ("ViT-B-16", "openai", "ViT-B-16-quickgelu"),
    ],
)
def test_unknown_names_get_a_hint(name: str, pretrained: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        models.load(name, pretrained)


def test_openai_weights_under_a_gelu_name_are_refused(tmp_path) -> None:
    path = tmp_path / "openai_vit.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="quickgelu"):
        models.load("ViT-B-16", str(path))


def test_pretraining_learns_and_resumes(tmp_path) -> None:
    torch.set_num_threads(1)
    _, log = pretrain.pretrain(steps=6, batch=32, checkpoint=tmp_path / "c.pt", log_every=3)
    assert log[-1]["loss"] < log[0]["loss"]
    half, _ = pretrain.pretrain(steps=6, batch=32, checkpoint=tmp_path / "d.pt", log_every=3, stop_at=3)
    whole, _ = pretrain.pretrain(steps=6, batch=32, checkpoint=tmp_path / "d.pt", log_every=3)
    first = models.weights_hash(pretrain.pretrain(steps=6, batch=32, checkpoint=tmp_path / "c.pt")[0])
    assert models.weights_hash(whole) == first != models.weights_hash(half)


def test_the_card_states_the_shipped_file(glyph_clip) -> None:
    card = json.loads((models.ASSETS / "GlyphCLIP.card.json").read_text())
    assert card["weights_hash"] == models.weights_hash(glyph_clip[0])
    measured = pretrain.calibration(glyph_clip[0], glyph_clip[2], glyphs.TEST_FACES)
    for key in ("top1", "top5", "centroid_gap", "matched_cosine"):
        assert measured[key] == pytest.approx(card["calibration"]["test_faces"][key], abs=0.01), key
    assert 0.60 <= card["calibration"]["test_faces"]["top1"] <= 0.70
    assert 0.7 <= card["calibration"]["test_faces"]["centroid_gap"] <= 0.9
