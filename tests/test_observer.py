import math

import numpy as np
import pytest

from benchmarks.observer import futures, show_scores, surprise
from datasets import load_dataset
from datasets.digits import bouncing

MOTION = bouncing.Motion()
SPEEDS = np.stack(np.meshgrid(MOTION.speeds, MOTION.speeds, indexing="ij")).reshape(2, -1)


def test_a_straight_path_costs_the_speed_once():
    path = np.array([[10, 12], [13, 11], [16, 10], [19, 9]])
    nats, dropped, belief = surprise(path, SPEEDS, MOTION.largest, bouncing.MAX_BOUNCES)
    assert nats == pytest.approx([math.log(81), 0, 0], abs=1e-9) and dropped == pytest.approx(0, abs=1e-9)
    assert belief.position.T.tolist() == [[19, 9]] and belief.speed.T.tolist() == [[3, -1]]


def test_a_bounce_costs_what_simulated_bounces_say():
    # Two frames fix the speed; then the digit would be at row 38 of 36 and bounces half-way.
    path = np.array([[26, 18], [30, 19], [34, 20], [35, 22]])
    n = 200_000
    start = np.broadcast_to(np.array([38.0, 21.0])[:, None], (2, n))
    speed = np.broadcast_to(np.array([4.0, 1.0])[:, None], (2, n))
    noise = np.random.default_rng(0).random((1, bouncing.MAX_BOUNCES, 2, n))
    places = np.rint(bouncing.move(MOTION, start, speed, noise)[0, :2])
    share = (places == path[3][:, None]).all(0).mean()
    nats, _, _ = surprise(path, SPEEDS, MOTION.largest, bouncing.MAX_BOUNCES)
    assert share > 0 and nats[2] == pytest.approx(-math.log(share), abs=0.05)


def test_futures_begin_where_the_speed_says(capsys):
    dataset = load_dataset("digits", None, "test", seq_len=25, image_size=64, digit_size=28, n_digits=2)
    predicted = futures(dataset, SPEEDS, 6, 4)
    assert predicted.shape == (4, 6, 20, 1, 64, 64) and predicted.dtype == np.uint8
    truth = np.stack([dataset[i].numpy() for i in range(6)])[:, 5:]
    right = [(sample[:, 0] == truth[:, 0]).all((1, 2, 3)) for sample in predicted]
    assert 0.3 < np.mean(right) <= 1  # but for bounces the first one is certain
    show_scores(dataset, predicted)
    assert "futures of 6 videos, SSIM: mean" in capsys.readouterr().out
