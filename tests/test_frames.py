"""Films drawn from a rule: what moves is the glyph, straight on and off the walls, and splits are films apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from freerun.data import FrameOptions, load_frames
from freerun.data.frames import GLYPHS, films
from freerun.errors import UserError

SMALL = FrameOptions(windows=(12, 4, 6), objects=1)


def problems_of(function, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    return caught.value.problems


def test_glyphs_are_bitmaps_and_all_different():
    assert GLYPHS["digits"].shape == (10, 7, 5)
    assert GLYPHS["shapes"].shape == (5, 5, 5)
    for glyphs in GLYPHS.values():
        assert set(np.unique(glyphs)) == {0.0, 1.0}
        assert len({glyph.tobytes() for glyph in glyphs}) == len(glyphs)


def test_a_glyph_is_whole_in_every_frame_and_moves_evenly_or_bounces():
    """Its brightness is kept (bilinear), and its centre goes on by the same step but at a wall."""
    drawn = films(SMALL)
    assert drawn.shape == (22, 15, 16, 16)
    mass = drawn.sum(axis=(2, 3))
    np.testing.assert_allclose(mass, mass[:, :1].repeat(15, axis=1), rtol=1e-9)
    assert any(np.allclose(mass[:, 0], glyph.sum()) or (np.abs(mass[:, 0] - glyph.sum()) < 1e-9).any()
               for glyph in GLYPHS["digits"])  # fmt: skip
    grid = np.arange(16)
    for axis in (2, 3):
        centres = (drawn.sum(axis=5 - axis) * grid).sum(axis=-1) / mass
        steps = np.diff(centres, axis=1)
        assert np.abs(steps).max() <= 1.5 + 1e-9
        speed = np.abs(steps).max(axis=1, keepdims=True)
        even = np.abs(np.abs(steps) - speed) < 1e-9
        assert (speed >= 0.75 - 1e-9).all()
        assert even.mean() > 0.7
        # two uneven steps in a row would be no bounce
        assert not (~even[:, 1:] & ~even[:, :-1]).any()


def test_values_lie_between_0_and_1_and_are_not_normalised():
    data = load_frames(FrameOptions(windows=(12, 4, 6), objects=3, height=20, width=18, glyphs="shapes"))
    assert data.values == 360
    assert 0.0 <= float(data.raw.min()) < float(data.raw.max()) <= 1.0
    assert torch.equal(data.mean, torch.zeros(360, dtype=torch.float64))
    assert torch.equal(data.std, torch.ones(360, dtype=torch.float64))
    batch = data.batch([0, 11])
    assert batch.targets.shape == (2, 15, 360)
    assert batch.eligible.sum(1).tolist() == [10, 10]
    assert torch.equal(batch.targets[1], data.raw[11 * 15 : 12 * 15].float())
    assert "normalisation: none" in data.header()


def test_films_are_a_function_of_the_seed_and_each_has_its_split():
    one, two = load_frames(SMALL), load_frames(SMALL)
    assert one.fingerprint == two.fingerprint
    assert torch.equal(one.raw, two.raw)
    other = load_frames(FrameOptions(windows=(12, 4, 6), objects=1, seed=1))
    assert not torch.equal(one.raw, other.raw)
    assert [one.windows(split) for split in ("train", "dev", "test")] == [12, 4, 6]
    assert sorted(torch.cat(list(one.starts.values())).tolist()) == [15 * film for film in range(22)]
    assert one.free("test").shape == (15, 256)
    # more films begin with the same ones
    more = films(FrameOptions(windows=(20, 4, 6), objects=1))
    assert np.array_equal(more[:22], films(SMALL))


def test_both_layouts_hold_the_same_frames():
    sequence, past = load_frames(SMALL), load_frames(SMALL, "past")
    one, two = sequence.window_batch("dev", [1]), past.window_batch("dev", [1])
    assert torch.equal(one.targets[:, 5:], two.targets)
    assert torch.equal(one.targets[:, :5], two.context["past"])


def test_mistakes_are_said_at_once():
    found = problems_of(FrameOptions, past=0, windows=(1, 2), speed=0.0, glyphs="letters")
    assert len(found) == 4
    assert "leave room to move for digits of 7 x 5; got 7 x 16" in problems_of(FrameOptions, height=7)[0]
    assert "layout must be one of" in problems_of(load_frames, SMALL, "flat")[0]
