from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import one_thread  # noqa: F401 - a fixture

from ood_utils import config, embeddings
from ood_utils.data import ImageSet
from ood_utils.embeddings import embed, encode, encode_images, encode_texts
from ood_utils.errors import UserError


def study(**options: object) -> SimpleNamespace:
    """What embeddings read of ``data.Study``."""
    sizes, groups = {"id_val": 5, "id_test": 9, "far": 7}, {"id_val": "id", "id_test": "id", "far": "far"}
    sets = {}
    for name, count in sizes.items():
        made = tiny.images(count, name=name, **(options if name == "far" else {}))
        ids = [f"{name} {i}" for i in range(count)]
        sets[name] = ImageSet(name, groups[name], made.dataset, made.labels, ids, made.fingerprint)
    corpus = [("tree", "noun"), ("red", "adj"), ("tree", "noun")]
    names = ["cat", "dog"]
    made = SimpleNamespace(sets=sets, class_names=names, synonyms=[[], []], corpus=corpus)
    made.class_texts = lambda template: [template.replace("{}", name) for name in names]
    return made


PROFILE = config.make_profile({"embed_batch": 4, "device": "cpu"}, "test")


class Network:
    """What embeddings read of ``models.Network``; counts how often it is built."""

    def __init__(self, model: torch.nn.Module | None = None) -> None:
        self.model, self.built = model or tiny.model(), 0
        self.key = embeddings.models.weights_hash(self.model)

    @property
    def parts(self) -> tuple[torch.nn.Module, None, object]:
        self.built += 1
        return self.model, None, tiny.tokenizer


def embedded(
    given: SimpleNamespace, folder: Path, profile: config.Profile | None = None, **more: object
) -> object:
    more.setdefault("network", Network())
    return embed(given, profile or PROFILE, folder, **more)


def reads(given: SimpleNamespace) -> int:
    """How many images were read since the last question."""
    count = sum(images.dataset.reads for images in given.sets.values())
    for images in given.sets.values():
        images.dataset.reads = 0
    return count


# --- encoders ---


@pytest.mark.parametrize("tower", ["resnet", "vit"])
def test_images_are_unit_rows_in_order(tower: str) -> None:
    model, dataset = tiny.model(tower), tiny.images(11).dataset
    with torch.no_grad():
        expected = F.normalize(model.encode_image(torch.stack([dataset[i][0] for i in range(11)])), dim=-1)
    found = encode_images(model, dataset, batch=4, progress=False)
    assert found.dtype == np.float32 and found.shape == (11, 16)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    half = encode_images(model, dataset, batch=4, precision="bf16", progress=False)
    assert half.dtype == np.float32 and not np.array_equal(half, found)
    np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose((half * found).sum(1), 1, atol=2e-3)
    for parameter in model.parameters():
        assert not parameter.is_inference()  # the model can still be trained


def test_workers_give_the_same_rows() -> None:
    model, dataset = tiny.model(), tiny.images(6).dataset
    one = encode_images(model, dataset, batch=4, progress=False)
    assert np.array_equal(one, encode_images(model, dataset, batch=4, progress=False, workers=1))


def test_texts_are_encoded_once_with_a_context_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = tiny.model(), []
    texts = ["a much longer", "b", "a b", "b", "cc", "a b"]
    encode_text = embeddings.models.encode_text

    def counting(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        seen.append(len(tokens))
        return encode_text(model, tokens)

    monkeypatch.setattr(embeddings.models, "encode_text", counting)
    found = encode_texts(model, tiny.tokenizer, texts, batch=3)
    assert sum(seen) == 4 and found.dtype == np.float32
    with torch.no_grad():
        expected = F.normalize(model.encode_text(tiny.tokenizer(texts)), dim=-1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert encode_texts(model, tiny.tokenizer, []).shape[0] == 0


def test_encode_takes_texts_or_images() -> None:
    model, dataset = tiny.model(), tiny.images(3).dataset
    assert np.array_equal(
        encode(model, ["a", "b"], tiny.tokenizer), encode_texts(model, tiny.tokenizer, ["a", "b"])
    )
    assert np.array_equal(
        encode(model, dataset, progress=False), encode_images(model, dataset, progress=False)
    )


def test_unreadable_images_are_reported_never_dropped_in_silence() -> None:
    model, images = tiny.model(), tiny.images(9, bad=(0, 4, 5, 6, 7))
    lost: list[tuple[int, str]] = []
    found = encode_images(model, images.dataset, batch=4, progress=False, unreadable=lost)
    assert lost == [(i, f"image-{i}.png") for i in (0, 4, 5, 6, 7)] and len(found) == 4
    whole = encode_images(model, tiny.images(9).dataset, batch=4, progress=False)
    np.testing.assert_allclose(found, whole[[1, 2, 3, 8]], atol=1e-6)
    with pytest.raises(UserError, match="image-0.png cannot be read"):
        encode_images(model, images.dataset, progress=False)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 0.0])
def test_embeddings_without_direction_are_refused(weight: float) -> None:
    model = tiny.model("vit")
    model.visual.proj.data.fill_(weight)
    with pytest.raises(UserError, match="not finite"):
        encode_images(model, tiny.images(3).dataset, progress=False)
    model.text_projection.data.fill_(weight)
    with pytest.raises(UserError, match="not finite"):
        encode_texts(model, tiny.tokenizer, ["a"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_cuda_asked_for_but_absent() -> None:
    assert embeddings.resolve_device("auto") == "cpu"
    with pytest.raises(UserError, match="no CUDA GPU"):
        encode_images(tiny.model(), tiny.images(3).dataset, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda_gives_the_rows_of_the_cpu(precision: str) -> None:
    dataset = tiny.images(11).dataset
    cpu = encode_images(tiny.model(), dataset, progress=False)
    found = encode_images(tiny.model(), dataset, batch=4, device="cuda", precision=precision, progress=False)
    assert ((found * cpu).sum(1) > 0.995).all()


# --- the cache ---


def same(a: object, b: object) -> bool:
    return all(np.array_equal(a[name].rows, b[name].rows) for name in a.sets)


def test_embed_fills_a_folder_and_reads_it_back_without_a_network(tmp_path: Path) -> None:
    given, network = study(), Network()
    found = embedded(given, tmp_path, network=network)
    assert {name: s.rows.shape for name, s in found.sets.items()} == {
        "id_val": (5, 16), "id_test": (9, 16), "far": (7, 16),
    }  # fmt: skip
    assert found.class_text.shape == (2, 16) and found.corpus_text.shape == (3, 16)
    assert np.array_equal(found.corpus_text[0], found.corpus_text[2])
    assert np.array_equal(found.class_text, encode_texts(network.model, tiny.tokenizer, ["a cat", "a dog"]))
    assert found.scale == pytest.approx(1 / 0.07, rel=1e-5)
    assert found["far"].group == "far" and found["far"].ids == given.sets["far"].ids
    assert list(found.of_split()) == ["far"] and not found.of_split("validation")
    assert reads(given) == 21 and network.built
    idle = Network()
    again = embedded(given, tmp_path, network=idle)
    assert reads(given) == 0 == idle.built and same(found, again) and again.scale == found.scale
    assert list(embedded(given, tmp_path, sets=["far"]).sets) == ["far"]
    with pytest.raises(UserError, match="'nearby' is not in this study.*id_val"):
        embedded(given, tmp_path, sets=["nearby"])


def test_a_network_is_known_by_its_weights_file(tmp_path: Path) -> None:
    models = embeddings.models
    one, copy = models.Network("GlyphCLIP", "builtin"), tmp_path / "copy.safetensors"
    copy.write_bytes(models.GLYPH_WEIGHTS.read_bytes())
    assert one.key == models.Network("GlyphCLIP", str(copy)).key and "parts" not in vars(one)
    copy.write_bytes(copy.read_bytes()[:-1] + b"x")
    assert one.key != models.Network("GlyphCLIP", str(copy)).key
    with pytest.raises(UserError, match="does not exist"):
        _ = models.Network("GlyphCLIP", str(tmp_path / "none.safetensors")).key


def test_negatives_belong_to_the_embeddings(tmp_path: Path) -> None:
    found = embedded(study(), tmp_path)
    assert found.negatives is None and found.negative_text is None
    mined = embeddings.mine(found, PROFILE.model_copy(update={"keep": 1.0}))
    assert sorted(mined.words) == ["red", "tree"] and mined.provenance["source"] == "names"
    listed = found.with_negatives(mined)
    assert np.array_equal(listed.negative_text, found.corpus_text[mined.indices])
    assert found.with_negatives([2, 0]).negatives.words == ["tree", "tree"]
    with pytest.raises(UserError, match="beyond the 3 words"):
        found.with_negatives([3])


def test_the_cache_knows_weights_images_precision_and_prompts(tmp_path: Path) -> None:
    given = study()
    first = embedded(given, tmp_path)
    reads(given)
    other = embedded(given, tmp_path, network=Network(tiny.model(seed=1)))
    assert reads(given) == 21 and not same(first, other)
    embedded(given, tmp_path, PROFILE.model_copy(update={"precision": "bf16"}))
    assert reads(given) == 21
    prompted = embedded(given, tmp_path, PROFILE.model_copy(update={"prompt": "the {}"}))
    assert reads(given) == 0 and not np.array_equal(first.class_text, prompted.class_text)
    assert np.array_equal(first.corpus_text, prompted.corpus_text)


def _truncate(file: Path, other: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def _empty(file: Path, other: Path) -> None:
    file.write_bytes(b"")


def _flip(file: Path, other: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def _foreign(file: Path, other: Path) -> None:
    file.write_bytes(other.read_bytes())


@pytest.mark.parametrize("harm", [_truncate, _empty, _flip, _foreign])
def test_a_broken_or_foreign_cache_file_is_rebuilt(harm: object, tmp_path: Path) -> None:
    given = study()
    first = embedded(given, tmp_path)
    reads(given)
    (far,), (val,) = tmp_path.glob("far-*"), tmp_path.glob("id_val-*")
    whole = far.read_bytes()
    harm(far, val)
    again = embedded(given, tmp_path)
    assert reads(given) == 7 and far.read_bytes() == whole
    assert same(first, again)


def test_an_interrupted_pass_resumes_at_its_last_whole_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "SHARD", 4)
    given = study()
    whole = embedded(given, tmp_path / "whole")
    assert len(list((tmp_path / "whole").glob("id_test-*"))) == 3 and reads(given) == 21
    item, dataset = tiny.Keyed.__getitem__, given.sets["id_test"].dataset

    def killed(self: tiny.Keyed, key: int) -> tuple[torch.Tensor, int]:
        if self is dataset and key == 6:
            raise KeyboardInterrupt
        return item(self, key)

    monkeypatch.setattr(tiny.Keyed, "__getitem__", killed)
    with pytest.raises(KeyboardInterrupt):
        embedded(given, tmp_path / "cut")
    monkeypatch.setattr(tiny.Keyed, "__getitem__", item)
    reads(given)
    again = embedded(given, tmp_path / "cut")
    assert reads(given) == 5 + 7  # all but id_val and the first shard of id_test
    assert same(whole, again)


def test_embed_counts_unreadable_images(tmp_path: Path) -> None:
    given = study(bad=(1, 5))
    given.sets["far"] = replace(given.sets["far"], clusters=np.arange(7) // 3)
    with pytest.raises(UserError, match="2 of the 7 images of 'far' are unreadable.*image-1.png"):
        embedded(given, tmp_path)
    patient = PROFILE.model_copy(update={"max_unreadable": 0.3})
    for _ in range(2):  # computed, then from the cache
        far = embedded(given, tmp_path, patient)["far"]
        assert far.index.tolist() == [0, 2, 3, 4, 6] and len(far) == 5 == len(far.labels)
        assert far.ids == [f"far {i}" for i in far.index] and far.together.tolist() == [0, 0, 1, 1, 2]


def test_images_are_resampled_by_class_in_distribution_and_alone_without() -> None:
    rows, labels = np.eye(5, dtype=np.float32), np.array([3, 1, -1, 3, -1])
    mixed = embeddings.EmbeddedSet(rows, labels, [""] * 5, np.arange(5), "id")
    assert mixed.together.tolist() == [3, 1, 6, 3, 8]  # numbers say nothing but who belongs together
    own = replace(mixed, clusters=np.array([0, 0, 1, 1, 1]))
    assert own.together is own.clusters
    alone = replace(mixed, labels=np.full(5, -1))
    assert alone.together.tolist() == list(range(5))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        embedded(study(), tmp_path / "file")


def test_class_texts_may_be_the_mean_over_open_clips_templates(tmp_path: Path) -> None:
    from open_clip import OPENAI_IMAGENET_TEMPLATES, build_zero_shot_classifier

    from ood_utils import data, models
    from ood_utils.config import make_profile

    profile = make_profile({"id_classes": 5, "corpus_words": 5, "device": "cpu", "ensemble": True}, "test")
    study, (network, _, tokens) = data.load(profile), models.load()
    found = embeddings.embed(study, profile, tmp_path, sets=[]).class_text
    theirs = build_zero_shot_classifier(
        network, tokens, study.class_names, OPENAI_IMAGENET_TEMPLATES, None, "cpu"
    )
    np.testing.assert_allclose(found, theirs.T.numpy(), atol=1e-5)
