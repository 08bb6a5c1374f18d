from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from ood_utils import config, models, objectives, train, training
from ood_utils.embeddings import encode
from ood_utils.errors import UserError
from ood_utils.training import Recipe, batch_keys, fine_tune, fine_tune_many

torch.set_num_threads(1)
os.environ.setdefault(training.CUBLAS, ":4096:8")  # before any test touches a GPU: cuBLAS reads it once
SHORT = {"steps": 6, "batch": 8, "lr": 1e-3, "warmup": 2}


def tuned(folder: Path, recipe: Recipe, **options: object) -> dict[str, torch.Tensor]:
    """The weights after a fine-tuning of the tiny model."""
    model = options.pop("model", None) or tiny.model()
    fine_tune(model, tiny.tokenizer, tiny.images(), tiny.TEXTS, recipe, folder, progress=False, **options)
    return model.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


# --- recipe, schedule, sampler -----------------------------------------------------------------------------------


def test_recipe_comes_from_a_profile_and_survives_json() -> None:
    profile = config.make_profile({"lam": 0.02, "steps": 7, "decay_all": True}, "test")
    recipe = Recipe.from_profile(profile, objective="m2mix", seed=5)
    assert (recipe.lam, recipe.steps, recipe.decay_all, recipe.seed) == (0.02, 7, True, 5)
    assert Recipe(**json.loads(json.dumps(vars(recipe)))) == recipe
    assert Recipe(epochs=3, batch=8).total_steps(22) == 9 and Recipe(steps=5).total_steps(22) == 5


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
def test_recipe_refuses_what_makes_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        Recipe(**wrong)


def test_rate_warms_up_and_falls_to_zero() -> None:
    rates = [training.rate(step, 100, 10) for step in range(101)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3]) and max(rates) == rates[10] == 1 and rates[100] < 1e-12
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False)) and training.rate(0, 5, 0) == 1


def test_an_epoch_visits_every_image_once() -> None:
    for epoch in (0, 1):
        keys = np.concatenate([batch_keys(22, 8, 3, step) for step in range(3 * epoch, 3 * epoch + 3)])
        assert sorted(keys - epoch * 22) == list(range(22))
    assert not np.array_equal(batch_keys(22, 8, 3, 0), batch_keys(22, 8, 3, 3) - 22)
    assert np.array_equal(batch_keys(22, 8, 3, 4), batch_keys(22, 8, 3, 4))
    assert not np.array_equal(batch_keys(22, 8, 3, 0), batch_keys(22, 8, 4, 0))


def test_last_batches_that_cannot_contrast_are_left_out() -> None:
    assert batch_keys(17, 8, 0, 2).min() >= 17  # 17 = 8 + 8 + 1: step 2 already is epoch 1
    assert len(batch_keys(21, 8, 0, 2, world=2)) == 4 and len(batch_keys(5, 8, 0, 0)) == 5


# --- one step ----------------------------------------------------------------------------------------------------


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    dataset = tiny.images(dtype=torch.float64).dataset
    items = [dataset[key] for key in range(11)]
    return torch.stack([i for i, _ in items]), torch.tensor([y for _, y in items])


def tower_gradients(model: torch.nn.Module, recipe: Recipe) -> list[torch.Tensor]:
    """Loss and parameter gradients of one batch through ``Towers``."""
    images, labels = batch()
    distinct, inverse = labels.unique(return_inverse=True)
    training._train_mode(model)
    model.zero_grad()
    image, text, scale = training.Towers(model, recipe)(images, tiny.tokenizer(tiny.TEXTS)[distinct], inverse)
    loss = training._loss(recipe, 0, image, text, scale, labels).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


def test_distinct_texts_give_the_gradient_of_encoding_each() -> None:
    model, recipe = tiny.model().double(), Recipe()
    found = tower_gradients(model, recipe)
    images, labels = batch()
    model.zero_grad()
    texts = model.encode_text(
        tiny.tokenizer([tiny.TEXTS[y] for y in labels])
    )  # one row an image, full context
    image, text = F.normalize(model.encode_image(images), dim=-1), F.normalize(texts, dim=-1)
    loss = objectives.cma_parts(image, text, model.logit_scale.exp(), recipe.lam).loss
    loss.backward()
    torch.testing.assert_close(
        found, [loss.detach(), *(p.grad for p in model.parameters())], rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize("objective", ["cma", "m2mix"])
@pytest.mark.parametrize("tower", ["resnet", "vit"])
@pytest.mark.parametrize("chunk", [3, 4, 64])
def test_chunks_give_the_gradient_of_the_whole_batch(objective: str, tower: str, chunk: int) -> None:
    model = tiny.model(tower).double()
    whole = tower_gradients(model, Recipe(objective=objective))
    torch.testing.assert_close(
        tower_gradients(model, Recipe(objective=objective, chunk=chunk)), whole, rtol=1e-9, atol=1e-10
    )


def test_weight_decay_groups() -> None:
    model = tiny.model()
    by_id = {id(p): name for name, p in model.named_parameters()}
    decayed, plain = (
        [by_id[id(p)] for p in group["params"]]
        for group in training._optimiser(model, Recipe(weight_decay=0.2), 10)[0].param_groups
    )
    assert "logit_scale" in plain and "ln_final.weight" in plain and "visual.conv1.weight" in decayed
    assert all(name.endswith(("bias", "weight", "scale")) for name in plain) and len(decayed) + len(
        plain
    ) == len(by_id)
    (paper,) = training._optimiser(model, Recipe(decay_all=True), 10)[0].param_groups
    assert len(paper["params"]) == len(by_id) and paper["weight_decay"] == 0.1


# --- a run -------------------------------------------------------------------------------------------------------


def test_fine_tune_learns_logs_and_leaves_three_files(tmp_path: Path) -> None:
    model, lam = tiny.model(), 0.05
    before = {key: value.clone() for key, value in model.state_dict().items()}
    recipe = Recipe(lam=lam, steps=30, batch=8, lr=3e-3, warmup=2)
    log = fine_tune(model, tiny.tokenizer, tiny.images(), tiny.TEXTS, recipe, tmp_path / "a", progress=False)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "card.json",
        "log.parquet",
        "model.safetensors",
    ]
    pd.testing.assert_frame_equal(log, pd.read_parquet(tmp_path / "a/log.parquet"))
    wanted = "step epoch lr loss clip lse_image lse_text positive scale gradient_norm seconds"
    assert (
        list(log) == wanted.split()
        and list(log.step) == list(range(1, 31))
        and list(log.epoch[:4]) == [0, 0, 0, 1]
    )
    np.testing.assert_allclose(log["clip"], (log.lse_image + log.lse_text) / 2 - log.positive, atol=1e-5)
    np.testing.assert_allclose(log.loss, (1 - lam) * log["clip"] - lam * log.positive, atol=1e-5)
    assert log["clip"][-5:].mean() < log["clip"][:3].mean() - 0.3
    card = json.loads((tmp_path / "a/card.json").read_text())
    assert card["recipe"]["lam"] == lam and card["weights"] == models.weights_hash(model)
    assert card["data"] == tiny.images().fingerprint and card["provenance"]["versions"]["torch"]
    for key, value in model.state_dict().items():
        statistic = key.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert torch.equal(value, before[key]) == statistic, key
    assert not model.training


def test_finished_work_is_loaded_and_other_work_is_not_mistaken_for_it(tmp_path: Path) -> None:
    recipe = Recipe(**SHORT)
    weights = tuned(tmp_path, recipe)
    stamp = (tmp_path / "model.safetensors").stat().st_mtime_ns
    assert (
        same(weights, tuned(tmp_path, recipe))
        and (tmp_path / "model.safetensors").stat().st_mtime_ns == stamp
    )
    assert not same(weights, tuned(tmp_path, Recipe(**SHORT, seed=1)))  # another recipe in the same folder
    again = tuned(tmp_path, recipe)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])  # truncated: made anew
    assert same(weights, again) and same(weights, tuned(tmp_path, recipe))


def test_scale_modes(tmp_path: Path) -> None:
    hot = {
        "steps": 25,
        "batch": 8,
        "lr": 0.01,
        "warmup": 0,
        "lam": 1.0,
    }  # pure alignment wants a larger scale
    for mode in ("frozen", "clamped", "learned"):
        model = tiny.model()
        model.logit_scale.data.fill_(training.MAX_LOG_SCALE - 0.01)
        scale = (
            tuned(tmp_path / mode, Recipe(**hot, scale_mode=mode), model=model)["logit_scale"].exp().item()
        )
        low, high = {"frozen": (99.004, 99.006), "clamped": (99.01, 100.001), "learned": (100.1, 200)}[mode]
        assert low < scale < high, mode


class Photos(torch.utils.data.Dataset):
    """Noise of 224 x 224 pixels by key, labels in turn."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, key: int) -> tuple[torch.Tensor, int]:
        return torch.randn(3, 224, 224, generator=torch.Generator().manual_seed(int(key))), int(key) % 3


def test_the_paper_s_model_trains_and_encodes(tmp_path: Path) -> None:
    """ViT-B/16 with QuickGELU and random weights: two steps with cached gradients, then unit rows. 20 s, 4 GB."""
    name, texts = "ViT-B-16-quickgelu", ["The nice cat", "The nice dog", "The nice bird"]
    model, _, tokenizer = models.load(name, "random")
    watched = (
        "visual.conv1.weight",
        "visual.proj",
        "text_projection",
        "token_embedding.weight",
        "logit_scale",
    )
    before = {key: model.state_dict()[key].clone() for key in watched}
    images = tiny.Images("photos", Photos(), np.arange(4) % 3)
    recipe = Recipe(model=name, steps=2, batch=4, chunk=2, warmup=0, lr=1e-4)
    log = fine_tune(model, tokenizer, images, texts, recipe, tmp_path / "a", progress=False)
    (tmp_path / "a/model.safetensors").unlink()  # pytest keeps folders, and this is 0.6 GB
    assert len(log) == 2 and np.isfinite(log.to_numpy()).all()
    assert not any(torch.equal(before[key], model.state_dict()[key]) for key in watched)
    for rows in (encode(model, Photos(), progress=False), encode(model, texts, tokenizer)):
        assert rows.shape[1] == 512 and np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"objective": "clip"}, {"class_aware": True}])
def test_other_recipes_run(tmp_path: Path, options: dict[str, object]) -> None:
    weights = tuned(tmp_path, Recipe(**SHORT, **options))
    assert all(torch.isfinite(value).all() and value.dtype != torch.bfloat16 for value in weights.values())


# --- resume ------------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("objective,save_every", [("cma", 1), ("m2mix", 2), ("clip", 4)])
def test_a_stopped_run_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str, save_every: int, device: str
) -> None:
    recipe = Recipe(objective=objective, **SHORT, deterministic=device == "cuda")
    whole = tuned(tmp_path / "whole", recipe, device=device)
    advance = training._Run.advance
    for last in (5, 2):

        def stop(self: training._Run, *batch: torch.Tensor, last: int = last) -> None:
            if self.step == last:
                raise Stop
            advance(self, *batch)

        monkeypatch.setattr(training._Run, "advance", stop)
        with pytest.raises(Stop):
            tuned(tmp_path / f"at-{last}", recipe, save_every=save_every, device=device)
        monkeypatch.setattr(training._Run, "advance", advance)
        kept = (tmp_path / f"at-{last}/state.pt").exists()
        assert kept == (last >= save_every) and not (tmp_path / f"at-{last}/card.json").exists()
        torch.manual_seed(99)  # what happened in between does not matter
        assert same(whole, tuned(tmp_path / f"at-{last}", recipe, save_every=save_every, device=device))
        logs = [pd.read_parquet(tmp_path / name / "log.parquet") for name in ("whole", f"at-{last}")]
        pd.testing.assert_frame_equal(*(log.drop(columns="seconds") for log in logs))


def test_deterministic_holds_for_the_training_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = config.make_profile({"deterministic": True}, "test")
    recipe = Recipe.from_profile(profile, **SHORT)
    assert recipe.deterministic and not Recipe().deterministic
    tuned(tmp_path, recipe)
    assert json.loads((tmp_path / "card.json").read_text())["provenance"]["torch"]["deterministic"]
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.delenv(training.CUBLAS)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with (
        pytest.raises(UserError, match="deterministic.*too late.*parallel"),
        training._determinism(True, "cuda:0"),
    ):
        pass


CHILD = """
import sys
sys.path.insert(0, {tests!r})
import test_training as t
from pathlib import Path
t.tuned(Path({folder!r}), t.Recipe(**(t.SHORT | {{"steps": 100_000}})), save_every=3)
"""


def test_sigkill_anywhere_then_resume_to_the_same_bits(tmp_path: Path) -> None:
    folder, steps = tmp_path / "killed", 100_000
    code = CHILD.format(tests=str(Path(__file__).parent), folder=str(folder))
    child = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.time() + 120
    while time.time() < deadline and not (folder / "state-000009.safetensors").exists():
        assert child.poll() is None
        time.sleep(0.003)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    state = training._read_state(
        folder,
        training.identity(Recipe(**(SHORT | {"steps": steps})), tiny.model(), tiny.images(), tiny.TEXTS),
    )
    assert state is not None and 6 <= state["step"] < 1000 and not (folder / "model.safetensors").exists()
    # bring both to the same step: the killed one from its state, the other from the beginning
    ends = []
    for start in (state, None):
        recipe = Recipe(**(SHORT | {"steps": steps}))
        under_way = training._Run(
            tiny.model(), tiny.tokenizer(tiny.TEXTS), tiny.images(), recipe, tmp_path, "", "cpu"
        )
        if start:
            under_way.resume(start)
        goal = state["step"] + 4
        for pixels, labels, _, _ in under_way.loader(0):
            under_way.advance(pixels, labels)
            if under_way.step == goal:
                break
        ends.append(under_way.model.state_dict())
    assert same(*ends)


def test_a_broken_or_foreign_state_is_not_used(tmp_path: Path) -> None:
    recipe = Recipe(**SHORT)
    whole = tuned(tmp_path / "whole", recipe)
    folder = tmp_path / "broken"
    folder.mkdir()
    for content in (b"", b"not a state", b"PK\x03\x04 cut"):
        (folder / "state.pt").write_bytes(content)
        assert training._read_state(folder, "x") is None
    torch.save({"identity": "of another recipe", "weights": "gone"}, folder / "state.pt")
    assert training._read_state(folder, "x") is None
    assert same(whole, tuned(folder, recipe)) and not (folder / "state.pt").exists()


# --- faults ------------------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = models.save

    def full(model: torch.nn.Module, path: Path, name: str) -> None:
        if "000004" in path.name:
            Path(f"{path}.part").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(model, path, name)

    monkeypatch.setattr(models, "save", full)
    with pytest.raises(UserError, match="No space left.*free space"):
        tuned(tmp_path / "a", Recipe(**SHORT), save_every=2)
    assert sorted(p.name for p in (tmp_path / "a").iterdir() if p.name != "progress.json") == [
        "state-000002.safetensors",
        "state.pt",
    ]
    monkeypatch.setattr(models, "save", save)
    assert same(tuned(tmp_path / "b", Recipe(**SHORT)), tuned(tmp_path / "a", Recipe(**SHORT)))


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    broken = tiny.model()
    broken.visual.conv1.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="loss is not finite at step 1; lower lr"):
        tuned(tmp_path, Recipe(**SHORT), model=broken)
    assert not (tmp_path / "card.json").exists()
    arguments = (tiny.model(), tiny.tokenizer, tiny.images(), tiny.TEXTS)
    with pytest.raises(UserError, match="class texts"):
        fine_tune(*arguments[:3], tiny.TEXTS[:3], Recipe(**SHORT), tmp_path)
    with pytest.raises(UserError, match="fp16.*CUDA"):
        fine_tune(*arguments, Recipe(precision="fp16"), tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA GPU"):
            fine_tune(*arguments, Recipe(**SHORT), tmp_path, device="cuda")


def test_an_unreadable_training_image_is_replaced_and_listed(tmp_path: Path) -> None:
    images = tiny.images(bad=(3, 4))
    options = {"progress": False, "max_unreadable": 0.1}
    fine_tune(tiny.model(), tiny.tokenizer, images, tiny.TEXTS, Recipe(**SHORT), tmp_path / "a", **options)
    assert json.loads((tmp_path / "a/card.json").read_text())["unreadable"] == ["image-3.png", "image-4.png"]
    with pytest.raises(UserError, match="2 of the 22 images of 'train' are unreadable"):
        fine_tune(tiny.model(), tiny.tokenizer, images, tiny.TEXTS, Recipe(**SHORT), tmp_path / "b", progress=False,
                  max_unreadable=0.05)  # fmt: skip


# --- several processes -------------------------------------------------------------------------------------------

PLANS = {
    "cma": {"objective": "cma", "lam": 0.1},
    "chunked": {"objective": "cma", "lam": 0.1, "chunk": 3},
    "m2mix": {"objective": "m2mix", "lam": 0.5},
    "clip": {"objective": "clip", "class_aware": True, "scale_mode": "frozen"},
}


def _plan(name: str, folder: str) -> dict[str, torch.Tensor]:
    model, recipe = tiny.model().double(), Recipe(**(SHORT | {"steps": 4}), **PLANS[name])
    images = tiny.images(dtype=torch.float64)  # 22 images: batches of 8, 8 and 6, and the next epoch
    log = fine_tune(
        model, tiny.tokenizer, images, tiny.TEXTS, recipe, f"{folder}/{name}", progress=False, save_every=2
    )
    return {key: value for key, value in model.state_dict().items()} | {
        key: torch.tensor(log[key].to_numpy()) for key in ("loss", "clip", "gradient_norm")
    }


def _half_runs(rank: int, folder: str) -> None:
    """One of two ranks: whole fine-tunings under DDP, a refused batch, and an interrupted one."""
    torch.save({name: _plan(name, folder) for name in PLANS}, f"{folder}/rank-{rank}.pt")
    with pytest.raises(UserError, match="batch 9 is not divided by 2 processes"):
        tuned(Path(folder) / "odd", Recipe(**(SHORT | {"batch": 9})))


@pytest.mark.distributed
def test_two_processes_train_the_model_of_one(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    tiny.two_processes(_half_runs, str(tmp_path / "two"))
    found = [torch.load(tmp_path / f"two/rank-{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name in PLANS:
        alone = _plan(name, str(tmp_path / "one"))
        for rank in (0, 1):
            torch.testing.assert_close(found[rank][name], alone, rtol=1e-7, atol=1e-8, msg=f"{name} {rank}")
        card = json.loads((tmp_path / f"two/{name}/card.json").read_text())
        assert card["processes"] == 2


# --- child processes and the command line ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lane(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """A profile of the folder lane: 3 classes of coloured squares, weights in a file, everything tiny."""
    root, rng = tmp_path_factory.mktemp("lane"), np.random.default_rng(0)
    for folder in ("id/red", "id/green", "id/blue", "ood"):
        (root / folder).mkdir(parents=True)
        for number in range(8):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{number}.png")
    model, *_ = models.load("GlyphCLIP", "random")
    models.save(model, root / "start.safetensors", "GlyphCLIP")
    return {
        "data": "folder", "data_root": str(root / "id"), "ood_roots": {"noise": str(root / "ood")}, "batch": 4,
        "pretrained": str(root / "start.safetensors"), "steps": 3, "warmup": 1, "parallel": 1, "device": "cpu",
    }  # fmt: skip


def test_many_fine_tunings_run_once(
    lane: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ood_utils import data

    profile = config.make_profile(lane, "test")
    jobs = [(f"cma-{seed}", Recipe.from_profile(profile, seed=seed)) for seed in (0, 1)]
    places = fine_tune_many(jobs, profile, tmp_path, progress=False)
    assert places == {"cma-0": tmp_path / "cma-0", "cma-1": tmp_path / "cma-1"}
    cards = [json.loads((place / "card.json").read_text()) for place in places.values()]
    assert cards[0]["weights"] != cards[1]["weights"] and cards[0]["recipe"]["seed"] == 0
    model, _, _ = models.load("GlyphCLIP", profile.pretrained)
    monkeypatch.setattr(training, "_run_lanes", lambda *_: pytest.fail("finished work was started again"))
    study = data.load(profile)
    assert fine_tune_many(jobs, profile, tmp_path, study=study, model=model) == places
    # the same fine-tuning from the shell, in this process: same identity, same weights
    (tmp_path / "p.yaml").write_text(json.dumps(lane))
    words = [
        "--profile",
        str(tmp_path / "p.yaml"),
        "--seed",
        "1",
        "--folder",
        str(tmp_path / "alone"),
        "-p",
        "steps=3",
    ]
    assert train.main(words) == 0
    alone = json.loads((tmp_path / "alone/card.json").read_text())
    assert alone["identity"] == cards[1]["identity"] and alone["weights"] == cards[1]["weights"]


@pytest.mark.distributed
def test_notebook_02_trains_under_torchrun_what_one_process_trains(
    lane: dict[str, object], tmp_path: Path
) -> None:
    """``processes`` = 2 starts a torchrun of its own, with ``parallel`` = 0 too, and trains the same model."""
    lane = lane | {"lams": [0.1], "seeds": [0], "parallel": 0}
    ends, logs, cards = [], [], []
    for processes in (1, 2):
        profile, folder = (
            config.make_profile(lane | {"processes": processes}, "test"),
            tmp_path / str(processes),
        )
        (weights,) = training.carry_out(training.plan(profile), profile, folder, progress=False).weights
        assert weights == "checkpoints/lam0.1_seed0/model.safetensors"
        ends.append(load_file(folder / weights))
        logs.append(pd.read_parquet((folder / weights).with_name("log.parquet")).drop(columns="seconds"))
        cards.append(json.loads((folder / weights).with_name("card.json").read_text()))
    assert [card["processes"] for card in cards] == [1, 2] and cards[0]["identity"] == cards[1]["identity"]
    np.testing.assert_allclose(*logs, rtol=1e-3, atol=1e-4)
    start = load_file(str(lane["pretrained"]))
    # Adam moves a weight whose gradient is rounding noise as far as any other, so all weights are judged together
    moved = sum((ends[0][key] - start[key]).double().square().sum() for key in start)
    apart = sum((ends[0][key] - ends[1][key]).double().square().sum() for key in start)
    assert apart.sqrt() < 0.05 * moved.sqrt()


@pytest.mark.distributed
def test_a_mistake_under_torchrun_is_still_one_sentence(lane: dict[str, object], tmp_path: Path) -> None:
    profile = config.make_profile(lane | {"processes": 2, "lams": [0.1], "data_root": "/nowhere"}, "test")
    with pytest.raises(UserError, match="^[^\\n]*/nowhere[^\\n]*$"):
        training.carry_out(training.plan(profile), profile, tmp_path, progress=False)


def test_the_readme_s_commands_train_what_notebook_02_looks_for() -> None:
    """Folder and recipe of both torchrun commands are those of the plan, so that 02 finds its training done."""
    readme = (Path(__file__).parents[1] / "README.md").read_text().replace("\\\n", " ")
    commands = [shlex.split(line) for line in readme.splitlines() if line.startswith(".venv/bin/torchrun")]
    assert len(commands) == 2
    profile = config.load_profile("imagenet", {"data_root": "/data"})
    planned = dict(training.planned_jobs(training.plan(profile, profile.lam), profile))
    for words in commands:
        (job,) = train._jobs(train._parser().parse_args(words[words.index("ood_utils.train") + 1 :]))
        place = Path(job["folder"])
        assert place.parent == Path("outputs/imagenet/checkpoints") and job["profile"]["data_root"] == "/data"
        assert Recipe(**job["recipe"]) == planned[place.name]


def test_a_failing_child_is_reported_in_its_own_words(lane: dict[str, object], tmp_path: Path) -> None:
    profile = config.make_profile(lane | {"data_root": str(tmp_path / "nowhere")}, "test")
    with pytest.raises(UserError, match="nowhere"):
        fine_tune_many([("a", Recipe())], profile, tmp_path, progress=False)
    (tmp_path / "lane-0.log").write_text("Traceback\nMemoryError")
    crash = training._failure(tmp_path / "lane-0.log", -9)
    assert isinstance(crash, RuntimeError) and "status -9" in str(crash) and "MemoryError" in str(crash)


def test_ctrl_c_ends_the_children(
    lane: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen] = []
    start = training._start_lane
    monkeypatch.setattr(training, "_start_lane", lambda *args: started.append(start(*args)) or started[-1])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_watch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fine_tune_many([("a", Recipe())], config.make_profile(lane, "test"), tmp_path, progress=False)
    assert len(started) == 1 and started[0].poll() == -signal.SIGTERM


def test_a_child_ends_with_its_parent() -> None:
    code = "import sys, time; from ood_utils import train; train._end_with_parent(); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    child.stdin.close()
    assert child.wait(30) == 1


def test_the_command_line_says_what_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    profile = tmp_path / "p.yaml"
    profile.write_text("steps: 3")
    for words, said in {
        ("--profile", str(profile)): "--folder is missing",
        ("--profile", str(profile), "--folder", "x", "-p", "stepz=3"): "stepz",
        ("--profile", str(profile), "--folder", "x", "-p", "steps"): "no value",
        ("--profile", str(profile), "--folder", "x", "-p", "lam=0.1", "lams=[0,"): "not a YAML value",
        ("--profile", str(profile), "--folder", "x", "--lam", "2"): "lam is 2",
        ("--profile", "nowhere", "--folder", "x"): "nowhere",
    }.items():
        assert train.main(words) == 2
        assert said in capsys.readouterr().err


def test_p_takes_several_values_and_deterministic_is_one_of_them(tmp_path: Path) -> None:
    words = [
        "--profile",
        "glyphs",
        "--folder",
        "x",
        "-p",
        "lam=0.1",
        "steps=7",
        "-p",
        "lr=1e-3",
        "--deterministic",
    ]
    (job,) = train._jobs(train._parser().parse_args(words))
    assert [job["recipe"][name] for name in ("lam", "steps", "lr", "deterministic")] == [0.1, 7, 1e-3, True]
    assert job["profile"]["deterministic"]
