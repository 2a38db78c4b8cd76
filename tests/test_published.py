"""Published rows against a second transcription, laid out by column instead of by row."""

import json

import pytest

from seqvae.metrics.protocols import PROTOCOLS
from seqvae.metrics.published import MARKS, caption, published_rows, published_table, to_json

# What the source's tables say, read column by column; - where they say nothing.
COLUMNS = {
    ("srvp-2020", "moving_mnist"): {
        "name": "black frames|SVG|SLAMP, static branch only|SLAMP-Baseline (motion, no motion history)|SRVP|SLAMP|"
        "true simulator, best of 1|true simulator, best of 10|true simulator, best of 100",
        "psnr": "13.82|14.50 0.04|15.03 0.04|16.83 0.06|16.93 0.07|18.07 0.08|17.2|19.5|23.7",
        "ssim": "-|0.7090 0.0015|0.7273 0.0014|0.7537 0.0018|0.7799 0.0020|0.7736 0.0019|0.713|0.774|0.834",
        "mark": "computed|S|S|S|S|S|computed|computed|computed",
    },
    ("srvp-2020", "bair"): {
        "name": "SVG|SAVP|SRVP|SLAMP-Baseline|SLAMP|hierarchical VRNN",
        "psnr": "18.95 0.26|18.44 0.25|19.59 0.27|19.60 0.26|19.67 0.26|-",
        "ssim": "0.8058 0.0088|0.7887 0.0092|0.8196 0.0084|0.8175 0.0084|0.8161 0.0086|0.822",
        "lpips": "0.0609 0.0034|0.0634 0.0026|0.0574 0.0032|0.0596 0.0032|0.0639 0.0037|0.055",
        "fvd": "255 4|152 9|162 4|245 5|-|143.4",
        "mark": "S|S|S|S|S|S",
    },
    ("srvp-2020", "kth"): {
        "name": "SV2P|SAVP|SVG|SRVP|SLAMP-Baseline|SLAMP",
        "psnr": "28.19 0.31|26.51 0.29|28.06 0.29|29.69 0.32|29.20 0.28|29.39 0.30",
        "ssim": "0.8141 0.0050|0.7564 0.0062|0.8438 0.0054|0.8697 0.0046|0.8633 0.0048|0.8646 0.0050",
        "lpips": "0.2049 0.0053|0.1120 0.0039|0.0923 0.0038|0.0736 0.0029|0.0951 0.0036|0.0795 0.0034",
        "mark": "S|S|S|S|S|S",
    },
    ("images", "mnist"): {
        "name": "VAE|beta-VAE (0.5)|GECO|GECO+IWAE",
        "rate": "1.58|10.59|10.50|1.36",
        "squared_error": "55.85|15.14|14.63|12.92",
        "mark": "M|M|M|M",
    },
}
SCORES = ("psnr", "ssim", "lpips", "fvd", "rate", "squared_error")


@pytest.mark.parametrize("key", COLUMNS, ids=" ".join)
def test_rows_equal_a_second_transcription(key):
    rows, columns = published_rows(*key), COLUMNS[key]
    assert [row.name for row in rows] == columns["name"].split("|")
    assert [row.mark for row in rows] == columns["mark"].split("|")
    for score in SCORES:
        cells = columns.get(score, "|".join("-" * len(rows))).split("|")
        expected = [None if c == "-" else tuple(float(x) for x in (c.split() + ["nan"])[:2]) for c in cells]
        found = [getattr(row, score) for row in rows]
        assert [cell and cell[0] for cell in found] == [cell and cell[0] for cell in expected]
        half_widths = [cell[1] if len(c.split()) == 2 else None for cell, c in zip(expected, cells) if cell]
        assert [cell[1] for cell in found if cell] == half_widths


@pytest.mark.parametrize("key", COLUMNS, ids=" ".join)
def test_every_row_says_where_it_was_read_and_its_mark_is_explained(key):
    rows, lines = published_rows(*key), published_table(*key)
    assert all(row.source and row.mark in MARKS for row in rows)
    for row in rows:
        assert any(line.startswith(f"{row.name} [{row.mark}]") for line in lines)
        assert any(line == f"[{row.mark}] {MARKS[row.mark]}" for line in lines)
        assert not row.note or row.note[:40] in " ".join(lines)
    assert "unverified" in " ".join(lines) or all(row.mark != "M" for row in rows)
    assert max(map(len, lines)) <= 124  # BAIR's four metrics; the others fit in 110


def test_the_caption_has_the_protocols_own_sizes():
    for key in COLUMNS.keys() & PROTOCOLS.keys():
        protocol = PROTOCOLS[key]
        assert caption(*key) == f"Published: best of {protocol.n_samples} on all {protocol.n_videos} videos"
        assert published_table(*key)[0].startswith(caption(*key))


def test_numbers_are_printed_as_they_were_published():
    table = "\n".join(published_table("srvp-2020", "bair"))
    for text in ("18.95 +- 0.26", "0.8058 +- 0.0088", "0.0609 +- 0.0034", "255 +- 4", "143.4", "0.822", "0.055"):
        assert f" {text}" in table


def test_a_protocol_or_data_without_published_rows_has_none():
    assert published_rows("svg-2018", "moving_mnist") == published_rows("own", "digits") == []
    assert published_table("mcvd-2022", "bair") == []


def test_json_holds_the_rows_and_changes_nothing():
    for key in COLUMNS:
        rows = published_rows(*key)
        back = json.loads(json.dumps(to_json(rows)))
        for row, plain in zip(rows, back, strict=True):
            assert plain == {k: list(v) if isinstance(v, tuple) else v for k, v in row._asdict().items()}
        rows.clear()
        assert published_rows(*key), "the caller's list is its own"
