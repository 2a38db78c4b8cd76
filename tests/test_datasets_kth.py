"""KTH: made archives in the published layout, converted; what is refused; the reader and SRVP's test clips; a run."""

import hashlib
import io
import os
import pickle
import re
import shutil
import zipfile

import av
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

import datasets.kth as kth
import evaluate
import train
from datasets import load_dataset
from datasets.kth import convert as converter
from seqvae.evaluation.choose import choose_protocol
from seqvae.presets import PRESETS

pytestmark = pytest.mark.usefixtures("no_charts")

ACTIONS = ["boxing", "handclapping", "handwaving", "jogging", "running", "walking"]
PEOPLE = {"train": range(1, 3), "valid": range(3, 4), "test": range(4, 6)}  # of the made archives
LENGTHS = {1: 41, 2: 25, 3: 30, 4: 44, 5: 40}  # frames, by person


def make_avi(frames):
    """An AVI file in MPEG-4, as the published ones are; frames (T, H, W) uint8, grey."""
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = *frames.shape[1:], "yuv420p", 4_000_000
        stream.gop_size = 1  # every frame is whole, so a cut leaves those before it
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.repeat(frame[..., None], 3, 2), format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def make_frames(person, action, trial):
    """(T, 120, 160) uint8: a light square that moves on a background of the video's own grey."""
    number = (person * 6 + ACTIONS.index(action)) * 4 + trial
    frames = np.full((LENGTHS[person], 120, 160), 20 + number % 100, np.uint8)
    for t, frame in enumerate(frames):
        frame[40:80, 2 * t : 2 * t + 40] = 250
    return frames


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Folder of six archives of five people."""
    root = tmp_path_factory.mktemp("archives")
    for action in ACTIONS:
        with zipfile.ZipFile(root / f"{action}.zip", "w") as file:
            for person in LENGTHS:
                for trial in range(1, 5):
                    name = f"person{person:02d}_{action}_d{trial}_uncomp.avi"
                    file.writestr(name, make_avi(make_frames(person, action, trial)))
    return root


@pytest.fixture(autouse=True)
def people(monkeypatch):
    monkeypatch.setattr(kth, "PEOPLE", PEOPLE)
    monkeypatch.setattr(converter, "PEOPLE", PEOPLE)
    kth._open.cache_clear()


@pytest.fixture(scope="session")
def converted(made, tmp_path_factory):
    root = tmp_path_factory.mktemp("kth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kth, "PEOPLE", PEOPLE)
        patch.setattr(converter, "PEOPLE", PEOPLE)
        assert converter.main([str(made), str(root)]) == 0
    return root


@pytest.fixture
def src(made, tmp_path):
    """The archives, which may be replaced."""
    shutil.copytree(made, tmp_path / "src", copy_function=os.link)
    return tmp_path / "src"


def convert(*arguments):
    return converter.main([str(argument) for argument in arguments])


def refused(capsys, *arguments):
    """The one line that the command ends with."""
    capsys.readouterr()
    assert convert(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("datasets.kth.convert: ") and error.count("\n") == 1
    return error


def rewrite(path, change):
    """The archive with change(name, data) in each file's place; None leaves it out."""
    with zipfile.ZipFile(path) as file:
        files = {name: change(name, file.read(name)) for name in file.namelist()}
    path.unlink()  # it is a link to the made one
    with zipfile.ZipFile(path, "w") as file:
        for name, data in files.items():
            if data is not None:
                file.writestr(name, data)


def load(root, split="train", **options):
    return load_dataset("kth", root, split, **{"seq_len": 20} | options)


def test_the_published_people_videos_and_names(monkeypatch):
    monkeypatch.undo()
    names = converter.published_videos()
    assert [len(names[split]) for split in ("train", "valid", "test")] == [19 * 24 - 1, 24, 120]
    assert names["train"][0] == "person01_boxing_d1" and names["test"][-1] == "person25_walking_d4"
    assert "person13_handclapping_d3" not in names["train"]


def test_frames_are_stretched_to_64_pixels_and_show_what_the_files_show(converted, capsys):
    arrays = {split: np.load(converted / f"kth_{split}.npy") for split in PEOPLE}
    for split, people in PEOPLE.items():
        assert arrays[split].shape == (24 * sum(LENGTHS[person] for person in people), 64, 64)
    first = make_frames(1, "boxing", 1)
    for t in (0, 20, 40):
        frame, grey = arrays["train"][t].astype(int), int(first[t, 0, 0])
        square = frame[24:40, round(2 * t * 0.4) + 2 : round((2 * t + 40) * 0.4) - 2]  # 0.4 and 8/15 of the size
        assert abs(square - 250).max() < 12
        assert abs(frame[:18] - grey).max() < 6 and abs(frame[46:] - grey).max() < 6


def test_the_index_says_what_the_arrays_hold(converted):
    facts = kth.read_json(converted / "kth.json", kth.INDEX, "")
    assert facts["videos"]["train"][0] == {"name": "person01_boxing_d1", "frames": 41}
    for name, digest in facts["sha256"].items():
        assert hashlib.sha256((converted / name).read_bytes()).hexdigest() == digest
    assert sorted(path.name for path in converted.iterdir()) == sorted(["kth.json", *facts["sha256"]])


def test_folders_of_avi_files_give_the_same_arrays(made, converted, tmp_path):
    for action in ACTIONS:
        with zipfile.ZipFile(made / f"{action}.zip") as file:
            file.extractall(tmp_path / "raw" / action)
    assert convert(tmp_path / "raw", tmp_path / "dst") == 0
    for path in converted.iterdir():
        assert (tmp_path / "dst" / path.name).read_bytes() == path.read_bytes()


def cut(data):
    return data[: len(data) // 2]


def scratched(data):
    return data[: len(data) // 2] + bytes(200) + data[len(data) // 2 + 200 :]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda data: None, r"src lacks 1 of the published videos, person02_jogging_d3_uncomp.avi first; .*--download"),
        (cut, r"jogging.zip: person02_jogging_d3_uncomp.avi cannot be read"),
        (scratched, r"jogging.zip: person02_jogging_d3_uncomp.avi cannot be read"),
        (lambda data: b"", "person02_jogging_d3_uncomp.avi cannot be read"),
        (lambda data: b"<!DOCTYPE html>" * 99, "person02_jogging_d3_uncomp.avi cannot be read"),
    ],
)
def test_a_damaged_or_missing_video_is_one_line_and_leaves_no_index(src, tmp_path, capsys, change, message):
    target = "person02_jogging_d3_uncomp.avi"
    rewrite(src / "jogging.zip", lambda name, data: change(data) if name == target else data)
    assert re.search(message, refused(capsys, src, tmp_path / "dst"))
    assert not (tmp_path / "dst" / "kth.json").exists()


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            lambda path: path.write_bytes(b"<!DOCTYPE html>" * 99),
            "jogging.zip is not a whole zip file .*get it again",
        ),
        (lambda path: path.write_bytes(b""), "jogging.zip is not a whole zip file"),
        (lambda path: None, "src lacks 20 of the published videos, person01_jogging_d1_uncomp.avi first"),
    ],
)
def test_a_damaged_or_missing_archive_is_one_line(src, tmp_path, capsys, damage, message):
    (src / "jogging.zip").unlink()
    damage(src / "jogging.zip")
    assert re.search(message, refused(capsys, src, tmp_path / "dst"))


def test_flipped_bits_in_an_archive_are_found_by_its_crc(src, tmp_path, capsys):
    data = bytearray((src / "jogging.zip").read_bytes())
    data[1000] ^= 1
    (src / "jogging.zip").unlink()
    (src / "jogging.zip").write_bytes(data)
    error = refused(capsys, src, tmp_path / "dst")
    assert "jogging.zip: person01_jogging_d1_uncomp.avi is damaged (BadZipFile Bad CRC-32" in error


def test_the_video_that_was_published_cut_short_gives_what_it_has(src, tmp_path):
    target = "person01_boxing_d4_uncomp.avi"
    rewrite(src / "boxing.zip", lambda name, data: cut(data) if name == target else data)
    assert convert(src, tmp_path) == 0
    videos = kth.read_json(tmp_path / "kth.json", kth.INDEX, "")["videos"]["train"]
    assert 5 < videos[3]["frames"] < 41 and videos[3]["name"] == "person01_boxing_d4"
    assert len(np.load(tmp_path / "kth_train.npy")) == sum(video["frames"] for video in videos)


def test_part_of_the_videos_needs_allow_partial_and_makes_no_test_set(src, tmp_path, capsys):
    (src / "walking.zip").unlink()
    assert "src lacks 20 of the published videos, person01_walking_d1" in refused(capsys, src, tmp_path / "dst")
    assert convert(src, tmp_path / "dst", "--allow-partial") == 0
    assert "train: 40 of 48 published videos" in capsys.readouterr().out
    assert load(tmp_path / "dst")[0].shape == (20, 1, 64, 64)
    with pytest.raises(ValueError, match=r"the test set needs 40 frames of person0\d_walking_d\d, and there are 0"):
        load(tmp_path / "dst", "test")


def test_archives_are_downloaded_where_they_are_missing(made, converted, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(converter, "URL", made.as_uri() + "/{action}.zip")
    assert convert(tmp_path / "src", tmp_path / "dst", "--download") == 0
    assert (tmp_path / "dst" / "kth_test.npy").read_bytes() == (converted / "kth_test.npy").read_bytes()
    (tmp_path / "src" / "boxing.zip").unlink()
    monkeypatch.setattr(converter, "URL", (tmp_path / "nowhere").as_uri() + "/{action}.zip")
    error = refused(capsys, tmp_path / "src", tmp_path / "dst", "--download")
    assert "cannot download file://" in error and f"put the file into {tmp_path / 'src'} yourself" in error


def spans(root, split):
    """Name -> frames (T, 64, 64) of each video of a split."""
    frames, videos, first = np.load(root / f"kth_{split}.npy"), {}, 0
    for video in kth.read_json(root / "kth.json", kth.INDEX, "")["videos"][split]:
        videos[video["name"]] = frames[first : first + video["frames"]]
        first += video["frames"]
    return videos


def test_test_clips_are_drawn_as_srvps_are(converted):
    """Action, person, trial and start, in this order, 1000 times from NumPy's old generator at seed 42."""
    test, videos = load(converted, "test", seq_len=40), spans(converted, "test")
    rng = np.random.RandomState(42)
    assert len(test) == 1000 and test.channels == 1
    for index in range(1000):
        action, person, trial = ACTIONS[rng.randint(6)], rng.randint(4, 6), rng.randint(1, 5)
        video = videos[f"person{person:02d}_{action}_d{trial}"]
        start = rng.randint(len(video) - 40 + 1)
        if index < 100:
            assert np.array_equal(test[index][:, 0], video[start : start + 40])
    assert load(converted, "test", seq_len=15)[7].equal(test[7][:15])


def test_training_clips_are_windows_of_training_videos_and_valid_ones_begin_them(converted):
    train_clips, videos = load(converted), list(spans(converted, "train").values())
    assert len(train_clips) == 2**24
    found = []
    for index in range(300):
        clip = train_clips[index][:, 0].numpy()
        found += [
            (number, start)
            for number, video in enumerate(videos)
            for start in range(len(video) - 19)
            if video[start, 0, 0] == clip[0, 0, 0] and np.array_equal(video[start : start + 20], clip)
        ][:1]
    assert len(found) == 300 and len({number for number, _ in found}) > 30 and len({s for _, s in found}) > 15
    assert len(load(converted, seq_len=41).table()[1]) == 24  # person 2's videos are too short
    valid = load(converted, "valid")
    for index, video in enumerate(spans(converted, "valid").values()):
        assert np.array_equal(valid[index][:, 0], video[:20])


def test_a_clip_depends_on_seed_split_and_index_alone_and_loaders_give_the_same(converted):
    train_clips = load(converted)
    indices = [5, 0, 400_000, 5]
    for index, clip in zip(indices, train_clips.__getitems__(indices), strict=True):
        assert clip.equal(load(converted)[index])
    assert not torch.stack(train_clips.__getitems__(range(9))).equal(
        torch.stack(load(converted, seed=1).__getitems__(range(9)))
    )
    assert len(pickle.dumps(train_clips)) < 1000
    expected = torch.stack(train_clips.__getitems__(range(12)))
    for workers in (0, 2):
        batches = DataLoader(Subset(train_clips, range(12)), batch_size=5, num_workers=workers)
        assert torch.cat(list(batches)).equal(expected)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda root: (root / "kth.json").unlink(), "kth.json is missing"),
        (lambda root: (root / "kth.json").write_text("{}"), "kth.json is damaged"),
        (lambda root: (root / "kth_train.npy").unlink(), "kth_train.npy is missing"),
        (lambda root: os.truncate(root / "kth_train.npy", 9999), "ValueError"),
        (
            lambda root: np.save(root / "kth_train.npy", np.zeros((9, 64, 64), np.uint8)),
            r"\(9, 64, 64\) uint8, and kth",
        ),
    ],
)
def test_missing_or_damaged_arrays_are_one_line_with_the_command(converted, tmp_path, damage, message):
    shutil.copytree(converted, tmp_path / "kth")
    damage(tmp_path / "kth")
    with pytest.raises(FileNotFoundError, match=f"{message}.*python -m datasets.kth.convert SRC") as error:
        load(tmp_path / "kth")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image_size": 128}, "image_size of kth must be 64, got 128"),
        ({"seq_len": 0}, "seq_len must be an integer >= 1, got 0"),
        ({"seq_len": 42}, "no train video of .* has seq_len = 42 frames, the longest has 41"),
        ({"split": "test", "seq_len": 41}, "seq_len must be <= 40, the length of the test clips, got 41"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
        ({"root": None}, "root must be the folder that holds KTH's converted videos, got None"),
    ],
)
def test_bad_settings_are_refused_by_name_in_one_line(converted, options, message):
    with pytest.raises(ValueError, match=message) as error:
        load(**{"root": converted} | options)
    assert "\n" not in str(error.value)


@pytest.mark.long
def test_a_preset_trains_and_is_evaluated_under_srvps_protocol(converted, tmp_path, capsys):
    tiny = ["--model.width", "4", "--model.g-dim", "8", "--model.rnn-size", "8", "--model.z-dim", "2"]
    tiny += ["--optim.steps", "2", "--optim.batch-size", "2", "--run.n-valid", "2", "--compute.workers", "0"]
    assert train.main(["kth-sigma", *tiny, "--data.root", str(converted), "--run-dir", str(tmp_path)]) == 0
    assert evaluate.main([str(tmp_path), "--n-samples", "2", "--n-videos", "2", "--lpips", "off"]) == 0
    out = capsys.readouterr().out
    assert "srvp-2020 (2 of 100 samples, 2 of 1000 videos)" in out and "SLAMP-Baseline [S]" in out
    assert "10 frames observed, 30 predicted" in out


@pytest.mark.parametrize("preset", ["kth-sigma", "kth-geco"])
def test_presets_have_srvps_lengths_in_training_and_its_protocol(preset):
    cfg = PRESETS[preset][1]
    assert (cfg.data.n_past, cfg.data.n_future) == (10, 10)
    protocol = choose_protocol(cfg, "auto")
    sizes = (protocol.n_past, protocol.n_future, protocol.n_samples, protocol.n_videos)
    assert protocol.name == "srvp-2020" and sizes == (10, 30, 100, 1000)
