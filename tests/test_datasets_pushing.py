"""Rendered robot pushing: conversion, what is refused, actions that are mirrored with the pictures, its protocol."""

import re

import numpy as np
import pytest
import torch

from datasets import load_dataset
from datasets.pushing import CAMERA, TARGET, camera_mirror, convert
from seqvae.config import RunConfig
from seqvae.evaluation.choose import choose_protocol
from seqvae.evaluation.choose import test_set_of as arguments_of_test_set
from seqvae.presets import PRESETS
from tests.data_files import make_bair, write_bair_arrays


def write_npz(path, n_train=40, n_test=3, **changed):
    """The renderer's file, noise; returns what it holds."""
    values = {}
    for split, n in (("train", n_train), ("test", n_test)):
        videos = make_bair(n, seed=n)
        values |= {f"{split}_frames": videos["aux1"], f"{split}_moved": np.zeros((n, 3), np.float32)}
        values |= {f"{split}_{what}": videos[what] for what in ("actions", "positions")}
    values |= changed
    np.savez_compressed(path, **{key: value for key, value in values.items() if value is not None})
    return values


def refused(capsys, *arguments):
    """The one line that the command ends with."""
    capsys.readouterr()
    assert convert.main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("datasets.pushing.convert: ") and error.count("\n") == 1
    return error


def test_the_dataset_shows_what_was_converted(tmp_path, capsys):
    held = write_npz(tmp_path / "pushing.npz")
    assert convert.main([str(tmp_path / "pushing.npz"), str(tmp_path / "data")]) == 0
    assert "train: 40 videos" in capsys.readouterr().out
    assert not list((tmp_path / "data").glob("*.part"))
    test = load_dataset("pushing", tmp_path / "data", "test", seq_len=30)
    assert len(test) == 3 and test.channels == 3
    for index, frames in enumerate(held["test_frames"]):
        assert np.array_equal(test[index].permute(0, 2, 3, 1), frames)
    assert np.array_equal(test.actions(range(3)), held["test_actions"])
    assert np.array_equal(test.positions(range(3)), held["test_positions"])
    train = load_dataset("pushing", tmp_path / "data", "train", seq_len=12)
    videos, starts, _ = train.cuts([3])
    window = slice(starts[0], starts[0] + 12)
    assert np.array_equal(train.actions([3])[0], held["train_actions"][videos[0], window])
    assert np.array_equal(train[3].permute(0, 2, 3, 1), held["train_frames"][videos[0], window])


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"test_actions": None}, "it has no array test_actions, only train_frames, "),
        (
            {"train_positions": np.zeros((40, 30, 3))},
            r"train_positions is \(40, 30, 3\) float64, expected \(N, 30, 3\)",
        ),
        ({"train_frames": np.zeros((40, 29, 64, 64, 3), np.uint8)}, r"\(40, 29, 64, 64, 3\) uint8, expected \(N, 30,"),
        ({"train_actions": np.full((40, 30, 4), np.inf, np.float32)}, "train_actions holds values that are not finite"),
        ({"train_actions": np.zeros((39, 30, 4), np.float32)}, "its arrays differ in length, .*'train_actions': 39"),
        ({"train_actions": np.array([{}])}, "Object arrays cannot be loaded"),
    ],
)
def test_arrays_that_are_not_as_the_renderer_writes_them_are_refused(tmp_path, capsys, changed, message):
    write_npz(tmp_path / "pushing.npz", n_train=40, **changed)
    assert re.search(message, refused(capsys, tmp_path / "pushing.npz", tmp_path / "data"))
    assert not list((tmp_path / "data").glob("pushing_train*"))


def test_damaged_and_missing_files_are_one_line(tmp_path, capsys):
    path = tmp_path / "pushing.npz"
    assert f"{path} does not exist; give the renderer's pushing.npz" in refused(capsys, path, tmp_path / "data")
    np.save(tmp_path / "pushing.npy", np.zeros(3))
    assert "it is a single array" in refused(capsys, tmp_path / "pushing.npy", tmp_path / "data")
    write_npz(path, n_train=20, n_test=1)
    whole = path.read_bytes()
    middle = len(whole) // 2
    damages = [b"", b"<!DOCTYPE html>" * 99, whole[:middle], whole[:middle] + b"\0" * 99 + whole[middle + 99 :]]
    for damaged in damages:
        path.write_bytes(damaged)
        assert "is not a usable pushing.npz (" in refused(capsys, path, tmp_path / "data")
    path.unlink()
    path.mkdir()
    refused(capsys, path, tmp_path / "data")


def test_missing_arrays_name_the_command(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=f"is missing.*python -m datasets.pushing.convert PUSHING.npz {tmp_path}"
    ):
        load_dataset("pushing", tmp_path, "train", seq_len=12)


def picture(points):
    """Column and row, in pixels from the middle of the picture, at which the renderer's camera sees points (..., 3)."""
    back = (CAMERA - TARGET) / np.linalg.norm(CAMERA - TARGET)
    right = np.cross([0, 0, 1], back)
    right /= np.linalg.norm(right)
    x, y, z = np.moveaxis((points - CAMERA) @ np.stack([right, np.cross(back, right), back]).T, -1, 0)
    focal = 32 / np.tan(np.radians(37) / 2)  # 64 pixels, 37 degrees from top to bottom
    return focal * x / -z, focal * y / -z


def test_a_mirrored_clip_shows_the_fingertips_where_its_positions_say(tmp_path):
    root = write_bair_arrays(tmp_path, name="pushing")
    for split, n in (("train", 40), ("test", 3)):  # within the tray
        np.save(root / f"pushing_{split}_positions.npy", (make_bair(n, seed=n)["positions"] / 10))
    plain, flipped = (load_dataset("pushing", root, "train", seq_len=12, flip=flip) for flip in (False, True))
    indices = list(range(50))
    mirrored = flipped.cuts(indices)[2]
    assert 10 < mirrored.sum() < 40
    before, after = (picture(clips.positions(indices).double().numpy()) for clips in (plain, flipped))
    signs = np.where(mirrored, -1, 1)[:, None]
    np.testing.assert_allclose(after[0], signs * before[0], atol=1e-3)
    np.testing.assert_allclose(after[1], before[1], atol=1e-3)
    for index in indices[:20]:
        assert flipped[index].equal(plain[index].flip(-1) if mirrored[index] else plain[index])


def test_a_flip_of_1_mirrors_what_true_does(tmp_path):
    root = write_bair_arrays(tmp_path, name="pushing")
    by_name, by_number = (load_dataset("pushing", root, "train", seq_len=12, flip=flip) for flip in (True, 1))
    assert by_name.positions(range(20)).equal(by_number.positions(range(20)))


def test_mirrored_actions_lead_from_one_mirrored_position_to_the_next(tmp_path):
    root = write_bair_arrays(tmp_path, name="pushing")
    positions = make_bair(40, seed=1)["positions"]
    actions = np.zeros((40, 30, 4), np.float32)
    actions[:, :-1, :3], actions[..., 3] = np.diff(positions, axis=1), 1
    np.save(root / "pushing_train_positions.npy", positions)
    np.save(root / "pushing_train_actions.npy", actions)
    clips = load_dataset("pushing", root, "train", seq_len=12, flip=True)
    moved = clips.positions(range(40)).diff(dim=1)
    torch.testing.assert_close(clips.actions(range(40))[:, :-1, :3], moved, atol=1e-5, rtol=0)
    assert clips.actions(range(40))[..., 3].eq(1).all()


def test_mirroring_twice_changes_nothing_and_keeps_heights():
    matrix, offset = camera_mirror(CAMERA, TARGET)
    np.testing.assert_allclose(matrix @ matrix, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(matrix @ offset + offset, 0, atol=1e-12)
    np.testing.assert_allclose(matrix[2], [0, 0, 1], atol=1e-12)


@pytest.mark.parametrize("preset", ["pushing-sigma", "pushing-geco"])
def test_the_presets_train_on_12_frames_and_are_evaluated_on_30(preset):
    cfg: RunConfig = PRESETS[preset][1]
    assert (cfg.data.n_past, cfg.data.n_future) == (2, 10)
    protocol = choose_protocol(cfg, "auto")
    assert (protocol.name, protocol.n_past, protocol.n_future) == ("own", 2, 28)
    assert arguments_of_test_set(protocol, cfg.data)["seq_len"] == 30
