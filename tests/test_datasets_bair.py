"""BAIR: made files in the published layout, converted; what is refused; kills; download; and the reader."""

import hashlib
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import struct
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tfrecord.writer import TFRecordWriter
from torch.utils.data import DataLoader, Subset

from datasets import load_dataset
from datasets.bair import convert as convert_bair
from tests.data_files import bair_noise, make_bair, numbered_by_clip, write_bair_arrays, write_bair_records

PUBLISHED = convert_bair.N_PUBLISHED  # as it is before the tests put COUNTS in its place
# 1024 comes after 512, though not as text. There are gaps between the numbers, as there are in the published files.
RANGES = {"test": [(0, 1)], "train": [(256, 258), (512, 513), (1024, 1025)]}
COUNTS = {"test": 2, "train": 7}
ARRAYS = [f"bair_{split}{what}.npy" for split in COUNTS for what in ("", "_actions", "_positions")]
DAMAGED = "traj_512_to_513.tfrecords"


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Folder of softmotion30_44k, and by split what it holds."""
    root, content = tmp_path_factory.mktemp("made"), {}
    for split, ranges in RANGES.items():
        files = [make_bair(last - first + 1, seed=first) for first, last in ranges]
        for (first, last), videos in zip(ranges, files, strict=True):
            write_bair_records(root / "softmotion30_44k" / split / f"traj_{first}_to_{last}.tfrecords", videos)
        content[split] = {key: np.concatenate([videos[key] for videos in files]) for key in files[0]}
    return root, content


@pytest.fixture
def src(made, tmp_path):
    """The made folder, whose files may be replaced."""
    shutil.copytree(made[0], tmp_path / "src", copy_function=os.link)
    return tmp_path / "src"


@pytest.fixture(autouse=True)
def published(monkeypatch):
    monkeypatch.setattr(convert_bair, "N_PUBLISHED", COUNTS)


@pytest.fixture(scope="session")
def expected(made, tmp_path_factory):
    """SHA-256 of the arrays of an uninterrupted conversion, by name."""
    dst = tmp_path_factory.mktemp("expected")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert_bair, "N_PUBLISHED", COUNTS)
        assert convert_bair.main([str(made[0]), str(dst)]) == 0
    return digests(dst)


def digests(dst):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in dst.glob("*.npy")}


def convert(*arguments):
    return convert_bair.main([str(argument) for argument in arguments])


def refused(capsys, *arguments):
    """The one line that the command ends with."""
    capsys.readouterr()
    assert convert(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("datasets.bair.convert: ") and error.endswith("\n") and error.count("\n") == 1
    return error


def replace(path, data):
    path.unlink()  # it is a link to the made file
    path.write_bytes(data)


@pytest.mark.parametrize("camera", ["aux1", "main"])
def test_the_arrays_hold_what_the_files_hold(made, tmp_path, capsys, camera):
    root, content = made
    assert convert(root, tmp_path, "--camera", camera) == 0
    out = capsys.readouterr().out
    for split, held in content.items():
        frames, actions, positions = (
            np.load(tmp_path / f"bair_{split}{what}.npy", mmap_mode="r") for what in ("", "_actions", "_positions")
        )
        assert frames.dtype == np.uint8 and actions.dtype == positions.dtype == np.float32
        assert np.array_equal(frames, held[camera])
        assert np.array_equal(actions, held["actions"]) and np.array_equal(positions, held["positions"])
        assert f"{split}: {len(frames)} of {COUNTS[split]} published videos, camera {camera}\n" in out
    for name, digest in digests(tmp_path).items():
        assert f"  {digest}  {tmp_path / name}\n" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*ARRAYS, "bair_test.json", "bair_train.json"])


def test_the_published_numbers_are_those_that_are_compared_with():
    assert PUBLISHED == {"test": 256, "train": 43_264}
    assert convert_bair.TAR_BYTES == 32_274_964_480 and len(convert_bair.TAR_SHA256) == 64


@pytest.mark.parametrize("backwards", [False, True])
def test_a_tar_gives_the_same_bytes_whatever_its_order(made, tmp_path, expected, capsys, backwards):
    files = sorted(made[0].glob("softmotion30_44k/*/*"), reverse=backwards)
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        for folder in ("softmotion30_44k", "softmotion30_44k/train"):
            tar.add(made[0] / folder, folder, recursive=False)
        for file in files:
            tar.add(file, Path("./") / file.relative_to(made[0]))
            tar.addfile(tarfile.TarInfo(f"softmotion30_44k/train/._{file.name}"))  # as a Mac's tar adds
    assert convert(tmp_path / "some.tar", tmp_path / "dst") == 0
    assert digests(tmp_path / "dst") == expected
    assert "is not the published tar" in capsys.readouterr().out


def test_src_may_be_softmotion30_44k_itself_or_the_folder_of_the_tar(made, tmp_path, expected):
    assert convert(made[0] / "softmotion30_44k", tmp_path / "a") == 0
    with tarfile.open(tmp_path / "bair_robot_pushing_dataset_v0.tar", "w") as tar:
        tar.add(made[0] / "softmotion30_44k", "softmotion30_44k")
    assert convert(tmp_path, tmp_path / "b") == 0
    assert digests(tmp_path / "a") == digests(tmp_path / "b") == expected


def changed(key, value):
    """Rewrites the file with record 1's feature `key` replaced, or left out."""

    def damage(path, made):
        seen = []

        def change(record):
            seen.append(record)
            if len(seen) == 2:
                record[key] = value
            return {key: feature for key, feature in record.items() if feature is not None}

        path.unlink()
        write_bair_records(path, make_bair(2, seed=512), change)

    return damage


def edited(edit):
    """Replaces the file's bytes; `size` is that of each of its two records."""

    def damage(path, made):
        data = path.read_bytes()
        replace(path, edit(data, len(data) // 2))

    return damage


def flip_bit(data, position):
    return data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]


def framed(data):
    length = struct.pack("<Q", len(data))
    return length + TFRecordWriter.masked_crc(length) + data + TFRecordWriter.masked_crc(data)


HTML = b"<!DOCTYPE html><html><body>404</body></html>\n"
FRAME = "12/image_aux1/encoded"
DAMAGES = {
    "flipped data byte": (edited(lambda data, size: flip_bit(data, size + 5000)), "1: wrong CRC of its data"),
    "flipped CRC of data": (edited(lambda data, size: flip_bit(data, size - 2)), "0: wrong CRC of its data"),
    "corrupt length": (edited(lambda data, size: flip_bit(data, size + 5)), "1: wrong CRC of its length"),
    "cut inside data": (edited(lambda data, size: data[: size + 5000]), "1: the file ends inside it"),
    "cut inside length": (edited(lambda data, size: data[: size + 3]), "1: the file ends inside it"),
    "cut inside last CRC": (edited(lambda data, size: data[:-1]), "1: the file ends inside it"),
    "cut between records": (
        edited(lambda data, size: data[:size]),
        "1: the file ends before it, its name promises 2 records; .* with --allow-partial",
    ),
    "a record too many": (edited(lambda data, size: data + data[:size]), "2: its name promises 2 records"),
    "empty": (edited(lambda data, size: b""), "0: the file ends before it, its name promises 2 records"),
    "web page": (edited(lambda data, size: HTML), "0: wrong CRC of its length, .* begins b'<!DOCTYPE"),
    "length beyond the end": (edited(lambda data, size: framed(data)[:12]), "0: the file ends inside it"),
    "another message": (edited(lambda data, size: framed(HTML)), "0: no Example message"),
    "missing frame": (changed(FRAME, None), f"1: it has no {FRAME}, expected 12288 bytes"),
    "short frame": (changed(FRAME, (b"abc", "byte")), f"1: {FRAME} has 3 bytes, expected 12288"),
    "two frames": (changed(FRAME, ([b"abc", b"d"], "byte")), f"1: {FRAME} has 3 [+] 1 bytes, expected 12288"),
    "frame of floats": (changed(FRAME, ([1.0], "float")), f"1: {FRAME} has 0 bytes, expected 12288"),
    "missing action": (changed("3/action", None), "1: it has no 3/action, expected 4 floats"),
    "NaN": (
        changed("3/action", ([0.0, float("nan"), 0.0, 0.0], "float")),
        "1: action holds values that are not finite",
    ),
    "long position": (changed("3/endeffector_pos", ([0.0] * 4, "float")), "1: 3/endeffector_pos has 4 floats, .* 3;"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_one_line_with_file_and_record_and_nothing_under_the_final_name(
    made, src, tmp_path, capsys, expected, what
):
    damage, message = DAMAGES[what]
    path, dst = src / "softmotion30_44k" / "train" / DAMAGED, tmp_path / "dst"
    damage(path, made)
    error = refused(capsys, src, dst)
    assert re.search(f"{re.escape(str(path))}, record {message}", error)
    assert [path.name for path in dst.glob("bair_train*") if path.suffix != ".part"] == []

    shutil.copy(made[0] / path.relative_to(src), path)
    assert convert(src, dst) == 0  # goes on with the repaired file
    assert digests(dst) == expected


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: None, "some.tar does not exist; .*--download"),
        (lambda path: path.mkdir(), "some.tar holds neither softmotion30_44k/train or test nor bair_.*--download"),
        (lambda path: (path / "train").mkdir(parents=True), "some.tar holds no traj_A_to_B.tfrecords"),
        (lambda path: path.write_bytes(HTML), "some.tar is not a whole tar file .*download it again"),
        (lambda path: path.write_bytes(b""), r"some.tar is not a whole tar file \(empty file\)"),
    ],
)
def test_what_is_no_bair_at_all_is_one_line(tmp_path, capsys, make, message):
    make(tmp_path / "some.tar")
    assert re.search(message, refused(capsys, tmp_path / "some.tar", tmp_path / "dst"))
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize("n_cut, message", [(100_000, "is not a whole tar file"), (4_000_000, "is not a whole tar")])
def test_a_cut_tar_is_one_line(made, tmp_path, capsys, n_cut, message):
    path = tmp_path / "some.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(made[0] / "softmotion30_44k", "softmotion30_44k")
    os.truncate(path, path.stat().st_size - n_cut)
    assert message in refused(capsys, path, tmp_path / "dst")


def test_a_file_whose_name_does_not_say_what_it_holds_is_refused(src, tmp_path, capsys):
    path = src / "softmotion30_44k" / "train" / DAMAGED
    path.rename(path.with_name("traj_512.tfrecords"))
    assert "train/traj_512.tfrecords should be named traj_A_to_B.tfrecords" in refused(capsys, src, tmp_path / "dst")


def test_missing_files_and_records_need_allow_partial_which_says_what_is_missing(src, tmp_path, capsys, made):
    dst, train = tmp_path / "dst", src / "softmotion30_44k" / "train"
    (train / "traj_1024_to_1025.tfrecords").unlink()
    error = refused(capsys, src, dst)
    assert "holds 5 train + 2 test videos by its file names, expected 7 train + 2 test; " in error
    assert "--allow-partial" in error and not dst.exists()

    data = (train / DAMAGED).read_bytes()
    replace(train / DAMAGED, data[: len(data) // 2])
    assert convert(src, dst, "--allow-partial") == 0
    out = capsys.readouterr().out
    assert "train: 4 of 7 published videos, camera aux1 (partial)\n" in out
    assert f"{DAMAGED} has 1 of the 2 records that its name promises" in out
    assert np.array_equal(np.load(dst / "bair_train.npy"), made[1]["train"]["aux1"][:4])


def test_what_was_accepted_as_partial_once_is_not_accepted_without_the_flag(src, tmp_path, capsys):
    path = src / "softmotion30_44k" / "train" / DAMAGED
    data = path.read_bytes()
    replace(path, data[: len(data) // 2])
    assert convert(src, tmp_path / "dst", "--allow-partial") == 0
    assert "traj_512_to_513.tfrecords, record 1: the file ends before it" in refused(capsys, src, tmp_path / "dst")


def test_a_split_without_a_video_is_refused(src, tmp_path, capsys):
    replace(src / "softmotion30_44k" / "test" / "traj_0_to_1.tfrecords", b"")
    assert "not one video for the split test" in refused(capsys, src, tmp_path / "dst", "--allow-partial")


def test_a_finished_conversion_is_left_alone_and_another_camera_replaces_it(made, tmp_path, capsys, expected):
    def written():
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    assert convert(made[0], tmp_path) == 0
    first, out = written(), capsys.readouterr().out
    assert convert(made[0], tmp_path) == 0
    assert written() == first and capsys.readouterr().out == out
    assert convert(made[0], tmp_path, "--camera", "main") == 0
    assert np.array_equal(np.load(tmp_path / "bair_train.npy"), made[1]["train"]["main"])
    assert convert(made[0], tmp_path) == 0
    assert digests(tmp_path) == expected


def convert_until(step, src, dst):
    """Converts in this process, which is killed with SIGKILL before its step-th act that another run could see."""
    steps = 0

    def counted(function):
        def act(*arguments):
            nonlocal steps
            steps += 1
            if steps == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)

        return act

    for module, name in ((convert_bair, "read_video"), (convert_bair, "sync"), (os, "replace")):
        setattr(module, name, counted(getattr(module, name)))
    os._exit(convert(src, dst))


def test_killed_at_any_step_and_run_again_the_bytes_are_the_same(made, tmp_path, expected):
    fork, killed = multiprocessing.get_context("fork"), 0
    for step in range(1, 1000, 4):
        dst = tmp_path / str(step)
        process = fork.Process(target=convert_until, args=(step, made[0], dst))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        for path in dst.glob("*.npy"):
            assert digests(dst)[path.name] == expected[path.name]  # a final name never has less than all
        assert convert(made[0], dst) == 0
        assert digests(dst) == expected and not list(dst.glob("*.part"))
        shutil.rmtree(dst)
        killed += 1
    assert killed > 10


def test_what_was_finished_before_a_kill_is_not_read_again(made, tmp_path, monkeypatch, expected):
    process = multiprocessing.get_context("fork").Process(target=convert_until, args=(32, made[0], tmp_path))
    process.start()
    process.join()
    n_done = sum(path.read_text().count(".tfrecords") for path in tmp_path.glob("*.json*"))
    assert 1 < n_done < 4
    read, read_records = [], convert_bair.read_records
    monkeypatch.setattr(convert_bair, "read_records", lambda *given: read.append(given) or read_records(*given))
    assert convert(made[0], tmp_path) == 0
    assert len(read) == 4 - n_done and digests(tmp_path) == expected


def test_kill_9_of_the_command_and_the_same_command_again_give_the_same_bytes(made, tmp_path):
    train, dst = tmp_path / "src" / "train", tmp_path / "dst"
    train.mkdir(parents=True)
    for n in range(40):  # enough to be in the midst of it when the first file's end shows
        os.link(made[0] / "softmotion30_44k" / "train" / DAMAGED, train / f"traj_{2 * n}_to_{2 * n + 1}.tfrecords")
    arguments = [str(tmp_path / "src"), str(dst), "--allow-partial"]
    command = multiprocessing.get_context("fork").Process(target=convert, args=arguments)
    command.start()
    while command.is_alive() and not (dst / "bair_train.json.part").exists():
        time.sleep(0.001)
    command.kill()
    command.join()
    assert command.exitcode == -signal.SIGKILL and not list(dst.glob("*.npy"))
    assert convert(*arguments) == 0
    assert convert(tmp_path / "src", tmp_path / "again", "--allow-partial") == 0
    assert digests(dst) == digests(tmp_path / "again")
    assert np.array_equal(np.load(dst / "bair_train.npy")[::2], np.tile(made[1]["train"]["aux1"][3], (40, 1, 1, 1, 1)))


@pytest.fixture
def served(made, tmp_path, monkeypatch):
    """A published tar, and where it lies on the network."""
    tar = tmp_path / "network" / "served.tar"
    tar.parent.mkdir()
    with tarfile.open(tar, "w") as file:
        file.add(made[0] / "softmotion30_44k", "softmotion30_44k")
    monkeypatch.setattr(convert_bair, "URL", tar.as_uri())
    monkeypatch.setattr(convert_bair, "TAR_BYTES", tar.stat().st_size)
    monkeypatch.setattr(convert_bair, "TAR_SHA256", hashlib.sha256(tar.read_bytes()).hexdigest())
    return tar


def test_the_tar_is_downloaded_once_and_converted(served, tmp_path, capsys, expected):
    root, dst = tmp_path / "new" / "root", tmp_path / "dst"
    assert convert(root, dst, "--download") == 0
    served.unlink()
    assert convert(root, dst, "--download") == 0
    assert digests(dst) == expected and [path.name for path in root.iterdir()] == ["served.tar"]
    assert "is not the published tar" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda tar: tar.unlink(), "URLError"),
        (lambda tar: os.truncate(tar, 3_000_000), "RuntimeError invalid hash value"),
    ],
)
def test_a_download_that_fails_is_one_line_and_leaves_nothing(served, tmp_path, capsys, damage, message):
    damage(served)
    error = refused(capsys, tmp_path / "root", tmp_path / "dst", "--download").splitlines()[-1]
    assert f"cannot download {convert_bair.URL} (" in error and message in error
    assert f"put the file into {tmp_path / 'root'} yourself, `wget -c` resumes it" in error
    assert not list((tmp_path / "root").iterdir()) and not (tmp_path / "dst").exists()


def load(root, split="train", **options):
    return load_dataset("bair", root, split, **{"seq_len": 12} | options)


def cut(dataset, index):
    """Video, first frame, whether it is mirrored."""
    return tuple(values.item() for values in dataset.cuts([index]))


def as_clip(frames):
    """(T, 64, 64, 3) -> (T, 3, 64, 64)."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)


def test_the_reader_shows_what_was_converted(made, tmp_path):
    assert convert(made[0], tmp_path) == 0
    dataset = load(tmp_path, "test", seq_len=30)
    assert len(dataset) == 2 and dataset.channels == 3 and dataset[1].is_contiguous()
    for clip, video in zip(dataset, made[1]["test"]["aux1"], strict=False):
        assert clip.dtype == torch.uint8 and clip.equal(as_clip(video))


def test_train_and_valid_share_no_video_and_together_are_all(tmp_path):
    write_bair_arrays(tmp_path)
    train, valid, test = (load(tmp_path, split) for split in ("train", "valid", "test"))
    assert (len(train), len(valid), len(test)) == (2**24, 2, 3)
    assert sorted({cut(train, i)[0] for i in range(500)} | {cut(valid, i)[0] for i in range(2)}) == list(range(40))
    assert {cut(valid, i) for i in range(2)} == {(38, 0, False), (39, 0, False)}
    for index in range(2):
        assert valid[index].equal(as_clip(bair_noise(40, seed=40)[38 + index, :12]))
        assert test[index].equal(as_clip(bair_noise(3, seed=3)[index, :12]))
    assert valid.content_hash(2) == load(tmp_path, "valid", seed=1, flip=True).content_hash(2)


def test_training_clips_start_at_every_frame_equally_often_and_at_another_in_the_next_pass(tmp_path):
    train, videos = load(write_bair_arrays(tmp_path)), bair_noise(40, seed=40)
    starts = train.cuts(range(38 * 100))[1]
    counts = np.bincount(starts, minlength=19)
    assert len(counts) == 19 and (np.abs(counts - 200) < 5 * np.sqrt(200)).all()
    passes = starts.reshape(100, 38)
    assert (passes[1:] != passes[:-1]).mean() > 0.9
    for index in (0, 5, 38, 2**24 - 1):
        video, start, _ = cut(train, index)
        assert video == index % 38 and train[index].equal(as_clip(videos[video, start : start + 12]))


def test_a_clip_depends_on_seed_split_and_index_alone(tmp_path):
    train = load(write_bair_arrays(tmp_path))
    indices = [5, 0, 400_000, 5]
    for index, clip in zip(indices, train.__getitems__(indices), strict=True):
        assert clip.equal(load(tmp_path)[index])
    assert train.cuts(range(9))[1].tolist() != load(tmp_path, seed=1).cuts(range(9))[1].tolist()


def test_flips_mirror_about_half_of_the_training_clips_and_move_no_start(tmp_path):
    plain, flipped = load(write_bair_arrays(tmp_path)), load(tmp_path, flip=True)
    cuts = [(cut(plain, index), cut(flipped, index)) for index in range(400)]
    assert all(a[:2] == b[:2] and not a[2] for a, b in cuts)
    assert 160 < sum(b[2] for _, b in cuts) < 240
    early = [mirrored for _, (_, start, mirrored) in cuts if start < 9]
    assert 0.35 < np.mean(early) < 0.65  # whichever frame they start from
    for index, (_, (*_, mirrored)) in enumerate(cuts[:20]):
        assert flipped[index].equal(plain[index].flip(-1) if mirrored else plain[index])


def test_loader_workers_give_the_same_clips_and_open_the_videos_themselves(tmp_path):
    dataset = load(write_bair_arrays(tmp_path), flip=True)
    expected = torch.stack(dataset.__getitems__(range(30)))
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 1000
    copy = pickle.loads(pickled)
    assert copy._opened == {} and copy[7].equal(dataset[7]) and isinstance(copy.videos, np.memmap)
    for workers in (0, 2):
        batches = DataLoader(Subset(pickle.loads(pickled), range(30)), batch_size=8, num_workers=workers)
        assert torch.cat(list(batches)).equal(expected)


def test_svgs_png_folders_give_the_same_clips_as_the_array(tmp_path):
    write_bair_arrays(tmp_path, n_train=20, n_test=1)
    videos = bair_noise(20, seed=20)
    trajectories = [("traj_256_to_266", range(11)), ("traj_1024_to_1032.tfrecords", range(11, 20))]
    for name, numbers in trajectories:  # SVG counts the videos of a file from 1
        for k, number in enumerate(numbers, 1):
            folder = tmp_path / "png" / "processed_data" / "train" / name / str(k)
            folder.mkdir(parents=True)
            for t, frame in enumerate(videos[number]):
                Image.fromarray(frame).save(folder / f"{t}.png", compress_level=0)
    for split in ("train", "valid"):
        array, png = load(tmp_path, split), load(tmp_path / "png", split)
        assert len(png) == len(array) and len(pickle.dumps(png)) < 1000
        for index in range(min(40, len(png))):
            assert png[index].equal(array[index])

    folder = tmp_path / "png" / "processed_data" / "train" / trajectories[1][0] / "9"
    Image.new("RGB", (32, 64)).save(folder / "0.png")
    (folder / "1.png").write_bytes(b"damaged")
    with pytest.raises(FileNotFoundError, match=r"9/0.png .*\(64, 32, 3\), expected \(64, 64, 3\)"):
        load(tmp_path / "png", "valid")[0]
    Image.fromarray(videos[19][0]).save(folder / "0.png")
    with pytest.raises(FileNotFoundError, match="no usable frame in .*9/1.png"):
        load(tmp_path / "png", "valid")[0]


def test_actions_and_positions_are_those_of_the_frames_that_a_clip_shows(tmp_path):
    write_bair_arrays(tmp_path)
    indices = [5, 0, 400_000, 5, 38]
    train = load(tmp_path)
    videos, starts, _ = train.cuts(indices)
    for values, size in ((train.actions(indices), 4), (train.positions(indices), 3)):
        assert values.shape == (5, 12, size) and values.dtype == torch.float32
        for row, video, start in zip(values, videos, starts, strict=True):
            assert np.array_equal(row, numbered_by_clip(40, size)[video, start : start + 12])
    assert train.action_size == 4 and train.actions(indices[:2]).equal(train.actions(indices)[:2])
    for split, videos in (("valid", numbered_by_clip(40, 4)[38:]), ("test", numbered_by_clip(3, 4))):
        assert np.array_equal(load(tmp_path, split).actions(range(len(videos))), videos[:, :12])
    with pytest.raises(IndexError, match="clip 3 is not in 0..2"):
        load(tmp_path, "test").actions([3])


def test_actions_are_the_same_after_pickling_and_whatever_else_was_read(tmp_path):
    train = load(write_bair_arrays(tmp_path))
    before = pickle.loads(pickle.dumps(train)).actions([7])
    train.__getitems__(range(20))
    assert train.actions(range(3, 9))[4].equal(before[0])


def test_flipped_bair_has_no_actions_because_its_camera_is_not_known(tmp_path):
    train = load(write_bair_arrays(tmp_path), flip=True)
    with pytest.raises(ValueError, match="how its actions would mirror is not known; drop flip"):
        train.actions([0])
    assert load(tmp_path, "valid", flip=True).actions([0]).shape == (1, 12, 4)


@pytest.mark.parametrize(
    "write, error, message",
    [
        (lambda path: path.unlink(), FileNotFoundError, "is missing.*python -m datasets.bair.convert SRC"),
        (
            lambda path: np.save(path, numbered_by_clip(40, 3)),
            FileNotFoundError,
            r"\(40, 30, 3\) float32, expected \(N, 30, 4\)",
        ),
        (lambda path: np.save(path, numbered_by_clip(40, 4).astype(float)), FileNotFoundError, "float64, expected"),
        (lambda path: np.save(path, numbered_by_clip(40, 4) * np.nan), FileNotFoundError, "values that are not finite"),
        (lambda path: np.save(path, numbered_by_clip(39, 4)), ValueError, "actions of 39 videos and frames of 40"),
    ],
)
def test_missing_or_damaged_actions_are_one_line_where_they_are_asked_for(tmp_path, write, error, message):
    write_bair_arrays(tmp_path)
    write(tmp_path / "bair_train_actions.npy")
    train = load(tmp_path)
    assert train[0].shape == (12, 3, 64, 64)
    with pytest.raises(error, match=message) as raised:
        train.actions([0])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"[" * 200_000, b"3", b"{}", b"\xff", b'{"camera": "aux1", "videos": 10, "files": [], "records": []}'],
)
def test_a_damaged_state_of_a_conversion_is_one_line(made, tmp_path, content, capsys):
    assert convert(made[0], tmp_path) == 0
    (tmp_path / "bair_test.json").write_bytes(content)
    capsys.readouterr()
    assert convert(made[0], tmp_path) == 2
    error = capsys.readouterr().err
    assert "bair_test.json is damaged" in error and "delete it to start again" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "write, message",
    [
        (lambda path: None, "is missing"),
        (lambda path: os.mkfifo(path), "is missing, or not a file"),
        (lambda path: path.write_bytes(b""), "magic"),
        (lambda path: path.write_bytes(HTML), "magic"),
        (lambda path: np.savez(path.with_suffix(""), bair_noise(2)) or path.with_suffix(".npz").rename(path), "magic"),
        (lambda path: np.save(path, np.asfortranarray(bair_noise(2))), "Fortran order"),
        (lambda path: np.save(path, np.array([{}]), allow_pickle=True), "Python objects"),
        (
            lambda path: np.save(path, bair_noise(2)[:, :20]),
            r"\(2, 20, 64, 64, 3\) uint8, expected \(N, 30, 64, 64, 3\) uint8",
        ),
        (lambda path: np.save(path, bair_noise(2) > 0), "bool, expected"),
        (lambda path: np.save(path, bair_noise(2)) or os.truncate(path, 9999), "ValueError"),
    ],
)
def test_missing_or_damaged_arrays_are_one_line_with_the_command(tmp_path, write, message):
    path = tmp_path / "bair_train.npy"
    write(path)
    with pytest.raises(FileNotFoundError, match=f"{message}.*python -m datasets.bair.convert SRC {tmp_path}") as error:
        load(tmp_path)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and error.value.__suppress_context__


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image_size": 128}, "image_size of bair must be 64, got 128"),
        ({"seq_len": 31}, "seq_len must be <= 30, the length of these videos, got 31"),
        ({"seq_len": 0}, "seq_len must be an integer >= 1, got 0"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
        ({"flip": "no"}, "flip must be True or False, got 'no'"),
        ({"camera": "main"}, "bair has no option 'camera', expected one of flip"),
        ({"root": None}, "root must be the folder that holds bair's converted videos, got None"),
        ({}, "holds 1 videos to train and validate on, too few to split 95 to 5"),
    ],
)
def test_bad_settings_are_refused_by_name_in_one_line(tmp_path, options, message):
    write_bair_arrays(tmp_path, n_train=1, n_test=1)
    with pytest.raises(ValueError, match=message) as error:
        load(**{"root": tmp_path} | options)
    assert "\n" not in str(error.value)
