"""Models: one code path for GlyphCLIP and open_clip's own, and every way a weights file can be wrong."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from ood_utils import models
from ood_utils.data import glyph_world as glyphs
from ood_utils.errors import UserError
from ood_utils.tools import pretrain


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
        torch.testing.assert_close(
            models.encode_text(model, tokens), model.encode_text(tokens), atol=1e-5, rtol=1e-5
        )


def test_cut_context_is_exact_for_vit_text_tower() -> None:
    model = open_clip.create_model("ViT-S-32-alt").eval()
    tokens = open_clip.get_tokenizer("ViT-S-32-alt")(["a photo of a cat", "the nice dog that barks"])
    with torch.no_grad():
        torch.testing.assert_close(
            models.encode_text(model, tokens), model.encode_text(tokens), atol=1e-5, rtol=1e-5
        )


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
    elif kind.startswith("plain pickle"):
        path = tmp_path / "w.pt"
        path.write_bytes(pickle.dumps({"x": _Nasty()}, protocol=2 if kind.endswith("2") else 4))
    elif kind == "old pickle":
        path = tmp_path / "w.pt"
        torch.save({"x": _Nasty()}, path, _use_new_zipfile_serialization=False)
    elif kind.startswith("junk"):
        path = tmp_path / "w.pt"
        path.write_bytes(
            {"junk": b"h\x00hello", "junk text": b"this is not weights\n", "junk, empty": b""}[kind]
        )
    elif kind.startswith("half"):
        path = tmp_path / "w.pt"
        torch.save(state, path, _use_new_zipfile_serialization=kind == "half")
        path.write_bytes(path.read_bytes()[:100_000])
    elif kind == "TorchScript":
        path = tmp_path / "ViT-B-16.pt"
        with warnings.catch_warnings(action="ignore"):  # torch.jit is deprecated, OpenAI's files are not
            torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
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


REFUSED = "no plain state dict of tensors .* could run code; fetch it again, or"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "does not exist"),
        ("truncated", REFUSED),
        ("half", REFUSED),
        ("half, old", REFUSED),
        ("junk", REFUSED),
        ("junk text", REFUSED),
        ("junk, empty", REFUSED),
        ("pickle", REFUSED),
        ("old pickle", REFUSED),
        ("plain pickle 2", REFUSED),
        ("plain pickle", REFUSED),
        ("not a state dict", REFUSED),
        ("TorchScript", r"torch\.jit\.load\(.*ViT-B-16\.pt.*\)\.state_dict\(\)"),
        ("shape", "does not fit"),
        ("other model", "saved from model 'ViT-B-32'"),
        ("missing key", "does not fit"),
    ],
)
def test_bad_weights_are_refused_in_one_sentence(tmp_path, kind: str, said: str, capsys) -> None:
    path = _damage(tmp_path, kind)
    with pytest.raises(UserError, match=said) as caught, warnings.catch_warnings(action="error"):
        models.load("GlyphCLIP", path)
    with pytest.raises(UserError) as unread:
        models.build("GlyphCLIP", path, "meta")  # as `check` does: the numbers are left, the words are these
    assert str(unread.value) == str(caught.value)
    assert path in str(caught.value) and "\n" not in str(caught.value)
    assert ("truncated" in str(caught.value)) == (said == REFUSED)
    assert "unpickled code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "pretrained", "hint"),
    [
        ("ViT-B-61", "openai", "ViT-B-16"),
        ("ViT-B-16-quickgelu", "opnai", "openai"),
        ("ViT-B-16", "openai", "ViT-B-16-quickgelu"),
        ("ViT-B-16", "metaclip_400m", "ViT-B-16-quickgelu"),
    ],
)
def test_unknown_names_get_a_hint(name: str, pretrained: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        models.load(name, pretrained)


def test_a_model_that_lacks_a_package_is_not_said_to_lack_weights(monkeypatch) -> None:
    def create_model(*_, **__):
        raise RuntimeError("Please `pip install transformers`")

    monkeypatch.setattr(models.open_clip, "create_model", create_model)
    with pytest.raises(UserError, match=r"model 'RN50' cannot be built \(Please .*transformers`\); install"):
        models.build("RN50", "random")


CACHED = "models--timm--vit_base_patch16_clip_224.openai/snapshots/a1b2/open_clip_model.safetensors"


@pytest.mark.parametrize(
    "file", ["openai_vit.safetensors", CACHED, "linked.safetensors", "ViT-S-32.safetensors"]
)
def test_openai_weights_under_a_gelu_name_are_refused(tmp_path, file: str) -> None:
    path = tmp_path / file
    real = tmp_path / CACHED if file.startswith("linked") else path
    real.parent.mkdir(parents=True, exist_ok=True)
    own = {"input_resolution": torch.tensor(224)} if file.startswith("ViT") else {}  # of OpenAI's own archive
    save_file({"x": torch.zeros(1), **own}, real)
    if path != real:
        path.symlink_to(real)
    with pytest.raises(UserError, match="use model 'ViT-B-32-quickgelu'"):
        models._load_weights(torch.nn.Linear(1, 1), path, "ViT-B-32")
    with pytest.raises(UserError, match="does not fit"):  # the right name comes as far as the tensors
        models._load_weights(torch.nn.Linear(1, 1), path, "ViT-B-32-quickgelu")


def test_a_folder_called_openai_does_not_make_other_weights_openais(tmp_path, glyph_clip) -> None:
    path = tmp_path / "openai" / "w.safetensors"
    path.parent.mkdir()
    shutil.copy(models.GLYPH_WEIGHTS, path)
    assert models.weights_hash(models.load("GlyphCLIP", str(path))[0]) == models.weights_hash(glyph_clip[0])
    own = torch.nn.Linear(1, 1)
    models.save(own, path, "ViT-B-32")  # the file itself says what it was saved from
    models._load_weights(own, path, "ViT-B-32")


def test_an_openai_archive_loads_once_its_state_dict_is_saved(tmp_path: Path) -> None:
    numbers = {key: torch.tensor(77) for key in ("input_resolution", "context_length", "vocab_size")}
    model = torch.nn.Linear(2, 2)
    torch.save({**{k: v.half() for k, v in model.state_dict().items()}, **numbers}, tmp_path / "new.pt")
    models._load_weights(model, tmp_path / "new.pt", "ViT-B-32-quickgelu")


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu", "RN50", "RN50-quickgelu"])
def test_the_activation_built_is_the_configs(monkeypatch, name: str) -> None:
    def build(name: str, **_) -> torch.nn.Module:
        with torch.device("meta"):
            return create(name, device="meta")

    create = open_clip.create_model
    monkeypatch.setattr(models.open_clip, "create_model", build)
    models.load(name, "random")
    other = name.removesuffix("-quickgelu") if "quick" in name else f"{name}-quickgelu"
    monkeypatch.setattr(models.open_clip, "create_model", lambda name, **_: build(other))
    with pytest.raises(
        UserError, match=rf"'{name}' was built {'without' if 'quick' in name else 'with'} QuickGELU"
    ):
        models.load(name, "random")


def test_pretraining_learns_and_resumes(tmp_path) -> None:
    torch.set_num_threads(1)
    options = {"steps": 12, "lr": 1e-2, "batch": 32, "log_every": 6}
    _, log = pretrain.pretrain(checkpoint=tmp_path / "c.pt", **options)
    assert log[-1]["loss"] < log[0]["loss"]
    half, _ = pretrain.pretrain(checkpoint=tmp_path / "d.pt", stop_at=6, **options)
    whole, _ = pretrain.pretrain(checkpoint=tmp_path / "d.pt", **options)
    first = models.weights_hash(pretrain.pretrain(checkpoint=tmp_path / "c.pt", **options)[0])
    assert models.weights_hash(whole) == first != models.weights_hash(half)


def test_the_card_states_the_shipped_file(glyph_clip) -> None:
    card = json.loads((models.ASSETS / "GlyphCLIP.card.json").read_text())
    assert card["weights_hash"] == models.weights_hash(glyph_clip[0])
    measured = pretrain.calibration(glyph_clip[0], glyph_clip[2], glyphs.TEST_FACES)
    for key in ("top1", "top5", "centroid_gap", "matched_cosine"):
        assert measured[key] == pytest.approx(card["calibration"]["test_faces"][key], abs=0.01), key
    assert 0.60 <= card["calibration"]["test_faces"]["top1"] <= 0.70
    assert 0.7 <= card["calibration"]["test_faces"]["centroid_gap"] <= 0.9
