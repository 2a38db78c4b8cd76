"""The random numbers of clips; the vectorised simulator against a slow one, written here from the published rules."""

import numpy as np
import pytest

from datasets.base import GOLDEN, keyed_uniform, mix
from datasets.digits.bouncing import MAX_BOUNCES, Motion, clip_noise, move, render, simulate

FLAVOURS = {"exact": 28, "svg": 32}  # digit_size


def test_mix_is_that_of_splitmix64():
    # The first numbers of SplitMix64 from the state 1234567, as Rosetta Code prints them for every language.
    steps = np.arange(1, 6, dtype=np.uint64)
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert mix(np.uint64(1234567) + steps * GOLDEN).tolist() == expected


def test_a_number_is_a_function_of_key_index_and_draw_alone():
    whole = keyed_uniform((3, 0), range(1000), 50)
    assert whole.shape == (50, 1000) and whole.min() >= 0 and whole.max() < 1
    np.testing.assert_array_equal(
        keyed_uniform((3, 0), [7, 2**24 - 1, 999, 7], 20)[:, [0, 2, 3]], whole[:20, [7, 999, 7]]
    )
    for other in ((3, 1), (4, 0), (3 + 2**32, 0), (3 + 2**64, 0)):
        assert not np.isin(keyed_uniform(other, range(1000), 50), whole).any()


def test_no_number_comes_twice_among_many_indices():
    numbers = keyed_uniform((0, 0), range(100_000), 20)
    assert len(np.unique(numbers)) == numbers.size


def test_numbers_are_uniform_and_say_nothing_about_their_neighbours():
    def joint(a, b):
        """Chi-square of 16 x 16 equal cells; 255 degrees of freedom: below 340 in 99.97 % of the cases."""
        cells = np.bincount((16 * a).astype(int).ravel() * 16 + (16 * b).astype(int).ravel(), minlength=256)
        expected = a.size / 256
        return ((cells - expected) ** 2 / expected).sum()

    numbers = {key: keyed_uniform(key, range(20_000), 10) for key in ((0, 0), (0, 1), (1, 0), (2, 0))}
    u = numbers[0, 0]
    pairs = {
        "index": (u[:, :-1], u[:, 1:]),
        "far index": (u[:, :-4096], u[:, 4096:]),
        "draw": (u[:-1], u[1:]),
        "split": (u, numbers[0, 1]),
        "seed": (u, numbers[1, 0]),
        "next seed": (numbers[1, 0], numbers[2, 0]),
        "index and draw": (u[:-1, 1:], u[1:, :-1]),
        "finer": (u, (2**20 * u) % 1),  # later bits of the same number
    }
    for name, (a, b) in pairs.items():
        assert joint(a, b) < 340, name
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size), name
    for draw in u:  # each draw by itself: 99 degrees of freedom, below 160 in 99.99 %
        counts = np.bincount((100 * draw).astype(int), minlength=100)
        assert ((counts - 200) ** 2 / 200).sum() < 160


def pick(values, u):
    return values[int(u * len(values))]


def allowed(motion, lowest=None):
    """Integers a speed component may take."""
    lowest = -motion.max_speed if lowest is None else lowest
    return [v for v in range(lowest, motion.max_speed + 1) if abs(v) >= motion.min_speed]


def slow_exact(motion, start, bounces):
    """One digit: start (4,), bounces (T, MAX_BOUNCES, 2) -> T times (x, y, dx, dy). SRVP's rules, border by border."""
    top, eps = motion.image_size - motion.digit_size, 1e-8
    x, y = (float(int(u * (top + 1))) for u in start[:2])
    dx, dy = (pick(allowed(motion), u) for u in start[2:])
    states = []
    for noise in bounces:
        rounds = 0
        while (x < -eps or x > top + eps or y < -eps or y > top + eps) and rounds < MAX_BOUNCES:
            left, right, upper, bottom = x < -eps, x > top + eps, y < -eps, y > top + eps
            if dx == 0:
                cx, cy = x, 0 if upper else top
            elif dy == 0:
                cx, cy = 0 if left else top, y
            else:
                a = dy / dx
                b = y - a * x
                if left and (left := -eps <= b <= top + eps):
                    cx, cy = 0, b
                if right and (right := -eps <= a * top + b <= top + eps):
                    cx, cy = top, a * top + b
                if upper and (upper := -eps <= -b / a <= top + eps):
                    cx, cy = -b / a, 0
                if bottom and (bottom := -eps <= (top - b) / a <= top + eps):
                    cx, cy = (top - b) / a, top
            p = (x - cx) / dx if dx != 0 else (y - cy) / dy
            if not motion.deterministic:
                dx, dy = (pick(allowed(motion), u) for u in noise[rounds])
            dx = abs(dx) if left else -abs(dx) if right else dx
            dy = abs(dy) if upper else -abs(dy) if bottom else dy
            x, y = cx + dx * p, cy + dy * p
            rounds += 1
        if rounds == MAX_BOUNCES:
            x, y = min(max(x, 0), top), min(max(y, 0), top)
        states.append((x, y, dx, dy))
        x, y = x + dx, y + dy
    return states


def slow_svg(motion, start, bounces):
    """One digit, SVG's rules; y is the row here, as in the original, and comes first in the result."""
    n = motion.image_size - 32
    y, x = (int(u * n) for u in start[:2])
    dy, dx = (pick(allowed(motion), u) for u in start[2:])
    inward = allowed(motion, lowest=1)
    states = []
    for noise in bounces:
        if y < 0 or y >= n:
            sign, y = (1, 0) if y < 0 else (-1, n - 1)
            if motion.deterministic:
                dy = -dy
            else:
                dy, dx = sign * pick(inward, noise[0, 0]), pick(allowed(motion), noise[0, 1])
        if x < 0 or x >= n:
            sign, x = (1, 0) if x < 0 else (-1, n - 1)
            if motion.deterministic:
                dx = -dx
            else:
                dx, dy = sign * pick(inward, noise[1, 0]), pick(allowed(motion), noise[1, 1])
        states.append((y, x, dy, dx))
        y, x = y + dy, x + dx
    return states


def moved(n_clips=40, n_frames=30, **options):
    """Motion, states (T, 4, B, D), start noise (4, B, D), noise of the bounces (T, R, 2, B, D)."""
    motion = Motion(digit_size=FLAVOURS[options.get("flavour", "exact")], **options)
    start, bounces = clip_noise(0, "train", range(n_clips), n_frames, motion.n_digits)
    return motion, simulate(motion, start[1:], bounces), start[1:], bounces


@pytest.mark.parametrize("speeds", [(0, 4), (2, 3), (0, 30), (30, 30)])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_simulator_equals_the_published_rules_followed_one_digit_at_a_time(flavour, deterministic, speeds):
    motion, states, start, bounces = moved(
        flavour=flavour, deterministic=deterministic, min_speed=speeds[0], max_speed=speeds[1]
    )
    slow = {"exact": slow_exact, "svg": slow_svg}[flavour]
    for clip, digit in np.ndindex(states.shape[2:]):
        expected = slow(motion, start[:, clip, digit], bounces[..., clip, digit])
        np.testing.assert_array_equal(states[..., clip, digit], expected)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_digits_stay_inside_at_every_speed_and_size(flavour, deterministic):
    for image_size in (40, 64, 128):
        motion = Motion(flavour=flavour, digit_size=FLAVOURS[flavour], image_size=image_size, max_speed=1)
        for speed in (1, motion.largest // 2, motion.largest - 1):
            motion, states, *_ = moved(
                flavour=flavour, image_size=image_size, deterministic=deterministic, max_speed=speed
            )
            assert states[:, :2].min() > -1e-7 and states[:, :2].max() < motion.largest + 1e-7


def test_a_digit_that_runs_into_a_corner_comes_straight_back():
    motion = Motion(deterministic=True, n_digits=1)
    # Start at row and column 35 (of 0..36) with speed 4: beyond the corner by 3 in both, so 3 back from it.
    start = np.array([35.5 / 37, 35.5 / 37, 8.5 / 9, 8.5 / 9]).reshape(4, 1, 1)
    states = simulate(motion, start, np.zeros((3, MAX_BOUNCES, 2, 1, 1)))
    np.testing.assert_allclose(states[..., 0, 0], [[35, 35, 4, 4], [33, 33, -4, -4], [29, 29, -4, -4]])


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_deterministic_digits_keep_their_speed_and_stochastic_ones_change_it(flavour):
    _, states, *_ = moved(flavour=flavour, deterministic=True)
    assert (np.abs(states[:, 2:]) == np.abs(states[:1, 2:])).all()
    _, states, *_ = moved(flavour=flavour, deterministic=False)
    assert (np.abs(states[:, 2:]) != np.abs(states[:1, 2:])).any()


@pytest.mark.parametrize("low, high", [(0, 4), (2, 3), (3, 3), (0, 0)])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_speed_bounds_are_honoured_before_and_after_bounces(flavour, low, high):
    _, states, *_ = moved(flavour=flavour, min_speed=low, max_speed=high, n_clips=100)
    expected = {v for v in range(-high, high + 1) if abs(v) >= low}
    assert set(np.unique(states[:, 2:])) == expected


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("speeds", [(0, 4), (2, 30)])
def test_digits_move_as_in_a_slow_simulation_on_other_random_numbers(flavour, speeds):
    motion = Motion(flavour=flavour, digit_size=FLAVOURS[flavour], n_digits=1, min_speed=speeds[0], max_speed=speeds[1])
    start, bounces = clip_noise(0, "train", range(4000), 15, 1)
    fast = simulate(motion, start[1:], bounces)[..., 0].transpose(2, 0, 1)  # (N, T, 4)
    rng, rule = np.random.default_rng(1), {"exact": slow_exact, "svg": slow_svg}[flavour]
    slow = np.array([rule(motion, rng.random(4), rng.random((15, MAX_BOUNCES, 2))) for _ in range(4000)])

    def features(states):
        """(N,) integers by name: where digits end, how fast, and how often they changed speed."""
        row, column, *speed = states[:, -1].T
        width = (motion.largest + 1) / 5
        yield "place", np.floor(row.clip(0) / width) * 5 + np.floor(column.clip(0) / width)
        yield "place halfway", np.floor(states[:, 7, 0].clip(0) / width) * 5 + np.floor(states[:, 7, 1].clip(0) / width)
        yield "speeds", (np.rint(speed[0]) + 30) // 2 * 31 + (np.rint(speed[1]) + 30) // 2
        yield "bounces", (states[:, 1:, 2:] != states[:, :-1, 2:]).any(-1).sum(-1)
        turned = (states[:, 5, 2:] != states[:, 4, 2:]).any(-1)
        yield "speed after a bounce", np.where(turned, states[:, 5, 2] + 31, 0)

    for (name, a), (_, b) in zip(features(fast), features(slow), strict=True):
        counts = np.array([np.bincount(values.astype(int), minlength=1000) for values in (a, b)])
        counts = counts[:, counts.sum(0) >= 20]
        chi_square = ((counts[0] - counts[1]) ** 2 / counts.sum(0)).sum()
        freedom = counts.shape[1] - 1
        assert freedom >= 3 and chi_square < freedom + 4 * np.sqrt(2 * freedom), name  # its mean and 4 sd


def test_a_digit_that_bounces_too_often_is_set_onto_the_border_and_no_other_digit_of_its_batch():
    # One bounce is allowed. The first digit crosses the lower border at column 35 and then, its speed drawn to the
    # right, the other border too; the second stands still, outside by less than what counts.
    position, speed = np.array([[39, 10], [38, 36 + 5e-9]]), np.array([[4, 0], [4, 0]])
    states = move(Motion(), position.astype(float), speed.astype(float), np.full((1, 1, 2, 2), 0.99))
    np.testing.assert_array_equal(states[0], [[33, 10], [36, 36 + 5e-9], [-4, 0], [4, 0]])


def test_start_speeds_are_as_likely_as_randint_makes_them():
    start, bounces = clip_noise(0, "train", range(3000), 1, 2)
    counts = np.unique(simulate(Motion(), start[1:], bounces)[0, 2:], return_counts=True)[1]
    assert len(counts) == 9
    # 12,000 draws over 9 values: chi-square with 8 degrees of freedom is below 26 in 99.9 % of the cases.
    assert ((counts - 12_000 / 9) ** 2 / (12_000 / 9)).sum() < 26


def test_a_longer_clip_begins_as_the_shorter_one():
    short, long = moved(n_frames=10)[1], moved(n_frames=30)[1]
    np.testing.assert_array_equal(long[:10], short)


def test_drawing_adds_digits_rounds_half_to_even_and_clips_at_255():
    rng = np.random.default_rng(0)
    glyphs = rng.integers(256, size=(3, 2, 5, 5), dtype=np.uint8)
    states = rng.integers(0, 15, size=(4, 4, 3, 2)) / 2  # halves among them
    expected = np.zeros((3, 4, 12, 12), int)
    for b, t, d in np.ndindex(3, 4, 2):
        row, column = round(states[t, 0, b, d]), round(states[t, 1, b, d])
        expected[b, t, row : row + 5, column : column + 5] += glyphs[b, d]
    np.testing.assert_array_equal(render(glyphs, states, 12), expected.clip(max=255))
