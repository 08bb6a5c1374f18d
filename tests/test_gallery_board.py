"""The gallery's board on the tiny glyph world: rows by content, failures apart, its table by plain loops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from ood_utils import comparisons, data, embeddings, metrics, registry
from ood_utils.config import load_profile
from ood_utils.errors import UserError
from ood_utils.gallery import PARTS, Adaptive, board, claims, every, find, modules, stream, table
from ood_utils.leaderboard import ScoreBook
from ood_utils.methods import Method
from ood_utils.plots import board as draw

CHEAP = ("MCM", "NegLabel", "kNN")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> board.Gallery:
    folder = tmp_path_factory.mktemp("gallery")
    profile = load_profile("glyphs-tiny", {"gallery_steps": 0.05, "gallery_seeds": 1})
    study = data.load(profile)
    zero_shot = comparisons.embed_weights(folder, study, profile, profile.pretrained)
    return board.Gallery(folder, study, profile, embeddings.mine(zero_shot, profile))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """The gallery cut to a few scores and one adaptive one; how often each was computed."""
    counts: dict[str, int] = {}

    def counted(name: str) -> Method:
        def score(evidence):  # noqa: ANN001, ANN202
            counts[name] = counts.get(name, 0) + 1
            return find("scores", name).score(evidence)

        return replace(find("scores", name), score=score)

    of = {name: counted(name) for name in CHEAP}
    needs = ("class_text",)
    last = Adaptive("last", 2026, "here", needs, lambda of: lambda rows: of.of(rows).cosines.max(axis=1))
    kinds = {"scores": of, "adaptive": {"last": last}, "adaptations": every("adaptations")}
    monkeypatch.setattr(board, "every", lambda kind: kinds[kind])
    monkeypatch.setattr(board, "find", lambda kind, name: kinds[kind].get(name) or find(kind, name))
    monkeypatch.setattr(board, "code_of", lambda kind, name: [kind, name, str(few_code.get(name))])
    few_code.clear()
    yield counts


few_code: dict[str, str] = {}


def test_every_method_has_a_file_and_its_card() -> None:
    assert (
        len(modules("scores")) >= 25 and len(modules("adaptive")) >= 7 and len(modules("adaptations")) >= 20
    )
    for kind in ("scores", "adaptive", "adaptations"):
        for name, file in modules(kind).items():
            own = find(kind, name)
            assert own.name == name and 2000 < own.year < 2030 and own.source, name
            assert len(Path(file.__file__).read_text().splitlines()) <= 135, (
                f"{file.__file__} is long for one method"
            )
            assert len(file.__doc__) > 40, f"{file.__file__} does not say its idea"
    for name, one in every("adaptations").items():
        assert (one.recipe is None) != (one.fit is None), f"{name}: a recipe or a fit, and not both"
        assert one.note and set(one.scores) <= {*every("scores")}, name


def test_a_row_is_kept_by_its_content_and_a_changed_method_runs_alone(
    shown: board.Gallery, few: dict
) -> None:
    plan = shown.plan([])
    first = shown.run(plan)
    again = shown.run(plan)
    once = 2 + len(first.embedded.sets)  # timed twice, then every set
    assert few == {"MCM": once, "kNN": once, "NegLabel": once + len(first.streams) // 2}
    for key, of in first.scores.items():
        for name, values in of.items():
            np.testing.assert_array_equal(values, again.scores[key][name])
    few_code["kNN"] = "edited"
    shown.run(plan)
    assert few["kNN"] == 2 * few["MCM"] == 2 * once


def test_scores_are_those_of_the_method_called_by_hand(shown: board.Gallery, few: dict) -> None:
    found = shown.run(shown.plan([]))
    zero_shot = found.embedded
    by_hand = find("scores", "MCM")
    for name in ("id_test", *zero_shot.of_split()):
        from ood_utils.leaderboard import evidence_of

        expected = by_hand(evidence_of(zero_shot, name, shown.profile))
        np.testing.assert_array_equal(found.scores["zero-shot", 0, "MCM"][name], expected)


def test_an_adaptation_is_fitted_once_and_again_when_its_file_is_damaged(
    shown: board.Gallery, few: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, own, others = [], find("adaptations", "LP"), board.find
    watched = replace(own, fit=lambda task: fitted.append(task.seed) or own.fit(task))
    monkeypatch.setattr(board, "find", lambda kind, name: watched if name == "LP" else others(kind, name))
    first = shown.run(shown.plan(["LP"]))
    state = shown.folder / "gallery" / "lp_seed0" / "state.safetensors"
    before = load_file(state)
    shown.run(shown.plan(["LP"]))
    assert fitted == [0]
    state.write_bytes(state.read_bytes()[:100])
    again = shown.run(shown.plan(["LP"]))
    assert not {k: v for k, v in shown.failed.items() if not k[2]}
    assert fitted == [0, 0] and all(np.array_equal(before[x], load_file(state)[x]) for x in before)
    row = first.facts[first.facts.model == "LP"].iloc[0]
    assert row.parameters > 0 and row.seconds > 0 and row.data == "full" and 0 < row.accuracy <= 1
    assert "NegLabel" not in set(first.facts[first.facts.model == "LP"].score)  # a head has no negatives
    assert set(again.scores) == set(first.scores)


def test_a_fault_is_the_reason_of_one_row_and_the_others_stand(
    shown: board.Gallery, few: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(evidence):  # noqa: ANN001, ANN202
        raise ZeroDivisionError("by hand")

    def nan(evidence):  # noqa: ANN001, ANN202
        return np.full(len(evidence.images), np.nan)

    bad = {
        "MCM": replace(find("scores", "MCM"), score=broken),
        "kNN": replace(find("scores", "kNN"), score=nan),
    }
    shapes = {
        "MSP": lambda e: np.zeros(len(e.images) - 1),
        "Energy": lambda e: np.zeros((len(e.images), 1)),
        "MaxLogit": lambda e: np.zeros(len(e.images), complex),
    }
    bad |= {name: replace(find("scores", name), score=score) for name, score in shapes.items()}
    bad["CLIPN-ATD"] = find("scores", "CLIPN-ATD")
    kinds = {"scores": {"NegLabel": find("scores", "NegLabel"), **bad}, "adaptive": {}, "adaptations": {}}
    monkeypatch.setattr(board, "every", lambda kind: kinds[kind])
    monkeypatch.setattr(board, "find", lambda kind, name: kinds[kind][name])
    monkeypatch.setattr(board, "code_of", lambda kind, name: ["broken", name])
    shown.failed.clear()
    found = shown.run(shown.plan([]))
    assert set(found.scores) == {("zero-shot", 0, "NegLabel")}
    assert shown.failed["zero-shot", 0, "MCM"] == "ZeroDivisionError: by hand"
    assert "not finite" in shown.failed["zero-shot", 0, "kNN"]
    for name in shapes:
        assert shown.failed["zero-shot", 0, name].endswith("it has to give one number for each")
    assert "needs no_text" in shown.failed["zero-shot", 0, "CLIPN-ATD"]
    assert found.book().keys == [("zero-shot", 0, "NegLabel")]


def test_a_score_gets_what_it_says_it_needs_and_no_more(shown: board.Gallery) -> None:
    model, seen = shown.zero_shot(), []

    def score(evidence):  # noqa: ANN001, ANN202
        seen.append({part for part in PARTS if getattr(evidence, part) is not None})
        return np.zeros(len(evidence.images))

    for needs in ((), ("class_text", "train"), ("fixed_text", "patches")):
        model.read(Method("asks", 2026, "here", needs, score), "id_test")
    assert seen == [set(), {"class_text", "train"}, {"class_text", "patches"}]


def test_the_code_of_a_method_is_its_file_and_what_it_uses() -> None:
    def used(kind: str, name: str) -> set[str]:
        folder = Path(board.__file__).parent
        known = {
            board.files.file_hash(path): path.relative_to(folder).as_posix() for path in folder.rglob("*.py")
        }
        return {known[digest] for digest in board.code_of(kind, name)}

    prompts = {f"adaptations/{name}.py" for name in ("sct", "locoop", "coop")} | {
        "prompts.py",
        "patches.py",
        "tuning.py",
    }
    assert used("adaptations", "SCT") == prompts
    assert used("scores", "LogitGap") == {"scores/logit_gap.py"}
    assert "online.py" in used("adaptive", "AdaNeg") and "tuning.py" not in used("adaptive", "AdaNeg")


def test_the_profile_names_what_is_trained_by_file(shown: board.Gallery) -> None:
    few = replace(shown, profile=load_profile("glyphs-tiny", {"gallery_models": ["kr_nft", "cma"]}))
    assert few.plan().model.tolist() == ["zero-shot", "KR-NFT", "CMA", "CMA + KR-NFT"]
    assert set(shown.plan().adaptation) - {""} == {*every("adaptations")}
    with pytest.raises(UserError, match="gallery_models.*did you mean kr_nft"):
        load_profile("glyphs-tiny", {"gallery_models": ["krnft"]})


def test_a_file_without_its_method_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    known, auto = registry.find, find("adaptive", "AUTO")

    def found(fault: object) -> None:
        monkeypatch.setattr(registry, "find", lambda of, name: fault() if name == "tanl" else known(of, name))

    found(lambda: ModuleType("ood_utils.gallery.adaptive.tanl"))
    with pytest.raises(UserError, match=r"gallery/adaptive/tanl\.py holds no method: AttributeError"):
        modules("adaptive")
    found(lambda: np.no_such_name)
    with pytest.raises(UserError, match=r"gallery/adaptive/tanl\.py holds no method: .*no_such_name"):
        modules("adaptive")
    twin = ModuleType("ood_utils.gallery.adaptive.tanl")
    twin.ADAPTIVE = auto
    found(lambda: twin)
    with pytest.raises(UserError, match=r"auto\.py.* both call their method 'AUTO'"):
        modules("adaptive")


def test_the_guide_s_example_is_a_method(shown: board.Gallery) -> None:
    guide = (Path(board.__file__).parents[2] / "docs" / "GALLERY.md").read_text()
    held = {"__package__": "ood_utils.gallery.scores"}
    exec(guide.split("```python\n")[1].split("```")[0], held)  # noqa: S102
    evidence = shown.zero_shot().of("id_test")
    cosines = [evidence.images @ texts.T for texts in (evidence.class_text, evidence.negative_text)]
    ahead = (cosines[0].max(axis=1) - cosines[1].max(axis=1)) / evidence.temperature
    np.testing.assert_allclose(held["METHOD"](evidence), ahead, atol=1e-3)


def test_an_unknown_name_suggests_the_nearest(shown: board.Gallery) -> None:
    with pytest.raises(UserError, match="CoOp"):
        shown.plan(["CoOpp"])
    with pytest.raises(UserError, match="NegLabel"):
        find("scores", "Neglabel")


def test_streams_are_scored_as_simulate_does_and_tabled_as_the_metrics_do(
    shown: board.Gallery, few: dict
) -> None:
    found = shown.run(shown.plan([]))
    sets = found.embedded.of_split()
    conditions, validation = len(stream.CONDITIONS), len(found.embedded.of_split("validation"))
    assert len(found.streams) == 2 * (conditions * len(sets) + validation)  # "last" and NegLabel beside it
    frame = table.streams(found, 20).set_index(["model", "score", "order", "ratio", "group"])
    of = [one for one in found.streams if one.score == "last" and one[2:4] == board.PLAIN and one.set in sets]
    expected = np.mean([metrics.ood_metrics(*one.found[:2]).auroc for one in of])
    row = frame.loc[("zero-shot", "last", *board.PLAIN, "all")]
    assert row.auroc == pytest.approx(expected, abs=1e-12)
    assert row.auroc_low <= row.auroc <= row.auroc_high and row.streams == 1
    same = table.stream_difference(found, ("zero-shot", "last"), ("zero-shot", "last"), 20)
    assert same == (0, 0)
    other = replace(shown, profile=shown.profile.model_copy(update={"seeds": [5]}))
    assert {one.seed for one in other.run(other.plan([])).streams} == {5}


# --- the table ---


def book_of(means: dict[tuple[str, int, str], float], n: int = 300) -> ScoreBook:
    """Rows with AUROC by how far their ID scores lie from the same OoD scores, two sets of 300 images."""
    random = np.random.default_rng(0)
    noise, out = random.normal(size=n), {name: random.normal(size=n) for name in ("a", "b")}
    inside = np.stack([noise + mean for mean in means.values()])
    ood = {name: np.tile(values, (len(means), 1)) for name, values in out.items()}
    clusters = {"a": np.repeat(np.arange(10), 30)}
    return ScoreBook(list(means), inside, ood, {"a": "near", "b": "far"}, 200, None, clusters)


def test_claims_hold_are_reversed_or_are_not_settled() -> None:
    book = book_of({("x", 0, "s"): 1.0, ("y", 0, "s"): 2.5, ("z", 0, "s"): 1.0001})
    asked = [
        claims.Claim("", (a, "s"), (b, "s")) for a, b in (("y", "x"), ("x", "y"), ("x", "x"), ("x", "no"))
    ]
    found = claims.claims(book, asked)
    assert found.verdict.tolist() == ["holds", "the reverse", "not settled", "not measured"]
    assert found.difference[0] == -found.difference[1] > 0 and (found.low <= found.high)[:3].all()


def test_a_combination_is_tested_against_the_rows_that_are_there() -> None:
    rows = ("zero-shot", "NegLabel"), ("zero-shot", "NegLabel, GR-CLIP")
    book = book_of({(model, 0, score): mean for (model, score), mean in zip(rows, (1.0, 2.5), strict=True)})
    picked = pd.DataFrame(
        [[*rows[1], "no", 0.9, 0.9]], columns=["model", "score", "test_time", "validation", "test"]
    )
    found = claims.tested(None, book, picked)
    assert found.b.tolist() == ["zero-shot · NegLabel"] and found.verdict.tolist() == ["better"]


def test_more_adaptive_scores_than_colours_can_be_drawn() -> None:
    names = ["NegLabel", *(f"score {k}" for k in range(9))]
    frame = pd.DataFrame([("m", name, how, 0.8, 0.7, 0.9) for name in names for how in ("a, 1:1", "b, 1:1")])
    frame.columns = ["model", "score", "stream", "auroc", "auroc_low", "auroc_high"]
    figure, shown = draw.streams(frame, "title")
    drawn = {(box[0].get_color(), box[0].get_linestyle()) for box in figure.axes[0].containers}
    assert len(drawn) == len(names) and shown.score.nunique() == len(names)


def test_cliques_are_runs_of_rows_without_a_pair_apart() -> None:
    book = book_of({(name, 0, "s"): mean for name, mean in (("x", 2.5), ("y", 1.0), ("z", 2.5), ("w", 1.0))})
    frame, runs = table.cliques(book, [(name, "s") for name in "xyzw"])
    assert frame.model.tolist() == ["x", "z", "y", "w"] and runs == [(0, 1), (2, 3)]
    assert (frame.value.diff().dropna() <= 0).all()
    assert table._runs(5, {(0, 2), (1, 3)}) == [(0, 1), (1, 2), (2, 4)]
    assert table._runs(3, set()) == [(0, 2)] and table._runs(1, set()) == []


def test_the_worst_class_is_the_most_accepted_of_large_clusters_and_whole_sets() -> None:
    book = book_of({("x", 0, "s"): 1.0, ("x", 1, "s"): 1.2})
    expected = []
    for row in book.id:
        threshold = np.sort(row)[::-1][int(np.ceil(0.95 * len(row))) - 1]
        shares = [(book.ood["a"][0][book.ood_clusters["a"] == k] >= threshold).mean() for k in range(10)]
        expected.append(max([*shares, (book.ood["b"][0] >= threshold).mean()]))
    assert table.worst_class(book)["x", "s"] == pytest.approx(np.mean(expected), abs=1e-12)


def test_scores_of_patches_are_computed_part_by_part(
    shown: board.Gallery, few: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, method = shown.zero_shot(), find("scores", "GL-MCM")
    whole = model.read(method, "id_test")
    monkeypatch.setattr(board, "PATCHED", 7)
    np.testing.assert_allclose(model.read(method, "id_test"), whole, rtol=1e-4)
    one = method(model.of("id_test", slice(3, 5), patched=True))
    np.testing.assert_allclose(one, whole[3:5], rtol=1e-4)
    assert len(whole) == len(model.embedded["id_test"])
