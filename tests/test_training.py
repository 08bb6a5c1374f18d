from __future__ import annotations

import errno
import json
import os
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
from safetensors.torch import load_file
from tiny import one_thread  # noqa: F401 - a fixture

from ood_utils import config, models, objectives, training
from ood_utils.config import Recipe
from ood_utils.embeddings import encode
from ood_utils.errors import UserError
from ood_utils.training import batch_keys, fine_tune

os.environ.setdefault(training.CUBLAS, ":4096:8")  # before any test touches a GPU: cuBLAS reads it once
SHORT = {"steps": 6, "batch": 8, "lr": 1e-3, "warmup": 2}
WORDS = ["moss", "fog", "an oar", "the nice quay"]
ENDLESS = Recipe(**(SHORT | {"steps": 100_000}))


def tuned(folder: Path, recipe: Recipe, **options: object) -> dict[str, torch.Tensor]:
    """The weights after a fine-tuning of the tiny model."""
    model = options.pop("model", None) or tiny.model()
    options = {"words": WORDS, "progress": False} | options
    fine_tune(model, tiny.tokenizer, tiny.images(), tiny.TEXTS, recipe, folder, **options)
    return model.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


# --- recipe, schedule, sampler ---


def test_steps_of_a_training() -> None:
    assert training.total_steps(Recipe(epochs=3, batch=8), 22) == 9
    assert training.total_steps(config.Profile(steps=5), 22) == 5


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


# --- one step ---


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
    image, text, scale = training.Towers(model, recipe)(images, tiny.tokenizer(tiny.TEXTS)[distinct])
    rows = image, text[inverse], scale
    loss = objectives.parts(recipe.objective, *rows, lam=recipe.lam, seed=recipe.seed).loss
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
    loss = objectives.parts("cma", image, text, model.logit_scale.exp(), lam=recipe.lam).loss
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
    groups = training._optimiser(model, Recipe(weight_decay=0.2)).param_groups
    decayed, plain = (
        [by_id[id(p)] for group in groups for p in group["params"] if group["weight_decay"] == decay]
        for decay in (0.2, 0)
    )
    assert "logit_scale" in plain and "ln_final.weight" in plain and "visual.conv1.weight" in decayed
    assert all(name.endswith(("bias", "weight", "scale")) for name in plain) and len(decayed) + len(
        plain
    ) == len(by_id)
    (paper,) = training._optimiser(model, Recipe(decay_all=True)).param_groups
    assert len(paper["params"]) == len(by_id) and paper["weight_decay"] == 0.1


@pytest.mark.parametrize("image_lr,text_lr", [(0.0, None), (None, 0.0), (1e-5, 1e-3)])
def test_each_tower_has_its_own_rate(tmp_path: Path, image_lr: float | None, text_lr: float | None) -> None:
    before = {key: value.clone() for key, value in tiny.model().state_dict().items()}
    after = tuned(tmp_path, Recipe(**SHORT, image_lr=image_lr, text_lr=text_lr))
    moved = {key: float((after[key] - before[key]).abs().max()) for key in before if "running" not in key}
    del moved["logit_scale"]
    for tower, rate in ((True, image_lr), (False, text_lr)):
        most = max(by for key, by in moved.items() if key.startswith("visual") == tower)
        # AdamW moves a weight by at most about its rate a step, times 1 + decay
        assert most == 0 if rate == 0 else 0 < most < 10 * SHORT["steps"] * (rate or SHORT["lr"])


def test_relation_is_nothing_at_the_start_and_its_gradient_keeps_the_words_in_place(tmp_path: Path) -> None:
    recipe = Recipe(**(SHORT | {"steps": 60}), objective="clip", relation=5.0, relation_words=3)
    logs = []
    for name, weight in {"without": 1e-9, "with": 5.0}.items():
        tuned(tmp_path / name, recipe.model_copy(update={"relation": weight}))
        logs.append(pd.read_parquet(tmp_path / name / "log.parquet"))
    for log in logs:
        assert abs(log.relation[0]) < 1e-6 and log.relation[1:].gt(0).all()
    assert logs[1].relation[40:].mean() < 0.7 * logs[0].relation[40:].mean()
    assert np.allclose(logs[1]["loss"], logs[1]["clip"] + 5 * logs[1].relation, atol=1e-5)
    with pytest.raises(UserError, match="relation = 5 needs corpus words"):
        tuned(tmp_path / "none", recipe, words=[])


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_wise_is_the_point_between_the_weights(tmp_path: Path, share: float) -> None:
    start, whole = tiny.model().state_dict(), tuned(tmp_path / "whole", Recipe(**SHORT))  # wise is 1
    half = tuned(tmp_path / "half", Recipe(**SHORT, wise=share))
    kept = load_file(tmp_path / "half/model.safetensors")
    for key, value in start.items():
        if value.is_floating_point():
            point = (1 - share) * value + share * whole[key]
            torch.testing.assert_close(half[key], point, rtol=1e-5, atol=1e-7)
            assert share or torch.equal(half[key], value)
            assert torch.equal(kept[key], half[key])


# --- a run ---


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
    wanted = "step epoch lr loss clip lse_image lse_text positive scale relation gradient_norm seconds"
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


@pytest.mark.slow
def test_the_paper_s_model_trains_and_encodes(tmp_path: Path) -> None:
    """ViT-B/16 with QuickGELU and random weights: two steps in chunks, then unit rows. 20 s, 4 GB."""
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


# --- resume ---


class Stop(Exception):
    pass


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "options,save_every",
    [({}, 1), ({"objective": "m2mix"}, 2), ({"objective": "clip"}, 4), ({"relation": 0.3, "wise": 0.5}, 2)],
)
def test_a_stopped_run_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], save_every: int, device: str
) -> None:
    recipe = Recipe(**options, **SHORT, deterministic=device == "cuda")
    whole = tuned(tmp_path / "whole", recipe, device=device)
    advance = training.FineTuning.advance
    for last in (5, 2):

        def stop(self: training.FineTuning, *batch: torch.Tensor, last: int = last) -> None:
            if self.step == last:
                raise Stop
            advance(self, *batch)

        monkeypatch.setattr(training.FineTuning, "advance", stop)
        with pytest.raises(Stop):
            tuned(tmp_path / f"at-{last}", recipe, save_every=save_every, device=device)
        monkeypatch.setattr(training.FineTuning, "advance", advance)
        kept = (tmp_path / f"at-{last}/state.pt").exists()
        assert kept == (last >= save_every) and not (tmp_path / f"at-{last}/card.json").exists()
        torch.manual_seed(99)  # what happened in between does not matter
        assert same(whole, tuned(tmp_path / f"at-{last}", recipe, save_every=save_every, device=device))
        logs = [pd.read_parquet(tmp_path / name / "log.parquet") for name in ("whole", f"at-{last}")]
        pd.testing.assert_frame_equal(*(log.drop(columns="seconds") for log in logs))


def test_deterministic_holds_for_the_training_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = config.make_profile({"deterministic": True}, "test").recipe(**SHORT)
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
t.torch.set_num_threads(1)
t.tuned(Path({folder!r}), t.ENDLESS, save_every=3)
"""


@pytest.mark.slow
def test_sigkill_anywhere_then_resume_to_the_same_bits(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    code = CHILD.format(tests=str(Path(__file__).parent), folder=str(folder))
    child = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"})
    progress, deadline = folder / "progress.json", time.time() + 120
    while not (progress.exists() and json.loads(progress.read_text())["step"] >= 9):
        assert child.poll() is None and time.time() < deadline
        time.sleep(0.003)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    key = training.identity(ENDLESS, models.weights_hash(tiny.model()), tiny.images(), tiny.TEXTS, [])
    state = training._read(folder, key)
    assert state is not None and 6 <= state["step"] < 1000 and not (folder / "model.safetensors").exists()
    # bring both to the same step: the killed one from its state, the other from the beginning
    ends = []
    for start in (state, None):
        under_way = training.FineTuning(
            tiny.model(), tiny.tokenizer(tiny.TEXTS), tiny.images(), ENDLESS, tmp_path, ""
        )
        if start:
            under_way.resume(start)
        for pixels, labels, _, _ in under_way.loader(0):
            under_way.advance(pixels, labels)
            if under_way.step == state["step"] + 4:
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
        assert training._read(folder, "x") is None
    torch.save({"key": "of another recipe"}, folder / "state.pt")
    assert training._read(folder, "x") is None
    assert same(whole, tuned(folder, recipe)) and not (folder / "state.pt").exists()


def flip(path: Path, place: float) -> None:
    """Turn one bit of a file, its time and size kept."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["model.safetensors", "log.parquet", "card.json"])
def test_finished_work_that_is_damaged_is_made_again(tmp_path: Path, name: str, place: float) -> None:
    recipe = Recipe(**SHORT)
    whole = tuned(tmp_path, recipe)
    key = json.loads((tmp_path / "card.json").read_text())["identity"]
    assert training.finished(tmp_path, key)
    flip(tmp_path / name, place)
    if (name, place) != ("card.json", 0.5):  # a fact of the card that decides nothing
        assert not training.finished(tmp_path, key)
    assert same(whole, tuned(tmp_path, recipe)) and training.finished(tmp_path, key)


def test_a_flipped_bit_of_a_state_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    torch.save({"key": "x", "model": torch.zeros(10_000)}, path)
    assert training._read(tmp_path, "x")["model"].sum() == 0
    flip(path, 0.5)
    assert torch.load(path, weights_only=True)["model"].sum() != 0  # torch itself says nothing
    assert training._read(tmp_path, "x") is None


# --- faults ---


def test_a_full_disk_keeps_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = torch.save

    def full(state: dict, path: Path) -> None:
        if state["step"] == 4:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="No space left.*free space"):
        tuned(tmp_path / "a", Recipe(**SHORT), save_every=2)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["progress.json", "state.pt"]
    monkeypatch.setattr(models, "save_file", lambda _, path, **__: full({"step": 4}, path))
    with pytest.raises(UserError, match="No space left.*free space"):
        tuned(tmp_path / "a", Recipe(**SHORT))
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["progress.json", "state.pt"]
    monkeypatch.undo()
    assert same(tuned(tmp_path / "b", Recipe(**SHORT)), tuned(tmp_path / "a", Recipe(**SHORT)))
    left = ["card.json", "log.parquet", "model.safetensors"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == left


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    broken = tiny.model()
    broken.visual.conv1.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="loss is not finite at step 1; lower lr"):
        tuned(tmp_path, Recipe(**SHORT), model=broken)
    assert not (tmp_path / "card.json").exists()
    arguments = (tiny.model(), tiny.tokenizer, tiny.images(), tiny.TEXTS)
    with pytest.raises(UserError, match="class texts"):
        fine_tune(*arguments[:3], tiny.TEXTS[:3], Recipe(**SHORT), tmp_path)
    with pytest.raises(UserError, match="image_lr and text_lr are both 0"):
        fine_tune(*arguments, Recipe(image_lr=0.0, text_lr=0.0), tmp_path)
    with pytest.raises(UserError, match="fp16.*CUDA"):
        fine_tune(*arguments, Recipe(precision="fp16"), tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA GPU"):
            fine_tune(*arguments, Recipe(**SHORT), tmp_path, device="cuda")


def test_an_unreadable_training_image_is_replaced_and_listed(tmp_path: Path) -> None:
    images = tiny.images(bad=(3, 4))
    train = (tiny.model(), tiny.tokenizer, images, tiny.TEXTS, Recipe(**SHORT))
    fine_tune(*train, tmp_path / "a", progress=False, max_unreadable=0.1)
    assert json.loads((tmp_path / "a/card.json").read_text())["unreadable"] == ["image-3.png", "image-4.png"]
    with pytest.raises(UserError, match="2 of the 22 images of 'train' are unreadable"):
        fine_tune(*train, tmp_path / "b", progress=False, max_unreadable=0.05)


# --- several processes ---

PLANS = {
    "cma": {"objective": "cma", "lam": 0.1},
    "chunked": {"objective": "cma", "lam": 0.1, "chunk": 3},
    "m2mix": {"objective": "m2mix", "lam": 0.5},
    "clip": {"objective": "clip", "class_aware": True, "scale_mode": "frozen"},
    "relation": {"objective": "clip", "relation": 0.5, "relation_words": 3, "image_lr": 0.0},
}


def _plan(name: str, folder: str) -> dict[str, torch.Tensor]:
    model, recipe = tiny.model().double(), Recipe(**(SHORT | {"steps": 4}), **PLANS[name])
    images = tiny.images(dtype=torch.float64)  # 22 images: batches of 8, 8 and 6, and the next epoch
    log = fine_tune(
        model, tiny.tokenizer, images, tiny.TEXTS, recipe, f"{folder}/{name}",
        progress=False, save_every=2, words=WORDS,
    )  # fmt: skip
    return {key: value for key, value in model.state_dict().items()} | {
        key: torch.tensor(log[key].to_numpy()) for key in ("loss", "clip", "relation", "gradient_norm")
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
