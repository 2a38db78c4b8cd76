"""The notebook runs from top to bottom, and its pictures are pictures."""

import base64
import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "quickstart.ipynb"


def test_every_cell_of_the_quickstart_runs_and_shows_what_it_says(monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel: pip install -e '.[dev]'")
    pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel: pip install -e '.[dev]'")
    import nbformat

    # A kernel that starts has no notion of pytest's path: it imports seqvae from this checkout by the variable.
    monkeypatch.setenv("PYTHONPATH", ":".join([str(NOTEBOOK.parent.parent), *sys.path]))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert len(notebook.cells) == 10
    nbclient.NotebookClient(notebook, timeout=60, resources={"metadata": {"path": NOTEBOOK.parent}}).execute()
    data = [output.data for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    pictures = [bytes_of(entry[kind]) for entry in data for kind in ("image/png", "image/gif") if kind in entry]
    frames = [Image.open(io.BytesIO(picture)).n_frames if picture[:3] == b"GIF" else 1 for picture in pictures]
    assert frames == [1, 25, 1, 1, 1]


def test_the_notebook_is_kept_small():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert NOTEBOOK.stat().st_size < 200_000 and len(cells) == 10


def bytes_of(encoded: str) -> bytes:
    return base64.b64decode(encoded)
