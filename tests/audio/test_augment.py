import random

import pytest
import torch

from decar.audio import RandomGain, RandomResizeCrop, SpecAugment
from decar.errors import ConfigError


def runs(mask: torch.Tensor) -> list[tuple[int, int]]:
    """(size,) bool → begin and length of each run of True."""
    found, begin = [], None
    for i, on in enumerate([*mask.tolist(), False]):
        if on and begin is None:
            begin = i
        if not on and begin is not None:
            found.append((begin, i - begin))
            begin = None
    return found


def single(axis: str, width: int, n: int = 4_000, size: tuple[int, int] = (10, 12)) -> list[list[tuple[int, int]]]:
    """Runs of one mask of one kind, for each of n clips."""
    augment = SpecAugment(int(axis == "mel"), width, int(axis == "time"), width)
    x = torch.arange(size[0] * size[1]).float().reshape(1, 1, *size).repeat(n, 1, 1, 1) * 10
    changed = (augment(x, torch.Generator().manual_seed(0)) != x)[:, 0]
    lines = changed.any(dim=2) if axis == "mel" else changed.any(dim=1)
    return [runs(line) for line in lines]


@pytest.mark.parametrize(("axis", "size"), [("mel", 10), ("time", 12)])
def test_widths_and_places_are_uniform(axis: str, size: int) -> None:
    found = single(axis, width=3)
    widths = torch.tensor([run[0][1] if run else 0 for run in found])
    counts = torch.bincount(widths, minlength=4)
    assert len(counts) == 4  # 0 to 3, and no wider
    assert counts.min() > 850  # of 1000 expected; 5 standard deviations are 137
    assert counts.max() < 1150
    begins = torch.bincount(torch.tensor([run[0][0] for run in found if run and run[0][1] == 3]), minlength=size - 2)
    assert len(begins) == size - 2  # every place where it fits, the last one included
    assert begins.min() > 0.5 * begins.float().mean()


def test_widths_of_the_released_code() -> None:
    """Against its rule in loops: width f up to F - 1, then an end within it; nothing more after a width of 0."""
    wide, size, n = 6, 10, 20_000
    augment = SpecAugment(2, wide, 0, 0, released=True)
    x = torch.arange(size * 4).float().reshape(1, 1, size, 4).repeat(n, 1, 1, 1) * 10
    changed = (augment(x, torch.Generator().manual_seed(0)) != x)[:, 0].any(dim=2)
    rng, expected = random.Random(0), torch.zeros(n, size, dtype=torch.bool)
    for line in expected:
        for _ in range(2):
            f = rng.randrange(wide)
            begin = rng.randrange(size - f)
            if f == 0:
                break
            line[begin : rng.randrange(begin, begin + f)] = True
    for found, wanted in ((changed.sum(1), expected.sum(1)), (changed.nonzero()[:, 1], expected.nonzero()[:, 1])):
        shares = [torch.bincount(part, minlength=size + 1) / n for part in (found, wanted)]
        torch.testing.assert_close(*shares, atol=0.015, rtol=0)  # 5 standard deviations of a share of a half: 0.018
    assert changed.sum(1).max() <= 2 * (wide - 2)


def test_masked_cells_are_the_mean_of_the_clip_and_others_are_kept() -> None:
    # in double precision: of 400,000 floats one may well equal its clip's mean by chance
    x = torch.randn(64, 1, 64, 98, dtype=torch.float64) + torch.arange(64).reshape(-1, 1, 1, 1)
    before = x.clone()
    out = SpecAugment()(x, torch.Generator().manual_seed(1))
    assert torch.equal(x, before)
    changed = out != x
    mean = x.mean(dim=(1, 2, 3), keepdim=True).expand_as(x)
    torch.testing.assert_close(out[changed], mean[changed], rtol=1e-5, atol=1e-5)
    for cell in changed[:, 0]:  # whole bands and whole frames only
        rows, columns = cell.all(dim=1), cell.all(dim=0)
        assert torch.equal(cell, rows[:, None] | columns[None, :])
        assert rows.sum() <= 60
        assert columns.sum() <= 80


def test_clips_get_masks_of_their_own() -> None:
    x = torch.randn(1, 1, 64, 98).repeat(32, 1, 1, 1)
    changed = SpecAugment()(x, torch.Generator().manual_seed(2)) != x
    assert len({cell.numpy().tobytes() for cell in changed}) == 32


def test_the_generator_decides() -> None:
    x = torch.randn(4, 1, 64, 98)
    augment = SpecAugment()
    first, again, other = (augment(x, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_eval_mode_leaves_all_as_it_is() -> None:
    x = torch.randn(4, 1, 64, 98)
    assert torch.equal(SpecAugment().eval()(x), x)


def test_widths_are_capped_at_the_axis() -> None:
    out = SpecAugment(2, 100, 2, 1000)(torch.randn(200, 1, 5, 7))
    assert out.shape == (200, 1, 5, 7)
    assert torch.isfinite(out).all()
    assert any(run == [(0, 12)] for run in single("time", width=1000))


def test_no_masks_and_half_precision() -> None:
    x = torch.randn(2, 1, 8, 9)
    assert torch.equal(SpecAugment(0, 30, 0, 40)(x), x)
    assert torch.equal(SpecAugment(2, 0, 2, 0)(x), x)
    assert SpecAugment()(x.bfloat16()).dtype == torch.bfloat16


def test_negative_numbers() -> None:
    with pytest.raises(ConfigError, match="released=half: give true or false"):
        SpecAugment(released="half")  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        SpecAugment(freq_width=-1)


def test_gain_adds_one_normal_number_to_each_clip() -> None:
    x = torch.randn(4_000, 1, 3, 2)
    before = x.clone()
    added = RandomGain(1.2)(x, torch.Generator().manual_seed(0)) - x
    assert torch.equal(x, before)
    draws = added[:, 0, 0, 0]
    torch.testing.assert_close(added, draws[:, None, None, None].expand_as(x), atol=1e-5, rtol=0)
    assert abs(float(draws.mean())) < 0.06
    assert float(draws.std()) == pytest.approx(1.2, rel=0.04)


def test_gain_depends_on_its_generator_and_rests_when_judging() -> None:
    gain, x = RandomGain(1.0), torch.zeros(5, 1, 4, 4)
    one, two, three = (gain(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    assert torch.equal(RandomGain(0.0)(x), x)
    assert gain(x.bfloat16()).dtype == torch.bfloat16
    assert gain.eval()(x) is x


@pytest.mark.parametrize("deviation", [-1.0, float("nan"), float("inf")])
def test_gain_of_no_deviation_that_could_be(deviation: float) -> None:
    with pytest.raises(ConfigError, match="deviation"):
        RandomGain(deviation)


def test_zooming_keeps_ramps_ramps_with_slopes_of_the_scale() -> None:
    n_mels, n_frames, n = 40, 60, 500
    ramps = torch.stack(
        [torch.arange(n_frames).expand(n_mels, n_frames), torch.arange(n_mels)[:, None].expand(-1, n_frames)]
    )
    x = ramps.float().repeat_interleave(n, 0)[:, None]
    zoomed = RandomResizeCrop(0.6)(x, torch.Generator().manual_seed(0))[:, 0]
    for ramp, size, axis in ((zoomed[:n], n_frames, 2), (zoomed[n:], n_mels, 1)):
        line = ramp.movedim(axis, 1)[:, :, 0]
        slope = line[:, 2:-2].diff(dim=1)
        torch.testing.assert_close(slope, slope[:, :1].expand_as(slope), atol=1e-4, rtol=0)
        scale = slope[:, 0]
        assert 0.6 <= float(scale.min()) < 0.61
        assert 0.99 < float(scale.max()) <= 1.0001
        assert float(scale.mean()) == pytest.approx(0.8, abs=0.02)
        assert line.min() >= 0
        assert line.max() <= size - 1
        middle = (line.mean(dim=1) / (size - 1) - 0.5) / (1 - scale).clamp(min=0.05)
        assert float(middle.abs().max()) <= 0.55
        assert float(middle.std()) == pytest.approx(1 / 12**0.5, rel=0.15)  # uniform over where it fits
    other = zoomed[:n].flatten(1).diff(dim=1)[:, 0], zoomed[n:, 3, 0] - zoomed[n:, 2, 0]
    assert abs(float(torch.corrcoef(torch.stack(other))[0, 1])) < 0.15, "bands and frames are zoomed apart"


def test_zooming_by_nothing_and_when_judging_changes_nothing() -> None:
    x = torch.randn(3, 1, 64, 98)
    torch.testing.assert_close(RandomResizeCrop(1.0)(x), x, atol=1e-4, rtol=1e-4)
    assert RandomResizeCrop(0.5).eval()(x) is x
    one, two = (RandomResizeCrop()(x, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("scale", [0, -0.1, 1.1, float("nan")])
def test_zooming_by_what_cannot_be(scale: float) -> None:
    with pytest.raises(ConfigError, match="min_scale"):
        RandomResizeCrop(scale)
