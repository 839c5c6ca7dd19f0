"""Threat models: parsing of eps, and projection onto the allowed perturbations."""

import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustbench_vlm.attacks.projections import distance, project
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.threat import Threat, doubtful_eps, exact_eps, norm_named, parse_eps

THREATS = st.one_of(
    st.builds(Threat, st.just("Linf"), st.fractions(0, 1, max_denominator=255)),
    st.builds(Threat, st.just("L2"), st.fractions(0, 5, max_denominator=255)),
)


def images_and_moved(seed: int, size: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(4, 3, 5, 5, generator=generator, dtype=torch.float64)
    return images, images + size * torch.randn(4, 3, 5, 5, generator=generator, dtype=torch.float64)


@given(threat=THREATS, seed=st.integers(0, 1000), size=st.sampled_from([1e-3, 0.1, 1.0, 1e6]))
def test_a_projected_image_is_within_eps_and_the_pixel_range(threat: Threat, seed: int, size: float) -> None:
    images, moved = images_and_moved(seed, size)
    projected = project(threat, images, moved)
    assert ((projected >= 0) & (projected <= 1)).all()
    assert (distance(threat, images, projected) <= float(threat.eps) + 1e-9).all()
    again = project(threat, images, projected)
    assert torch.allclose(again, projected, atol=1e-12)


@given(threat=THREATS, seed=st.integers(0, 1000))
def test_an_allowed_image_is_not_changed_by_the_projection(threat: Threat, seed: int) -> None:
    images, moved = images_and_moved(seed, 0.1)
    inside = images + 0.5 * (project(threat, images, moved) - images)
    assert torch.allclose(project(threat, images, inside), inside, atol=1e-12)


@given(seed=st.integers(0, 1000), eps=st.fractions(0, 1, max_denominator=255))
def test_the_linf_projection_is_the_nearest_point(seed: int, eps: Fraction) -> None:
    images, moved = images_and_moved(seed, 0.3)
    nearest = torch.minimum(torch.maximum(moved, (images - float(eps)).clamp(0, 1)), (images + float(eps)).clamp(0, 1))
    assert torch.allclose(project(Threat("Linf", eps), images, moved), nearest, atol=1e-12)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinite_pixels_are_replaced_by_clean_pixels(norm: str, value: float) -> None:
    images, moved = images_and_moved(0, 0.0)
    moved[0, 0, 0, 0] = value
    assert torch.equal(project(Threat(norm, Fraction(1, 10)), images, moved), images)


@pytest.mark.parametrize(
    ("text", "eps"),
    [
        ("4/255", Fraction(4, 255)),
        ("0.03", Fraction(3, 100)),
        ("0.5/255", Fraction(1, 510)),
        ("0", Fraction(0)),
        ("1", Fraction(1)),
        (" 1/2 ", Fraction(1, 2)),
        ("3", Fraction(3)),
        ("1.5", Fraction(3, 2)),
        ("3/1", Fraction(3)),
        ("1e-2", Fraction(1, 100)),
        ("+.5/1", Fraction(1, 2)),
    ],
)
def test_eps_is_parsed_exactly(text: str, eps: Fraction) -> None:
    assert parse_eps(text) == eps


@pytest.mark.parametrize(
    "text",
    [
        *("", "four", "1/0", "4/", "/255", "1/2/3", "nan", "inf", "1_0", "\N{FULLWIDTH DIGIT FOUR}/255", "0x1", "1 /2"),
        *("1e999999999", "1/1e-999999999", "9" * 5000),
    ],
)
def test_an_invalid_eps_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match=r"is not a number: .* as in --eps 4/255"):
        parse_eps(text)


@pytest.mark.parametrize(("text", "hint"), [("8", "write 8/255"), ("4.5", "write 4.5/255"), ("255", "write 255/255")])
def test_a_linf_eps_in_pixel_steps_is_refused_with_the_fraction(text: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"eps {text} is larger than 1.*{hint}"):
        Threat("Linf", parse_eps(text))


@pytest.mark.parametrize(("norm", "text"), [("Linf", "300"), ("L2", "1e7"), ("L2", "9" * 300 + "e99")])
def test_an_eps_larger_than_any_distance_is_refused(norm: str, text: str) -> None:
    with pytest.raises(UserError, match="is larger than 1"):
        Threat(norm, parse_eps(text))


@given(st.sampled_from(("Linf", "L2")), st.fractions(0, 1000, max_denominator=10**6))
def test_every_radius_of_a_norm_is_accepted_in_each_notation_and_written_back(norm: str, eps: Fraction) -> None:
    if norm == "Linf" and eps > 1:
        with pytest.raises(UserError, match="larger than 1"):
            Threat(norm, eps)
        return
    assert parse_eps(Threat(norm, eps).eps_text) == eps
    assert parse_eps(f"{eps.numerator}/{eps.denominator}") == parse_eps(str(eps)) == eps


@given(st.integers(0, 255))
def test_eps_in_whole_pixel_steps_is_written_over_255(steps: int) -> None:
    threat = Threat("Linf", Fraction(steps, 255))
    assert threat.eps_text == f"{steps}/255" and parse_eps(threat.eps_text) == threat.eps


@pytest.mark.parametrize(
    ("text", "shown"),
    [("5/510", "2.5/255"), ("1/510", "0.5/255"), ("0.25/255", "0.25/255"), ("1/7", "1/7"), ("1", "255/255")],
)
def test_eps_in_fractions_of_a_pixel_step_is_written_over_255(text: str, shown: str) -> None:
    assert Threat("Linf", parse_eps(text)).eps_text == shown


@given(st.fractions(0, 1))
def test_written_eps_is_parsed_to_the_same_value(eps: Fraction) -> None:
    assert parse_eps(Threat("Linf", eps).eps_text) == eps


@pytest.mark.parametrize(
    ("norm", "eps"), [("L1", "1/2"), ("linf", "1/2"), ("Linf", "-1/255"), ("Linf", "2"), ("L2", "-1")]
)
def test_invalid_threat_models_are_refused(norm: str, eps: str) -> None:
    with pytest.raises(UserError):
        Threat(norm, Fraction(eps))


@given(st.integers(0, 2550), st.integers(1, 2550))
def test_a_float_is_the_fraction_that_was_meant(numerator: int, denominator: int) -> None:
    eps = Fraction(numerator, denominator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert exact_eps(float(eps)) == exact_eps(np.float64(float(eps))) == eps
        if eps <= 1 and denominator <= 255:
            assert exact_eps(np.float32(float(eps))) == eps


@pytest.mark.parametrize("eps", [None, True, float("nan"), [0.03], torch.tensor(0.03), 1j])
def test_other_values_are_not_a_radius(eps: object) -> None:
    with pytest.raises(UserError, match="eps must be a number or a text"):
        exact_eps(eps)


@pytest.mark.parametrize(("eps", "steps"), [("8/256", "8"), ("0.03", "8"), (" 1/32 ", "8"), ("4/256", "4")])
def test_a_radius_close_to_a_number_of_steps_is_questioned(eps: str, steps: str) -> None:
    assert f"write {steps}/255" in doubtful_eps(eps)
    with pytest.warns(UserWarning, match=f"write {steps}/255"):
        exact_eps(float(Fraction(eps.strip())))


@pytest.mark.parametrize("eps", ["8/255", "2.5/255", "15.9375/255", "1/2", "3", "0", "0.1", "1e-6"])
def test_usual_radii_are_not_questioned(eps: str) -> None:
    assert doubtful_eps(eps) == ""


@pytest.mark.parametrize(
    ("text", "norm"),
    [("linf", "Linf"), ("LINF", "Linf"), ("l_inf", "Linf"), ("inf", "Linf"), ("l2", "L2"), ("L_2", "L2"), ("L1", "L1")],
)
def test_spellings_of_norms(text: str, norm: str) -> None:
    assert norm_named(text) == norm
