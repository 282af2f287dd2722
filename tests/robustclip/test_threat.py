import math

import pytest
import torch
from pydantic import BaseModel, TypeAdapter, ValidationError
from torch import Tensor

from robustclip.errors import InvalidInput
from robustclip.seeds import draw_seeds
from robustclip.threat import L2, BallSpec, Linf, Radius, parse_radius, radius_text

SEEDS = draw_seeds(3, 6)
BALLS = [Linf(radius=4 / 255), Linf(radius=0.5), L2(radius=0.5), L2(radius=20.0)]


def pictures(count: int = 6, size: int = 8) -> Tensor:
    """Lattice pictures that touch both ends of the box."""
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(count, 3, size, size, generator=generator) * 1.5 - 0.25).clamp(0, 1).mul(
        255
    ).round() / 255


def noise(like: Tensor, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(like.shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("text", "radius"),
    [
        ("4/255", 4 / 255),
        ("0.5/255", 0.5 / 255),
        (" 8 / 255 ", 8 / 255),
        ("0.0157", 0.0157),
        (0.0157, 0.0157),
        (1, 1),
        (0, 0),
        ("1e-3", 0.001),
        (".5", 0.5),
    ],
)
def test_a_radius_is_a_number_or_a_fraction(text: str | float, radius: float) -> None:
    assert parse_radius(text) == radius


@pytest.mark.parametrize(
    "text",
    [
        *("nan", "inf", "-1", "-1/255", "1e999", math.nan, math.inf, -0.1, 10**400),
        *(
            "4/0",
            "4/",
            "/255",
            "",
            "four",
            "1_0",
            "4/255/2",
            "0x10",
            "\N{ARABIC-INDIC DIGIT FOUR}/255",
            "1" * 50,
            True,
        ),
    ],
)
def test_anything_else_is_refused_naming_the_field(text: str | float) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_radius(text, "--eps")
    assert refused.value.field == "--eps"
    with pytest.raises(ValidationError, match="radius"):
        Linf.model_validate({"radius": text})


@pytest.mark.parametrize(
    ("radius", "text"),
    [
        (4 / 255, "4/255"),
        (0.5 / 255, "0.5/255"),
        (0.0, "0"),
        (0.5, "0.5"),
        (3.0, "3"),
        (1.0, "1"),
        (8 / 255, "8/255"),
        (0.1, "0.1"),
    ],
)
def test_a_radius_is_written_as_people_do_and_reads_back(radius: float, text: str) -> None:
    assert radius_text(radius) == text
    assert parse_radius(text) == pytest.approx(radius, rel=1e-5)


def test_the_schema_accepts_what_it_documents() -> None:
    class Request(BaseModel):
        eps: Radius

    assert Request.model_validate({"eps": "4/255"}).eps == 4 / 255
    with pytest.raises(ValidationError, match="eps must be a number"):
        Request.model_validate({"eps": "much"})
    documented = Linf.model_json_schema()["properties"]["radius"]["anyOf"]
    assert {branch["type"] for branch in documented} == {"number", "string"}


def test_linf_stops_at_one_and_l2_does_not() -> None:
    with pytest.raises(ValidationError):
        Linf(radius=1.01)
    assert L2(radius=1.01).radius == 1.01


def test_a_ball_is_data() -> None:
    adapter = TypeAdapter[Linf | L2](BallSpec)
    for ball in BALLS:
        assert adapter.validate_json(ball.model_dump_json()) == ball
    with pytest.raises(ValidationError):
        adapter.validate_python({"kind": "linf", "radius": "1/255", "norm": 2})


@pytest.mark.parametrize("ball", BALLS, ids=repr)
@pytest.mark.parametrize("one_sided", [False, True])
def test_samples_lie_in_ball_and_box(ball: Linf | L2, one_sided: bool) -> None:
    origin = pictures()
    drawn = ball.sample(origin, SEEDS, one_sided=one_sided)
    assert (ball.distance(drawn, origin) <= ball.radius * (1 + 1e-5) + 1e-6).all()
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert not one_sided or (drawn >= origin).all()
    assert not torch.equal(drawn, origin)


@pytest.mark.parametrize("ball", BALLS, ids=repr)
def test_a_sample_depends_on_its_own_seed_only(ball: Linf | L2) -> None:
    origin = pictures()
    state = torch.random.get_rng_state()
    drawn = ball.sample(origin, SEEDS)
    assert torch.equal(ball.sample(origin[3:4], SEEDS[3:4]), drawn[3:4])
    assert not torch.equal(ball.sample(origin, SEEDS.flip(0)), drawn)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_linf_samples_fill_the_ball_evenly() -> None:
    gray = torch.full((64, 3, 16, 16), 0.5)
    change = (Linf(radius=0.1).sample(gray, draw_seeds(0, 64)) - gray) / 0.1
    assert change.mean().abs() < 0.01
    assert change.abs().mean() == pytest.approx(0.5, abs=0.01)


def test_l2_samples_fill_the_ball_evenly() -> None:
    gray = torch.full(
        (400, 3, 1, 1), 0.5
    )  # three dimensions: half of the volume lies beyond 0.5^(1/3) of the radius
    length = L2(radius=0.1).distance(L2(radius=0.1).sample(gray, draw_seeds(0, 400)), gray) / 0.1
    assert (length > 0.5 ** (1 / 3)).float().mean() == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("ball", BALLS, ids=repr)
def test_projection_lands_in_ball_and_box_and_keeps_what_is_there(ball: Linf | L2) -> None:
    origin = pictures()
    for scale in (0.001, 0.1, 10.0):
        once = ball.project(origin + noise(origin, scale), origin)
        assert (ball.distance(once, origin) <= ball.radius * (1 + 1e-5) + 1e-6).all()
        assert once.min() >= 0
        assert once.max() <= 1
        assert torch.allclose(ball.project(once, origin), once, atol=1e-7)


@pytest.mark.parametrize("ball", [Linf(radius=0.0), L2(radius=0.0)], ids=repr)
def test_radius_zero_is_the_origin_bit_for_bit(ball: Linf | L2) -> None:
    origin = pictures()
    for moved in (
        ball.sample(origin, SEEDS),
        ball.project(noise(origin), origin),
        ball.to_uint8(noise(origin), origin),
    ):
        assert torch.equal(moved, origin)


@pytest.mark.parametrize("ball", [Linf(radius=0.3), L2(radius=3.0)], ids=repr)
def test_radius_per_row_equals_a_ball_per_row(ball: Linf | L2) -> None:
    origin = pictures()
    radii = torch.tensor([0.0, 0.01, 0.02, 0.1, 0.2, 0.5])
    moved = origin + noise(origin)
    for row, radius in enumerate(radii.tolist()):
        own, alone = type(ball)(radius=radius), slice(row, row + 1)
        assert torch.equal(
            ball.project(moved, origin, radius=radii)[alone], own.project(moved[alone], origin[alone])
        )
        assert torch.equal(
            ball.sample(origin, SEEDS, radius=radii)[alone], own.sample(origin[alone], SEEDS[alone])
        )
        assert torch.equal(
            ball.to_uint8(moved, origin, radius=radii)[alone], own.to_uint8(moved[alone], origin[alone])
        )
    assert torch.equal(ball.shrink(moved, origin, radii), ball.project(moved, origin, radius=radii))


def test_linf_ascends_by_signs_and_ignores_what_has_none() -> None:
    pixels = torch.zeros(1, 3, 1, 1)
    assert Linf(radius=1).ascend(
        pixels, torch.tensor([2.0, -1e-30, 0.0]).view(1, 3, 1, 1), 0.1
    ).flatten().tolist() == pytest.approx([0.1, -0.1, 0.0])
    assert torch.equal(Linf(radius=1).ascend(pixels, torch.full_like(pixels, torch.nan), 0.1), pixels)


def test_l2_ascends_by_length_and_stays_without_a_direction() -> None:
    pixels = torch.zeros(4, 3, 1, 1)
    gradient = torch.tensor(
        [[3.0, 4.0, 0.0], [1e-13, 0.0, 0.0], [0.0, 0.0, 0.0], [torch.nan, 1.0, 1.0]]
    ).view(4, 3, 1, 1)
    moved = L2(radius=1).ascend(pixels, gradient, torch.tensor([0.5, 0.5, 0.5, 0.5]))
    assert moved[0].flatten().tolist() == pytest.approx([0.3, 0.4, 0.0])
    assert torch.equal(moved[1:], pixels[1:])


@pytest.mark.parametrize(
    "ball",
    [Linf(radius=r / 255) for r in (0.5, 1, 2, 4, 16, 64)] + [L2(radius=r) for r in (0.001, 0.05, 0.5, 3.0)],
    ids=repr,
)
def test_eight_bit_pictures_lie_on_the_lattice_and_in_the_ball(ball: Linf | L2) -> None:
    origin = pictures()
    changed = ball.project(origin + noise(origin), origin)
    rounded = ball.to_uint8(changed, origin)
    assert torch.equal((rounded * 255).round() / 255, rounded)
    assert (ball.distance(rounded, origin) <= ball.radius + 1e-6).all()
    assert rounded.min() >= 0
    assert rounded.max() <= 1
    if ball.radius < 1 / 255:
        assert torch.equal(rounded, origin)


def test_eight_bit_rounding_never_truncates() -> None:
    origin = torch.full((1, 3, 1, 1), 127 / 255)
    assert (
        Linf(radius=4 / 255).to_uint8(torch.full_like(origin, 127.7 / 255), origin) * 255
    ).flatten().tolist() == pytest.approx([128.0] * 3)


@pytest.mark.parametrize("levels", [1, 2, 4, 8, 16, 64, 127, 255])
def test_a_radius_of_whole_levels_allows_exactly_that_many(levels: int) -> None:
    black = torch.zeros(1, 3, 2, 2)
    ball = Linf(radius=levels / 255)
    assert (ball.to_uint8(torch.ones_like(black), black) * 255).round().unique().tolist() == [levels]
    assert (
        Linf(radius=1).to_uint8(torch.ones_like(black), black, radius=torch.tensor([levels / 255])) * 255
    ).round().unique().tolist() == [levels]


def test_l2_rounding_keeps_most_of_the_change() -> None:
    origin, ball = pictures(size=32), L2(radius=1.0)
    changed = ball.project(origin + noise(origin), origin)
    assert (ball.distance(ball.to_uint8(changed, origin), origin) > 0.8).all()
