import math
import os
from pathlib import Path

import pytest
import torch

# Tiny tensors gain nothing from a second thread, and lose much where another process keeps the cores busy.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
MNIST = Path(os.environ.get("SEQVAE_DATA") or Path(__file__).parent.parent / "data").resolve()


# Modules that train whole runs, write hundreds of movies, start commands or processes: `make test-fast` leaves them
# out, and with them every test that opens a browser or is marked long: those that take more than two seconds.
LONG = {
    *("test_actions", "test_benchmarks", "test_colour_cli", "test_distributed", "test_evaluate_cli"),
    *("test_datasets_kth", "test_evaluate_distributed", "test_gpu_suite", "test_lock", "test_metrics_perceptual"),
    *("test_no_waiting", "test_notebook", "test_predictions", "test_run", "test_scripts", "test_train_cli"),
    "test_trial",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in LONG or "browser" in item.fixturenames:
            item.add_marker(pytest.mark.long)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and there is none")


@pytest.fixture
def mnist_root() -> Path:
    """Folder of the real MNIST files; the test is skipped where there are none."""
    if not (MNIST / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
        pytest.skip(f"no MNIST in {MNIST}; set SEQVAE_DATA to a folder that holds MNIST/raw")
    return MNIST


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Run folder of a tiny model, whose samples differ from one another as a trained model's do."""
    import train  # slow, and few modules need it
    from tests.helpers import GECO_FLAGS

    folder = tmp_path_factory.mktemp("runs") / "geco"
    assert train.main([*GECO_FLAGS, "--data.n-future", "8", "--run-dir", str(folder)]) == 0
    for path in (folder / "checkpoints").glob("*.pt"):
        state = torch.load(path, weights_only=True)
        for name, weight in state["model"].items():
            if weight.ndim > 1:
                weight.mul_(2 if "lstm" in name else 12)
        torch.save(state, path)
    return folder


@pytest.fixture(scope="session")
def torch_home(tmp_path_factory) -> Path:
    """A TORCH_HOME that holds LPIPS's backbones with random weights."""
    from seqvae.metrics.perceptual import BACKBONES
    from tests.helpers import backbone, without_storage

    home, generator = tmp_path_factory.mktemp("torch"), torch.Generator().manual_seed(0)
    (home / "hub" / "checkpoints").mkdir(parents=True)
    for net, url in BACKBONES.items():
        # The classifier, nine tenths of the file, is unused: one number stretched over it.
        state = {
            name: torch.randn(x.shape, generator=generator) / math.sqrt(max(1, x.shape[1:].numel() / 2))
            if name.startswith("features")
            else torch.zeros(()).expand(x.shape)
            for name, x in without_storage(backbone(net)).state_dict().items()
        }
        torch.save(state, home / "hub" / "checkpoints" / url.split("/")[-1])
    return home


@pytest.fixture
def no_charts(request, monkeypatch) -> None:
    """Evaluations draw no charts, which take half of their time, unless a test is marked `charts`."""
    from seqvae.evaluation import results
    from seqvae.report import plots

    if request.node.get_closest_marker("charts") is None:
        for module in (plots, results):
            monkeypatch.setattr(module, "figures", lambda group, alone: [])
