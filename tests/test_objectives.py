from __future__ import annotations

import inspect
import math
from pathlib import Path
from unittest import mock

import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import two_processes
from torch import Tensor

from ood_utils import objectives, registry
from ood_utils.errors import UserError
from ood_utils.objectives import Parts, m2mix, slerp


def clip_parts(image: Tensor, text: Tensor, scale: Tensor | float, labels: Tensor | None = None) -> Parts:
    return objectives.parts("clip", image, text, scale, labels=labels)


def cma_parts(
    image: Tensor, text: Tensor, scale: Tensor | float, lam: float, labels: Tensor | None = None
) -> Parts:
    return objectives.parts("cma", image, text, scale, lam=lam, labels=labels)


def m2mix_parts(
    image: Tensor, text: Tensor, scale: Tensor | float, mix: float, lam: float = 0.01, **named: Tensor
) -> Parts:
    """m2-Mix at a point of the arc that is given, not drawn."""
    with mock.patch.object(m2mix, "draw_mix", lambda seed, step: mix):
        return objectives.parts("m2mix", image, text, scale, lam=lam, **named)


def rows(count: int = 8, width: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Image and text leaves of unit rows, and a scale."""
    generator = torch.Generator().manual_seed(seed)
    made = [
        F.normalize(torch.randn(count, width, generator=generator, dtype=dtype), dim=-1) for _ in range(2)
    ]
    return [*(m.requires_grad_() for m in made), torch.tensor(20.0, dtype=dtype, requires_grad=True)]


def gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clip_is_open_clips(dtype: torch.dtype) -> None:
    leaves = rows(16, 8, dtype=dtype)
    parts = clip_parts(*leaves)
    theirs = open_clip.ClipLoss()(*leaves)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(parts.loss, theirs, **close)
    torch.testing.assert_close(gradients(parts.loss, leaves), gradients(theirs, leaves), **close)
    torch.testing.assert_close(parts.clip, (parts.lse_image + parts.lse_text) / 2 - parts.positive)


@pytest.mark.parametrize("lam", [0.0, 1e-3, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("scale", [1.0, 14.0, 100.0])
def test_cma_is_a_mix_of_clip_and_alignment(lam: float, scale: float) -> None:
    image, text, _ = rows(seed=3)
    leaves = [image, text, torch.tensor(scale, dtype=torch.float64, requires_grad=True)]
    cma = cma_parts(*leaves, lam).loss
    mix = (1 - lam) * clip_parts(*leaves).loss - lam * (leaves[2] * (image * text).sum(1)).mean()
    assert abs(cma - mix) < 1e-10
    torch.testing.assert_close(gradients(cma, leaves), gradients(mix, leaves), rtol=1e-10, atol=1e-10)


def test_the_identity_holds_for_class_aware_positives_too() -> None:
    leaves, labels = rows(), torch.tensor([0, 1, 0, 2, 2, 2, 3, 1])
    parts, cma = clip_parts(*leaves, labels), cma_parts(*leaves, 0.2, labels)
    torch.testing.assert_close(cma.loss, 0.8 * parts.loss - 0.2 * parts.positive, rtol=1e-12, atol=1e-12)


def test_lam_0_is_clip_and_lam_1_is_alignment() -> None:
    leaves = rows()
    assert cma_parts(*leaves, 0.0).loss == clip_parts(*leaves).loss
    pure = -(leaves[2] * (leaves[0] * leaves[1]).sum(1)).mean()
    torch.testing.assert_close(cma_parts(*leaves, 1.0).loss, pure)


def test_gradient_of_the_logits() -> None:
    """dL/dS = [(1 - lam)(p + q) - 2 delta] / 2B, whose entries sum to -lam (core_methods 1.2, item 3)."""
    lam, logits = 0.3, (4 * torch.randn(5, 5, dtype=torch.float64)).requires_grad_()
    unit = torch.eye(5, dtype=torch.float64)  # S = logits @ I
    (found,) = gradients(cma_parts(logits, unit, 1.0, lam).loss, [logits])
    p, q = logits.softmax(1), logits.softmax(0)
    torch.testing.assert_close(found, ((1 - lam) * (p + q) - 2 * unit) / 10, rtol=1e-12, atol=1e-12)
    assert found.sum().item() == pytest.approx(-lam, abs=1e-12)


def test_class_aware_is_soft_cross_entropy() -> None:
    leaves, labels = rows(6), torch.tensor([0, 0, 1, 2, 2, 2])
    target = (labels[:, None] == labels).double()
    target /= target.sum(1, keepdim=True)
    logits = leaves[2] * leaves[0] @ leaves[1].T
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(clip_parts(*leaves, labels).loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(clip_parts(*leaves, torch.arange(6)).loss, clip_parts(*leaves).loss)


def test_half_precision_inputs_are_computed_in_float32() -> None:
    image, text, _ = rows(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        for parts in (cma_parts(image, text, 100.0, 0.1), m2mix_parts(image, text, 100.0, 0.3)):
            assert parts.loss.dtype == torch.float32
        assert (
            cma_parts(image, text, 100.0, 0.1).loss == cma_parts(image.float(), text.float(), 100.0, 0.1).loss
        )
    assert clip_parts(image.bfloat16(), text.bfloat16(), 100.0).loss.dtype == torch.float32


def reference_m2mix(image: Tensor, text: Tensor, scale: Tensor, mix: float) -> Tensor:
    """The two cross-entropies row by row, from core_methods 5.1."""
    total = torch.zeros((), dtype=image.dtype)
    for k in range(len(image)):
        for side in (image, text):
            logits = []
            for j in range(len(image)):
                angle = torch.acos(image[j] @ text[j])
                point = (mix * angle).sin() * image[j] + ((1 - mix) * angle).sin() * text[j]
                logits.append(scale * (image[k] @ text[k] if j == k else side[k] @ point / angle.sin()))
            total += torch.stack(logits).logsumexp(0) - logits[k]
    return total / len(image)


@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
def test_m2mix_follows_its_formula(mix: float) -> None:
    leaves = rows(5)
    parts = m2mix_parts(*leaves, mix, lam=0.4)
    expected = clip_parts(*leaves).loss + 0.4 * reference_m2mix(*leaves, mix)
    torch.testing.assert_close(parts.loss, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        gradients(parts.loss, leaves), gradients(expected, leaves), rtol=1e-9, atol=1e-9
    )
    assert parts.clip == clip_parts(*leaves).clip and m2mix_parts(*leaves, mix, lam=0.0).loss == parts.clip


def test_m2mix_at_the_ends_uses_plain_embeddings() -> None:
    """mix = 0: the negatives of the image direction are the texts themselves, so it is CLIP's image half."""
    image, text, scale = rows(7)
    logits = scale * image @ text.T
    own = scale * torch.diag((image * text).sum(1))
    within = scale * text @ text.T * (1 - torch.eye(7)) + own
    target = torch.arange(7)
    expected = F.cross_entropy(logits, target) + F.cross_entropy(within, target)
    extra = m2mix_parts(image, text, scale, 0.0, lam=1.0)
    torch.testing.assert_close(extra.loss - extra.clip, expected, rtol=1e-10, atol=1e-10)


def test_mix_is_a_function_of_seed_and_step() -> None:
    draws = [m2mix.draw_mix(1, step) for step in range(500)]
    assert draws == [m2mix.draw_mix(1, step) for step in range(500)] and draws[0] != m2mix.draw_mix(2, 0)
    assert 0 <= min(draws) and max(draws) <= 1 and abs(sum(draws) / 500 - 0.5) < 0.1
    leaves, labels = rows(), torch.arange(8) // 2
    found = objectives.parts("m2mix", *leaves, lam=0.4, labels=labels, seed=1, step=7)
    assert found.loss == m2mix_parts(*leaves, draws[7], 0.4, labels=labels).loss


def test_objectives_are_the_files_of_the_package_and_called_alike() -> None:
    assert registry.names("objectives") == ["clip", "cm3", "cm3_fused", "cma", "cma_cu", "m2mix"]
    calls = {
        str(inspect.signature(registry.find("objectives", name).loss))
        for name in registry.names("objectives")
    }
    assert len(calls) == 1
    with pytest.raises(UserError, match="did you mean cma"):
        objectives.parts("cmaa", *rows())


vectors = st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda v: math.hypot(*v) > 0.1)


@settings(max_examples=60, deadline=None)
@given(vectors, vectors, st.floats(0, 1))
def test_slerp_walks_the_arc(first: list[float], second: list[float], weight: float) -> None:
    a, b = (F.normalize(torch.tensor(v, dtype=torch.float64), dim=0) for v in (first, second))
    if a @ b < -0.999:
        return  # opposite points have no single arc
    point, angle = slerp(a, b, weight), torch.acos((a @ b).clamp(-1, 1))
    assert point.norm().item() == pytest.approx(1, abs=1e-7)
    assert torch.acos((point @ b).clamp(-1, 1)).item() == pytest.approx(weight * angle.item(), abs=2e-6)
    torch.testing.assert_close(point, slerp(b, a, 1 - weight), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(slerp(a, b, 1.0), a, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(slerp(a, b, 0.0), b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-8, 1e-4, 1e-3, 0.02, 0.03, math.pi])
def test_slerp_is_finite_for_equal_near_and_opposite_points(dtype: torch.dtype, angle: float) -> None:
    a = torch.tensor([1.0, 0.0, 0.0], dtype=dtype, requires_grad=True)
    b = torch.tensor([math.cos(angle), math.sin(angle), 0.0], dtype=dtype, requires_grad=True)
    point = slerp(a, b, 0.3)
    leaves = torch.autograd.grad(point.square().sum() + point[0], [a, b])
    assert torch.isfinite(point).all() and all(torch.isfinite(g).all() for g in leaves)
    if angle < 1:
        expected = torch.tensor([math.cos(0.7 * angle), math.sin(0.7 * angle), 0.0], dtype=dtype)
        torch.testing.assert_close(point.detach(), expected, rtol=0, atol=20 * torch.finfo(dtype).eps)


def test_m2mix_gradient_is_finite_when_image_and_text_coincide() -> None:
    image, _, scale = rows(4, dtype=torch.float32)
    text = image.detach().clone().requires_grad_()
    leaves = [image, text, scale]
    assert all(torch.isfinite(g).all() for g in gradients(m2mix_parts(*leaves, 0.4, lam=1.0).loss, leaves))


@pytest.mark.parametrize("lam", [-0.1, 2, float("nan")])
def test_lam_out_of_range(lam: float) -> None:
    with pytest.raises(UserError, match="lam is"):
        cma_parts(*rows(), lam)


def test_bad_arguments() -> None:
    image, text, scale = rows()
    with pytest.raises(UserError, match="two equal"):
        clip_parts(image, text[:5], scale)
    for wrong in (-1, float("nan")):
        with pytest.raises(UserError, match="weight of 0"):
            m2mix_parts(image, text, scale, 0.5, wrong)


LABELS = torch.tensor([0, 1, 0, 2, 2, 2, 3, 1])
LOSSES = {
    "clip": lambda i, t, s, y: clip_parts(i, t, s),
    "cma": lambda i, t, s, y: cma_parts(i, t, s, 0.2),
    "class-aware": lambda i, t, s, y: cma_parts(i, t, s, 0.2, y),
    "m2mix": lambda i, t, s, y: m2mix_parts(i, t, s, 0.3, 0.5),
    "cma_cu": lambda i, t, s, y: objectives.parts("cma_cu", i, t, s, lam=0.2),
    "cm3": lambda i, t, s, y: objectives.parts("cm3", i, t, s, lam=0.2),
    "cm3_fused": lambda i, t, s, y: objectives.parts("cm3_fused", i, t, s, lam=0.2),
}


def _half_batch(rank: int, folder: str) -> None:
    """One of two processes: losses and gradients of its half, averaged over processes as DDP does."""
    weight = torch.eye(6, dtype=torch.float64).requires_grad_()  # a parameter all rows share, as in a tower
    image, text, scale = rows()
    part, found = slice(4 * rank, 4 * rank + 4), {}
    for name, loss in LOSSES.items():
        parts = loss(image[part].detach() @ weight, text[part].detach() @ weight, scale, LABELS[part])
        grads = gradients(parts.loss, [weight, scale])
        for grad in grads:
            torch.distributed.all_reduce(grad)
        found[name] = [parts.loss.detach(), *(grad / 2 for grad in grads)]
    torch.save(found, f"{folder}/rank-{rank}.pt")


@pytest.mark.distributed
def test_two_processes_give_the_loss_and_gradients_of_one(tmp_path: Path) -> None:
    two_processes(_half_batch, str(tmp_path))
    weight = torch.eye(6, dtype=torch.float64).requires_grad_()
    image, text, scale = rows()
    for name, loss in LOSSES.items():
        whole = loss(image.detach() @ weight, text.detach() @ weight, scale, LABELS).loss
        expected = [whole.detach(), *gradients(whole, [weight, scale])]
        for rank in (0, 1):
            found = torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True)[name]
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, msg=f"{name} of rank {rank}")


def test_the_plain_losses_are_the_scalars_of_their_parts() -> None:
    image, text = (
        torch.nn.functional.normalize(torch.randn(6, 5, dtype=torch.float64), dim=-1) for _ in range(2)
    )
    assert torch.equal(objectives.clip_loss(image, text, 20.0), clip_parts(image, text, 20.0).loss)
    assert torch.equal(objectives.cma_loss(image, text, 20.0, 0.1), cma_parts(image, text, 20.0, 0.1).loss)
