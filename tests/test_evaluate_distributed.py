"""Processes that share the test videos out leave what one process leaves."""

import pytest
import torch

import evaluate
from tests.helpers import start_two
from tests.results import metrics

pytestmark = pytest.mark.usefixtures("no_charts")


@pytest.mark.parametrize("n_videos", [5, 1])
def test_processes_with_unequal_shares_give_the_numbers_of_one(n_videos, trained, torch_home, tmp_path, monkeypatch):
    class TinyI3D(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, 3, T, 224, 224) -> (B, 400)
            return x.mean((2, 3, 4)).repeat(1, 134)[:, :400] - x.std((1, 2, 3, 4))[:, None]

    flags = [str(trained), "--n-videos", str(n_videos), "--n-samples", "3", "--batch-size", "2", "--n-importance", "2"]
    if n_videos > 1:
        torch.jit.script(TinyI3D()).save(str(tmp_path / "i3d.pt"))
        monkeypatch.setenv("TORCH_HOME", str(torch_home))
        flags += ["--fvd-weights", str(tmp_path / "i3d.pt")]
    processes = start_two("evaluate", *[[*flags, "--device", "cpu", "--out", str(tmp_path / "two")]] * 2)
    assert evaluate.main([*flags, "--out", str(tmp_path / "one")]) == 0
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "best of 3" in outputs[0][0] and outputs[1][0] == "", "process 0 alone prints"
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert one.keys() == two.keys()

    def compare(a: object, b: object, where: str) -> None:
        if isinstance(a, dict):
            assert a.keys() == b.keys(), where
            for key in a:
                compare(a[key], b[key], f"{where}.{key}")
        elif isinstance(a, list):
            for i, (x, y) in enumerate(zip(a, b, strict=True)):
                compare(x, y, f"{where}[{i}]")
        else:
            assert a == (pytest.approx(b, rel=1e-5, abs=1e-5) if isinstance(a, float) else b), where

    compare(one, two, "")
    for name in ("gifs/grid.gif", "strips/video_000.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_takes_one_process_says_so(trained, tmp_path):
    processes = start_two("evaluate", *[[str(trained), "--save-predictions", "--out", str(tmp_path)]] * 2)
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert "take one process; start them without torchrun" in outputs[0][1] and not outputs[1][1].strip()
    assert not list(tmp_path.iterdir())
