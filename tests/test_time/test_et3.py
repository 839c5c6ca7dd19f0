"""Comparison of ET3 with closed forms and with a second implementation."""

import math

import torch
from contexts import alone, context_of, random_images
from torch.nn import functional

from robustbench_vlm.test_time.et3 import ET3, energy, logits, plain_logits, transformed

FREE = {"alpha": 0.01, "eps": 255.0, "steps": 1.0, "temperature": 1.0}


def test_the_energy_is_the_negative_logarithm_of_the_summed_exponentials() -> None:
    scores = torch.tensor([[math.log(1), math.log(3)], [math.log(2), math.log(2)]])
    assert torch.allclose(energy(scores, 1.0), torch.tensor([-math.log(4), -math.log(4)]))
    assert torch.allclose(energy(2 * scores, 2.0), 2 * energy(scores, 1.0))


def test_a_step_has_the_length_alpha_and_lowers_the_energy() -> None:
    context, images = context_of(FREE), random_images()
    change = transformed(context, images) - images
    assert torch.allclose(change.flatten(1).norm(dim=1), torch.full((3,), 0.01, dtype=torch.float64))
    before, after = (energy(plain_logits(context, each), 1.0) for each in (images, images + change))
    assert (after < before).all()


def test_the_steps_follow_gradients_computed_for_each_image() -> None:
    settings = {**ET3.settings, "alpha": 0.3}
    context, images = context_of(settings), random_images()
    found = transformed(context, images)
    for n in range(3):
        current = images[n : n + 1]
        for _ in range(2):
            current = current.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(-plain_logits(context, current).logsumexp(dim=1).sum(), current)
            moved = (current - 0.3 * gradient / gradient.norm()).clamp(0, 1)
            current = images[n] + (moved - images[n]).clamp(-5 / 255, 5 / 255)
        assert torch.allclose(found[n], current[0])
    assert (found - images).abs().max() <= 5 / 255 + 1e-12


def test_pixels_stay_in_the_range_of_images_and_an_image_without_gradient_stays() -> None:
    changed = transformed(context_of(ET3.settings), random_images().round())
    assert changed.min() >= 0 and changed.max() <= 1
    context = context_of(ET3.settings, differentiate=False)
    flat = type(context)(**{**vars(context), "image_encoder": lambda images: 0 * images.flatten(1)[:, :6] + 1})
    assert torch.equal(transformed(flat, random_images()), random_images())


def test_logits_do_not_depend_on_other_samples_of_the_batch() -> None:
    context, images = context_of(ET3.settings), random_images()
    rows = [logits(alone(context, n), images[n : n + 1]) for n in range(3)]
    assert torch.allclose(torch.cat(rows), logits(context, images), rtol=1e-12)


def test_the_gradient_flows_through_both_steps() -> None:
    # With these settings no pixel is clipped, so finite differences are exact.
    context, images = context_of({**FREE, "steps": 2.0}), random_images().requires_grad_()
    assert torch.autograd.gradcheck(lambda pixels: logits(context, pixels), images)


def test_without_differentiation_the_change_is_a_constant() -> None:
    constant, images = context_of(FREE, differentiate=False), random_images().requires_grad_()
    change = (transformed(constant, images) - images).detach()
    features = functional.normalize(constant.image_encoder(images + change), dim=1)
    plain, through = constant.scale * features @ constant.text_features.T, logits(context_of(FREE), images)
    expected, found, whole = (
        torch.autograd.grad(scores[:, 0].sum(), images)[0] for scores in (plain, logits(constant, images), through)
    )
    assert torch.allclose(found, expected) and not torch.allclose(whole, expected)
