"""The oracle's futures against the true ones, and against SRVP's rules followed here one digit at a time."""

import numpy as np
import pytest

from datasets import load_dataset
from datasets.digits import oracle
from datasets.digits.bouncing import clip_noise
from datasets.digits.oracle import future_states, oracle_futures

N_PAST, N_FUTURE = 5, 20
TOP, EPS = 36, 1e-8
SIMULATED = {  # load_dataset's name and options
    "smmnist_srvp": ("smmnist_srvp", {}),
    "exact": ("moving_mnist", {}),
    "svg": ("moving_mnist", {"digit_size": 32}),
    "digits": ("digits", {"image_size": 40, "digit_size": 16, "n_digits": 3, "min_speed": 2, "max_speed": 7}),
}


@pytest.fixture
def load(mnist_root):
    def load(key, **more):
        name, options = SIMULATED[key]
        return load_dataset(name, mnist_root, "test", **{"seq_len": N_PAST + N_FUTURE} | options | more)

    return load


def truth(dataset, videos):
    """(V, N_FUTURE, 1, H, W) uint8."""
    return np.stack([clip[N_PAST:].numpy() for clip in dataset.__getitems__(videos)])


def slow_step(x, y, dx, dy, draw):
    """One frame of SRVP's rules, border by border: the state to draw, from one that may lie outside."""
    while x < -EPS or x > TOP + EPS or y < -EPS or y > TOP + EPS:
        left, right, upper, bottom = x < -EPS, x > TOP + EPS, y < -EPS, y > TOP + EPS
        if dx == 0:
            cx, cy = x, 0 if upper else TOP
        elif dy == 0:
            cx, cy = 0 if left else TOP, y
        else:
            a = dy / dx
            b = y - a * x
            if left and (left := -EPS <= b <= TOP + EPS):
                cx, cy = 0, b
            if right and (right := -EPS <= a * TOP + b <= TOP + EPS):
                cx, cy = TOP, a * TOP + b
            if upper and (upper := -EPS <= -b / a <= TOP + EPS):
                cx, cy = -b / a, 0
            if bottom and (bottom := -EPS <= (TOP - b) / a <= TOP + EPS):
                cx, cy = (TOP - b) / a, TOP
        p = (x - cx) / dx if dx != 0 else (y - cy) / dy
        dx, dy = draw()
        dx = abs(dx) if left else -abs(dx) if right else dx
        dy = abs(dy) if upper else -abs(dy) if bottom else dy
        x, y = cx + dx * p, cy + dy * p
    return x, y, dx, dy


def published_noise(n_videos, n_frames=25, n_bounces=16):
    """The published set's own redraws, as uniform numbers (T, R, 2, 1, V, D), and the states (T, 4, V, D) they give."""
    rng = np.random.RandomState(42)
    rng.permutation(10_000)
    states, noise = np.empty((n_frames, 4, n_videos, 2)), np.full((n_frames, n_bounces, 2, 1, n_videos, 2), 0.5)
    for v, d in np.ndindex(n_videos, 2):
        x, y, dx, dy = rng.randint(0, 37), rng.randint(0, 37), rng.randint(-4, 5), rng.randint(-4, 5)
        for t in range(n_frames):
            drawn = []

            def draw(drawn=drawn):
                drawn.append((rng.randint(-4, 5), rng.randint(-4, 5)))
                return drawn[-1]

            x, y, dx, dy = states[t, :, v, d] = slow_step(x, y, dx, dy, draw)
            for r, speed in enumerate(drawn):
                noise[t, r, :, 0, v, d] = (np.array(speed) + 4.5) / 9  # the middle of each ninth
            x, y = x + dx, y + dy
    return noise, states


def test_the_published_redraws_lead_the_oracle_into_the_published_future(load, monkeypatch):
    dataset, n_videos = load("smmnist_srvp"), 1000
    noise, states = published_noise(n_videos)
    np.testing.assert_array_equal(states, dataset.states[:, :, :n_videos])
    for n_past in (1, N_PAST, 24):
        monkeypatch.setattr(oracle, "bounce_noise", lambda *_, n_past=n_past: noise[n_past:])
        _, future = future_states(dataset, range(n_videos), n_past, 25 - n_past, 1, seed=0)
        np.testing.assert_array_equal(future[:, :, 0], states[n_past:])


@pytest.mark.parametrize("key", ["exact", "svg", "digits"])
def test_the_noise_of_the_clips_leads_the_oracle_into_their_own_future(load, monkeypatch, key):
    dataset, videos = load(key, seed=3), range(7, 27)
    _, noise = clip_noise(3, "test", videos, N_PAST + N_FUTURE, dataset.motion.n_digits)  # (T, R, 2, V, D)
    monkeypatch.setattr(oracle, "bounce_noise", lambda *_: noise[N_PAST:, :, :, None])
    futures = oracle_futures(dataset, videos, N_PAST, N_FUTURE, 1, seed=0)
    np.testing.assert_array_equal(futures[0], truth(dataset, videos))


def test_states_equal_the_published_rules_followed_from_the_last_context_frame(load):
    dataset, videos, samples = load("smmnist_srvp"), [4999, 3, 8], [0, 6]
    _, future = future_states(dataset, videos, N_PAST, N_FUTURE, samples, seed=9)
    for (n, k), (i, v), d in ((a, b, c) for a in enumerate(samples) for b in enumerate(videos) for c in (0, 1)):
        noise = np.random.default_rng([oracle.STREAM, 9, v, k]).random((N_FUTURE, 16, 2, 2))
        x, y, dx, dy = dataset.states[N_PAST - 1, :, v, d]
        for t in range(N_FUTURE):
            speeds = iter(np.floor(9 * noise[t, :, :, d]) - 4)
            x, y, dx, dy = slow_step(x + dx, y + dy, dx, dy, lambda speeds=speeds: next(speeds))
            np.testing.assert_array_equal(future[t, :, n, i, d], [x, y, dx, dy])


@pytest.mark.parametrize("key", SIMULATED)
def test_where_bounces_are_deterministic_every_sample_is_the_truth(load, key):
    dataset, videos = load(key, deterministic=True), [0, 5, 11]
    futures = oracle_futures(dataset, videos, N_PAST, N_FUTURE, 3, seed=0)
    np.testing.assert_array_equal(futures, np.broadcast_to(truth(dataset, videos), futures.shape))


@pytest.mark.parametrize("key", SIMULATED)
def test_samples_are_the_truth_until_the_first_bounce_and_differ_after_it(load, key):
    dataset, videos = load(key), range(30)
    _, states = dataset.latents(videos)
    steps = np.arange(1, N_FUTURE + 1)[:, None, None, None]
    straight = states[N_PAST - 1, :2] + steps * states[N_PAST - 1, 2:]  # (F, 2, V, D) in a world without borders
    bounced = np.abs(straight - dataset.motion.largest / 2) > dataset.motion.largest / 2 + EPS
    before = ~np.logical_or.accumulate(bounced.any((1, 3)), axis=0).T  # (V, F)
    futures = oracle_futures(dataset, videos, N_PAST, N_FUTURE, 10, seed=0)
    same = (futures == truth(dataset, videos)).all((3, 4, 5))  # (N, V, F)
    assert before.any() and same[:, before].all()
    late = ~before[:, 10]  # bounced at least 10 frames before the end
    assert late.any() and not same[:, late, -1].all(1).any()


def test_a_bounce_draws_speeds_as_randint_does_and_turns_them_inward(load):
    dataset, n = load("smmnist_srvp"), 2000
    x, y, dx, _ = dataset.states[N_PAST - 1]  # (N, D) each
    v, d = np.argwhere((x + dx < -EPS) & (y > 10) & (y < 26))[0]  # over the left border next, far from any corner
    _, future = future_states(dataset, [v], N_PAST, 1, n, seed=0)
    across, along = future[0, 2:, :, 0, d]
    # |randint(-4, 5)| is 0 once and 1 to 4 twice in 9. Chi-square with 4 and 8 degrees of freedom: below in 99.9 %.
    for speeds, values, odds, limit in (
        (across, range(5), [1, 2, 2, 2, 2], 18.5),
        (along, range(-4, 5), [1] * 9, 26.1),
    ):
        counts, expected = np.array([(speeds == value).sum() for value in values]), n * np.array(odds) / 9
        assert counts.sum() == n
        assert ((counts - expected) ** 2 / expected).sum() < limit


@pytest.mark.parametrize("key", SIMULATED)
def test_a_sample_depends_on_seed_video_and_number_alone(load, key):
    dataset = load(key)
    whole = oracle_futures(dataset, range(6), N_PAST, N_FUTURE, 5, seed=1)  # (N, V, ...)
    part = oracle_futures(dataset, [4, 2], N_PAST, N_FUTURE, [3, 1], seed=1)
    np.testing.assert_array_equal(part, whole[[3, 1]][:, [4, 2]])
    shorter = oracle_futures(dataset, range(6), N_PAST, 7, 5, seed=1)
    np.testing.assert_array_equal(shorter, whole[:, :, :7])
    assert (oracle_futures(dataset, range(6), N_PAST, N_FUTURE, 5, seed=2) != whole).any()


def test_context_alone_is_enough_and_a_future_may_outlast_the_clip(load):
    long, short = load("smmnist_srvp"), load("smmnist_srvp", seq_len=N_PAST)
    futures = [oracle_futures(dataset, [1], N_PAST, 40, 2, seed=0) for dataset in (long, short)]
    assert futures[0].shape == (2, 1, 40, 1, 64, 64) and futures[0].dtype == np.uint8
    np.testing.assert_array_equal(*futures)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n_past": 11}, "n_past must be <= 10, the frames of a clip of this dataset, got 11"),
        ({"n_past": 0}, "n_past must be an integer >= 1, got 0"),
        ({"n_future": 0}, "n_future must be an integer >= 1, got 0"),
        ({"samples": 0}, "samples must name at least one, got none"),
        ({"samples": [-1]}, "samples must be an integer >= 0, got -1"),
        ({"videos": []}, "videos must name at least one, got none"),
        ({"videos": [0, 10_000]}, "videos must be < 10000, the length of the dataset, got 10000"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
        ({"dataset": [0]}, "only simulated digits have an oracle, list has no simulator"),
    ],
)
def test_what_cannot_be_continued_is_refused_by_name(arguments, message):
    dataset = load_dataset("digits", None, "test", seq_len=10, image_size=32)
    defaults = {"dataset": dataset, "videos": [0], "n_past": 5, "n_future": 5, "samples": 2, "seed": 0}
    with pytest.raises(ValueError, match=message):
        oracle_futures(**defaults | arguments)
