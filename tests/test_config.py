"""Profiles and recipes: what is accepted, what is refused and in which words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ood_utils import config
from ood_utils.config import Recipe
from ood_utils.errors import UserError
from ood_utils.series import check


@pytest.mark.parametrize("name", ["glyphs", "glyphs-tiny", "folder", "imagenet"])
def test_shipped_profiles_are_valid(name):
    assert config.load_profile(name).title


def test_imagenet_profile_is_the_official_recipe():
    values = config.load_profile("imagenet")
    recipe = dict(
        epochs=10, batch=512, lr=1e-5, warmup=500, weight_decay=0.1, lam=0.001, crop_scale=[0.9, 1.0]
    )
    recipe |= dict(model="ViT-B-16-quickgelu", pretrained="openai", prompt="The nice {}", decay_all=True)
    recipe |= dict(scale_mode="learned", quantile=0.95, keep=0.15, groups=1, temperature=0.01)
    assert {name: getattr(values, name) for name in recipe} == recipe


SET_NAMES = [
    *(
        "",
        ".",
        "..",
        "a/b",
        "a\\b",
        "../../x",
        "id_val",
        "id_test",
        "train",
        "average near",
        "a\nb",
        "\ud800",
    ),
    *("a:b", "<b>", "CON|", " a", "a.", "x" * 101, "é" * 51),
]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lam": 2}, ["lam = 2", "less than or equal to 1"]),
        ({"lams": [0, -0.1]}, ["lams", "greater than or equal to 0"]),
        ({"temperature": 0}, ["temperature = 0", "greater than 0"]),
        ({"id_classes": -1}, ["id_classes = -1"]),
        ({"ood_images": -5}, ["ood_images = -5"]),
        ({"steps": 0}, ["steps = 0"]),
        ({"seeds": [0, 0]}, ["seeds", "different"]),
        ({"lam": "much"}, ["lam = 'much'", "number"]),
        ({"lam": True}, ["lam = True", "number"]),
        ({"steps": 4.5}, ["steps = 4.5", "integer"]),
        ({"lr": float("nan")}, ["lr", "finite"]),
        ({"lr": None}, ["lr = None"]),
        ({"data": "glyph"}, ["data = 'glyph'", "did you mean glyphs"]),
        ({"prompt": "a picture"}, ["prompt", "{}"]),
        ({"crop_scale": [1.0, 0.5]}, ["crop_scale"]),
        ({"batch": 128, "processes": 3}, ["batch = 128", "processes = 3"]),
        *(
            (
                {"data": "folder", "ood_roots": {name: "/x"}},
                ["ood_roots = ", "an OoD set's name becomes a file's"],
            )
            for name in SET_NAMES
        ),
        ({"ood_groups": {"../x": "far"}}, ["ood_groups = {'../x'"]),
        ({"data_seed": 2**63}, ["data_seed = 9223372036854775808", "less than 4294967296"]),
        ({"seeds": [2**32]}, ["seeds = [4294967296]", "less than 4294967296"]),
        ({"title": "a\nb"}, ["title = 'a\\nb'", "line break"]),
        ({"title": "a\ud800b"}, ["title = 'a\\ud800b'", "no UTF-8"]),
        ({"data_root": "~nobody-here/x"}, ["data_root = '~nobody-here/x'", "no such user's home"]),
        ({"corpus": "x" * 300}, ["corpus = 'xxx", "longer than the 255 bytes"]),
        ({"model": "m" * 5000, "lam": 2}, ["lam = 2"]),
        ({"lam": 0}, ["lam must be above 0, and lams hold 0"]),
        ({"lams": [0.1]}, ["lams = [0.1]", "lams hold 0 (FLYP)"]),
        ({"lams": [0]}, ["lams = [0.0]", "a value above 0"]),
        ({"keep_counts": {"noun": -1}}, ["keep_counts = {'noun': -1}"]),
        ({"timeout_minutes": 1e308}, ["timeout_minutes"]),
        ({"n" * 5000: 1}, ["unknown parameter 'nnn", "…'"]),
        ({"lamda": 0.1}, ["unknown parameter 'lamda'", "did you mean lam"]),
    ],
)
def test_a_wrong_value_is_refused_in_one_sentence(changes, words):
    with pytest.raises(UserError) as refusal:
        config.load_profile("glyphs", changes)
    message = str(refusal.value)
    assert all(word in message for word in ["glyphs", *words]) and message.isprintable()
    assert len(message) < 1000


@pytest.mark.parametrize("name", ["SSB-hard", "birds of prey", "кошки", "a+b (2)", "v1.5", "i", "x" * 100])
def test_the_names_of_sets_that_files_can_have(name):
    assert config.Profile(data="folder", ood_roots={name: "/x"}, ood_groups={name: "near"}).ood_roots == {
        name: "/x"
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        *(({"id_classes": n}, f"id_classes = {n} tell too little; give 5 or more") for n in (1, 2, 3, 4)),
        ({"ood_images": 1}, "ood_images = 1 has no interval; give 2 or more"),
        ({"relation": 0.3}, r"relation = 0.3 is for `ood train`; a series takes relations=\[0.3\]"),
    ],
)
def test_what_a_series_cannot_compare_is_refused_there_and_not_in_a_training(changes, said):
    profile = config.load_profile("glyphs", changes)
    with pytest.raises(UserError, match=said):
        profile.for_series()
    faults = [need for need in check.needs(profile) if need.ok is False]
    assert len(faults) == 1 and faults[0].what in said.replace("\\", "")
    assert config.Profile(id_classes=5, ood_images=2).for_series()


def test_unknown_profile_names_the_nearest():
    with pytest.raises(UserError, match="unknown profile 'glyhps'; did you mean glyphs"):
        config.load_profile("glyhps")
    for name in ("nowhere/mine.yaml", "~nobody-here/mine.yaml", "a\nb/c"):
        with pytest.raises(UserError, match=r"^profile file '[^\n]*' does not exist"):
            config.load_profile(name)
    for name in ("~nobody-here", "x" * 5000, "a\nb", ""):
        with pytest.raises(UserError, match=r"^unknown profile '[^\n]{0,90}'; ") as refusal:
            config.load_profile(name)
        assert len(str(refusal.value)) < 300


@pytest.mark.parametrize(
    "text",
    [
        "a: [1, 2",
        "\t: {",
        "\x00",
        "lam: 2020-99-99",
        "a: !!int x",
        "a: !!bool x",
        "a: !!timestamp x",
        "[" * 5000,
    ]
    + ["lam: " + "1" * 5000],
)
def test_a_profile_that_is_not_yaml_is_refused(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=r"mine\.yaml.* is not YAML"):
        config.load_profile(tmp_path / "mine.yaml")


def test_a_profile_that_is_a_list_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("- lam\n- lr\n")
    with pytest.raises(UserError, match="name: value"):
        config.load_profile(tmp_path / "mine.yaml")


def test_numbers_are_read_as_people_write_them():
    assert config.parse_yaml("{a: 1e-5, b: 2.5E+3, c: -1e3, d: 7, e: x1e5, f: .5e1}") == {
        **{"a": 1e-5, "b": 2500.0, "c": -1000.0, "d": 7, "e": "x1e5", "f": 5.0}
    }
    with pytest.raises(yaml.YAMLError):
        config.parse_yaml("[1")


def test_relative_paths_count_from_the_profile(tmp_path):
    (tmp_path / "my.images").mkdir()
    (tmp_path / "mine.yaml").write_text(
        "data: folder\ndata_root: ./my.images\nood_roots: {birds: ./my.images}\n"
    )
    values = config.load_profile(tmp_path / "mine.yaml")
    assert values.data_root == values.ood_roots["birds"] == str(tmp_path / "my.images")


def test_key_follows_what_changes_results_and_nothing_else():
    base = config.Profile()
    assert (
        base.key()
        == config.Profile(title="other", minutes={"01": 3}, timeout_minutes=1, workers=4, parallel=1).key()
    )
    assert base.key() != config.Profile(lam=0.01).key()


def test_expected_seconds():
    values = config.Profile(minutes={"01": 2, "02_train": 0.5})
    assert [values.expected_seconds(name) for name in ("01_gap", "02_train", "03_sphere")] == [120, 30, 0]


def test_root_does_not_depend_on_the_working_directory(tmp_path):
    code = "from ood_utils import config, store; print(config.ROOT, store.OUTPUTS)"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OOD_")}
    environment["PYTHONPATH"] = str(config.PACKAGE.parent)
    ask = [sys.executable, "-c", code]
    said = subprocess.run(
        ask, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout
    root = Path(__file__).resolve().parent.parent
    assert said.split() == [str(root), str(root / "outputs")]
    environment |= {"OOD_ROOT": str(tmp_path), "OOD_OUTPUTS": str(tmp_path / "else")}
    said = subprocess.run(ask, cwd="/", env=environment, capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(tmp_path), str(tmp_path / "else")]


def test_a_recipe_is_the_profile_s_training_values() -> None:
    profile = config.make_profile({"lam": 0.02, "steps": 7, "decay_all": True}, "test")
    recipe = profile.recipe(objective="m2mix", seed=5)
    assert (recipe.lam, recipe.steps, recipe.decay_all, recipe.seed) == (0.02, 7, True, 5)
    assert Recipe(**recipe.model_dump()) == recipe


@pytest.mark.parametrize(
    "wrong",
    [
        {"objective": "cmma"},
        {"lam": 2},
        {"batch": 1},
        {"steps": 0},
        {"lr": 0},
        {"chunk": -1},
        {"scale_mode": "x"},
    ],
)
def test_a_recipe_refuses_what_makes_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        Recipe(**wrong)


def test_the_ranks_of_a_machine_share_its_cores(monkeypatch) -> None:
    monkeypatch.setattr(config, "cores", lambda: 12)
    shared = config.Profile(workers=-1)
    assert (shared.loaders(), shared.loaders(8), shared.loaders(50)) == (12, 1, 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert (shared.loaders(), shared.loaders(1), config.Profile(workers=5).loaders()) == (3, 12, 5)
