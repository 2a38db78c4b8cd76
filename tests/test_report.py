"""The page of an evaluation and of several: what it says, what it survives, and what a browser makes of it."""

import dataclasses
import html.parser
import json
import math
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

from seqvae.metrics.protocols import METRICS
from seqvae.metrics.published import published_rows, to_json
from seqvae.report.evaluated import read_evaluations
from seqvae.report.page import write_report
from seqvae.report.tables import WIDTH, comparison_table, differences, evaluation_text
from seqvae.visualize import Panel, write_animation, write_animation_grid, write_strip
from tests.results import N_FUTURE, N_PAST, estimate, facts, image_facts

pytestmark = pytest.mark.usefixtures("no_charts")


def evaluation(folder: Path, content: dict, pictures: bool = False) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(content))
    if pictures:
        rng = np.random.default_rng(0)
        frames = rng.integers(0, 256, (N_PAST + N_FUTURE, 1, 8, 8), np.uint8)
        panels = [Panel("truth", frames, False), Panel("sample 1", frames[::-1])]
        write_animation_grid(folder / "gifs" / "grid.gif", [panels, panels], N_PAST)
        for i in range(2):
            write_animation(folder / "gifs" / f"video_{i:03d}.gif", panels, N_PAST)
            write_strip(folder / "strips" / f"video_{i:03d}.png", panels, N_PAST)
    return folder


class Page(html.parser.HTMLParser):
    """Tags, visible text, and table rows as lists of cell texts; fails on a tag that is closed out of order."""

    VOID = {"meta", "link", "img", "br", "source"}

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open
        self.rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open or "desc" in self.open:
            return
        self.text += data
        if "tr" in self.open and self.rows[-1]:
            self.rows[-1][-1] += data

    def row(self, start: str) -> list[str]:
        (row,) = [row for row in self.rows if row and row[0].startswith(start)]
        return row

    def having(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def report(tmp_path: Path, *folders: Path) -> Page:
    write_report(tmp_path / "report.html", folders)
    return Page(tmp_path / "report.html")


def test_the_table_holds_the_numbers_of_metrics_json_with_their_intervals(tmp_path):
    page = report(tmp_path, evaluation(tmp_path / "a", facts()))
    assert page.row("best of 5")[1:] == ["20.50 ± 0.25", "0.0976 ± 0.0100", "–"]
    assert page.row("oracle mean of 5")[1:] == ["21.00 ± 0.25", "0.0952 ± 0.0100", "–"]
    assert page.row("black black frames")[1] == "12.75 ± 0.25"
    assert page.row("one future each")[-1] == "321.5"
    assert page.row("SRVP [S]")[1] == "16.93 ± 0.07"
    assert page.row("true simulator, best of 100 [computed]")[1] == "23.7"
    for text in ("ab" * 32, "python evaluate.py runs/first", "SSIM: left out, because", "torch 2.99", "ten log ten"):
        assert text in page.text
    assert "best of 100 on all 5000 videos" in page.text and "not the same quantity" in page.text


def test_the_headline_says_how_the_model_stands_beside_baselines_and_simulator(tmp_path):
    text = re.sub(r"\s+", " ", report(tmp_path, evaluation(tmp_path / "a", facts())).text)
    assert "Shown 2 frames of a video, the model predicts the next 6: 5 futures for each of 4 test videos" in text
    assert "A typical future scores 18.25 dB in PSNR: 2.75 dB better than the average of the observed frames" in text
    assert "and 5.50 dB better than black frames" in text
    assert "The best of 5 scores 20.50 dB: 3.00 dB worse than the true simulator, the ceiling (23.50 dB)" in text
    assert "A typical future scores 0.1096 in LPIPS: 0.0194 better than the average of the observed frames" in text
    bad = facts()
    bad["results"]["mean"]["psnr"] = estimate(15.25)  # 0.25 below, where the intervals together are 0.35
    bad["results"]["black"]["psnr"] = estimate(15.45)
    assert (
        "level, within the intervals, with the average of the observed frames"
        in report(tmp_path, evaluation(tmp_path / "b", bad)).text
    )
    bad["results"]["mean"]["psnr"] = estimate(10.0)
    assert (
        "5.50 dB worse than the average of the observed frames"
        in report(tmp_path, evaluation(tmp_path / "c", bad)).text
    )


def test_only_what_every_evaluation_has_is_needed(tmp_path):
    needed = {k: facts()[k] for k in ("protocol", "definitions", "results", "best_of_n", "test_set")}
    needed["results"] = {m: needed["results"][m] for m in ("best", "mean", "worst", "black")}
    page = report(tmp_path, evaluation(tmp_path / "a", needed))
    assert page.row("best")[1].startswith("20.50")
    assert not any(word in page.text for word in ("Calibration", "What the latents cost", "GECO", "simulator, best"))
    assert not page.having("img")
    assert comparison_table([tmp_path / "a"])


@pytest.mark.charts
def test_what_is_not_finite_is_a_dash_and_no_point_of_a_chart(tmp_path):
    content = facts()
    content["results"]["best"]["psnr"] = estimate(math.nan)
    content["bounds"]["elbo_all"]["mean"] = -math.inf
    content["best_of_n"]["psnr"]["2"]["mean"] = math.nan
    page = report(tmp_path, evaluation(tmp_path / "a", content))
    assert page.row("best of 5")[1] == "–"
    assert "nan" not in page.text.lower() and "inf" not in re.findall(r"\S+", page.text.lower())
    drawn = [attrs["d"] for attrs in page.having("path")]
    assert drawn and not any("nan" in points or "inf" in points for points in drawn)


@pytest.mark.charts
def test_hostile_names_are_text_and_nothing_else(tmp_path):
    evil = '<script>alert("1")</script>"><img src=x onerror=alert(2)>'
    content = facts(run=f"runs/{evil.replace('/', '|')}", protocol=evil, command=evil, left_out=[evil])
    content["test_set"]["name"] = content["config"]["note"] = evil
    content["metrics"]["psnr"]["label"] = content["metrics"]["psnr"]["definition"] = evil
    content["results"][evil] = content["results"]["best"]
    content["published"][0]["name"] = evil
    a, b = evaluation(tmp_path / "a", content, pictures=True), evaluation(tmp_path / "b", facts())
    for page in (report(tmp_path, a), report(tmp_path, a, b)):
        assert not page.having("script") and not any("onerror" in attrs for _, attrs in page.tags)
        assert "alert(" in page.text


@pytest.mark.charts
def test_every_picture_and_chart_says_what_is_seen_and_is_inside_the_page(tmp_path):
    page = report(tmp_path, evaluation(tmp_path / "a", facts(), pictures=True))
    pictures = page.having("img")
    assert len(pictures) == 5  # the grid, and an animation and a strip for each of two videos
    for attrs in pictures:
        assert attrs["src"].startswith(("data:image/gif;base64,", "data:image/png;base64,"))
        assert "frames 0 to 1 are observed" in attrs["alt"] and "2 to 7 predicted" in attrs["alt"]
        assert int(attrs["width"]) > 0 and int(attrs["height"]) > 0
    stills = page.having("source")
    assert len(stills) == 3 and all("prefers-reduced-motion" in attrs["media"] for attrs in stills)
    assert ["test video 1" in attrs["alt"] for attrs in pictures[-2:]] == [True, True]
    charts = [attrs for attrs in page.having("svg") if "viewbox" in attrs and attrs.get("role") == "img"]
    assert len(charts) == 2 + 2 + 6 + 1 + 1 and all(len(attrs["aria-label"]) > 40 for attrs in charts)
    links = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href", "srcset")]
    assert all(link.startswith("data:") for link in links)


def test_missing_and_damaged_pictures_are_left_out(tmp_path):
    folder = evaluation(tmp_path / "a", facts(), pictures=True)
    (folder / "gifs" / "grid.gif").write_bytes((folder / "gifs" / "grid.gif").read_bytes()[:300])
    (folder / "strips" / "video_000.png").unlink()
    (folder / "strips" / "video_001.png").write_bytes(b"no picture")
    page = report(tmp_path, folder)
    assert [attrs["src"][:14] for attrs in page.having("img")] == ["data:image/gif"] * 2


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "metrics.json is missing; evaluate the run first: python evaluate.py RUN"),
        ("{", "metrics.json cannot be read"),
        ("[]", "metrics.json cannot be read: metrics.json: Input should be an object; evaluate the run again"),
        ("{}", "metrics.json has no best_of_n, definitions, protocol, results, test_set: evaluate the run again"),
        ("[" * 200_000, "metrics.json cannot be read"),
        (json.dumps(facts(n_videos="x")), "metrics.json cannot be read: n_videos: "),
        (json.dumps(facts(test_set={"name": ["x"]})), "cannot be read: test_set.name: "),
        (json.dumps(facts(results={"best": {"psnr": "good"}})), "cannot be read: results.best.psnr"),
        (json.dumps(facts(best_of_n={"psnr": {"0": {}}})), "cannot be read: best_of_n.psnr.0"),
        (json.dumps(facts(diversity={"per_frame": {"mean": [1, 2], "interval95": [1]}})), "differ in length"),
        (json.dumps(facts(published=[{"name": "x", "mark": "Z"}])), "cannot be read: published.0.mark: "),
        ('{"squared_error": {}}', "metrics.json has no test_set"),
    ],
)
def test_a_folder_that_is_no_evaluation_is_refused_in_one_line(tmp_path, content, message):
    (tmp_path / "a").mkdir()
    if content is not None:
        (tmp_path / "a" / "metrics.json").write_text(content)
    for call in (lambda x: write_report(tmp_path / "report.html", x), comparison_table):
        with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)) as error:
            call([tmp_path / "a"])
        assert "\n" not in str(error.value)
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(ValueError, match="at least one folder"):
        write_report(tmp_path / "report.html", [])


@pytest.mark.parametrize("name", ["n_past", "n_future"])
def test_lengths_that_are_null_are_as_good_as_absent(tmp_path, name):
    content = facts()
    content["definitions"][name] = None
    assert "PSNR" in report(tmp_path, evaluation(tmp_path / "a", content)).text


@pytest.mark.charts
def test_a_curve_with_a_gap_is_drawn_around_it(tmp_path):
    content = facts()
    content["results"]["best"]["psnr"]["per_frame"]["mean"][1] = None
    assert "PSNR" in report(tmp_path, evaluation(tmp_path / "a", content)).text


def second() -> dict:
    """Another run under the same rules: better in PSNR, worse in LPIPS."""
    content = facts(run="runs/second", seed=4, config={"model": {"z_dim": 9}, "optim": {"steps": 700, "ema": None}})
    for kind in ("best", "mean"):
        content["results"][kind] = {"psnr": estimate(21.5), "lpips": estimate(0.5, 0.01)}
    return content


def test_a_comparison_marks_the_best_run_of_each_column_and_lists_what_differs(tmp_path):
    folders = [evaluation(tmp_path / "a", facts(), True), evaluation(tmp_path / "b", second(), True)]
    page = report(tmp_path, *folders)
    header = next(row for row in page.rows if "bits/dim" in row)
    first, other = page.row("first N 5"), page.row("second N 5")
    assert dict(zip(header, other))["PSNR (dB), best"] == "21.50 ± 0.25"
    assert dict(zip(header, first)) | {"": ""} == {
        "": "",
        "PSNR (dB), best": "20.50 ± 0.25",
        "PSNR (dB), mean": "18.25 ± 0.25",
        "LPIPS, best": "0.0976 ± 0.0100",
        "LPIPS, mean": "0.1096 ± 0.0100",
        "FVD": "321.5",
        "bits/dim": "3.250",
        "rate (nats)": "1.50",
        "calibration": "1.75 ± 0.05",
        "diversity": "0.01250 ± 0.00100",
    }
    text = (tmp_path / "report.html").read_text()
    bold = re.findall(r'class="best">([\d.]+)', text)
    assert bold == [
        "0.0976",
        "0.1096",
        "321.5",
        "3.250",
        "1.75",
        "21.50",
        "21.50",
        "321.5",
        "3.250",
        "1.75",
    ]  # ties: both
    assert "second leads in PSNR (dB) of the best: 21.50, 1.00 ahead of first." in text
    assert page.row("model.z_dim") == ["model.z_dim", "3", "9"] and page.row("seed") == ["seed", "3", "4"]
    assert [name for name, _ in differences(read_evaluations(folders))] == ["model.z_dim", "seed"]
    assert [attrs["alt"].split(":")[0] for attrs in page.having("img")] == [
        "Animation of first",
        "Animation of second",
    ]


@pytest.mark.parametrize("what", ["protocol", "test_set"])
def test_other_rules_or_other_test_videos_never_share_a_table(tmp_path, what):
    apart = second() | {what: {"protocol": "mcvd-2022", "test_set": {"name": "x", "sha256": "0"}}[what]}
    if what == "protocol":
        apart["definitions"] = apart["definitions"] | {"name": "mcvd-2022"}
    folders = [evaluation(tmp_path / "a", facts()), evaluation(tmp_path / "b", apart)]
    folders += [evaluation(tmp_path / "c", second() | {"run": "runs/third"}), evaluation(tmp_path / "d", image_facts())]
    page = report(tmp_path, *folders)
    assert "their numbers do not compare" in page.text
    tables = re.findall(r"<table.*?</table>", (tmp_path / "report.html").read_text(), re.DOTALL)
    tables = [{name for name in ("first", "second", "third", "img") if f'row">{name}' in table} for table in tables]
    assert [names for names in tables if names] == [{"first", "third"}, {"second"}, {"img"}]
    lines = comparison_table(folders)
    assert sum(line.startswith(("srvp-2020", "mcvd-2022", "mnist")) for line in lines) == 3


def test_a_model_without_latent_joins_any_n_and_another_n_does_not(tmp_path):
    one = second() | {"n_samples": 1, "run": "runs/deterministic"}
    one["bounds"] = {k: v for k, v in one["bounds"].items() if k not in ("active_units", "kl_per_latent")}
    ten = second() | {"n_samples": 10, "run": "runs/ten"}
    folders = [evaluation(tmp_path / str(i), content) for i, content in enumerate((one, facts(), ten))]
    starts = [line.split()[0] for line in comparison_table(folders) if line.startswith(("det", "first", "ten"))]
    assert starts.index("ten") > max(starts.index("deterministic"), starts.index("first"))
    assert sum(line.startswith("srvp-2020") for line in comparison_table(folders)) == 2


def test_the_terminals_comparison_is_aligned_narrow_and_says_the_same(tmp_path):
    long = second() | {"run": "runs/" + "x" * 80}
    lines = comparison_table([evaluation(tmp_path / "a", facts()), evaluation(tmp_path / "b", long)])
    assert max(map(len, lines)) <= WIDTH
    header = next(line for line in lines if "PSNR (dB), best" in line)
    row = next(line for line in lines if line.startswith("first"))
    assert row.index("20.50 +- 0.25") + len("20.50 +- 0.25") == header.index("PSNR (dB), best") + len("PSNR (dB), best")
    assert sum(line.startswith("xxx") for line in lines) >= 2, "a long name takes several lines"
    assert any(line.startswith("SRVP [S]") and "16.93 +- 0.07" in line for line in lines)
    assert "[S] a public leaderboard, or a later paper's table, that names the paper." in lines


def test_the_terminals_table_of_one_evaluation_holds_what_the_pages_holds(tmp_path):
    folder = evaluation(tmp_path / "a", facts())
    (e,) = read_evaluations([folder])
    lines = evaluation_text(e)
    page = report(tmp_path, folder)
    for row in ("best of 5", "oracle mean of 5", "mean of context", "SRVP [S]"):
        (line,) = [line for line in lines if line.startswith(f"{row}  ")]
        (cells,) = [cells for name, *cells in page.rows if name.split("  ")[0].startswith(row)]
        assert line.split()[len(row.split()) :] == " ".join(cells).replace("±", "+-").replace("–", "").split()
    text = "\n".join(lines)
    for words in (
        "ten log ten.",
        "SSIM: left out, because",
        "SHA-256 " + "ab" * 32,
        "diversity: 0.01250 +- 0.00100, squared difference.",
        "calibration, posterior: squared residual / sigma^2 1.75; 40 % of pixels in the central 50 %, 80 % of pixels",
        "FVD: 321.5 (logits; 1 future of each video; real against real, half as many: 12.5)\n  few videos",
        "40 dB at",
    ):
        assert words in text
    best_by = facts()["definitions"] | {"best_by": "psnr", "norm": "of the batch"}
    (e,) = read_evaluations([evaluation(tmp_path / "b", facts(definitions=best_by))])
    text = "\n".join(evaluation_text(e))
    assert "by looking at it, by PSNR." in text and "norm layers: of the batch." in text


def test_a_metric_is_shown_with_the_digits_and_the_direction_of_its_entry(tmp_path, monkeypatch):
    mae = dataclasses.replace(METRICS["ssim"], key="mae", name="MAE", unit="levels", digits=1, higher_is_better=False)
    monkeypatch.setitem(METRICS, "mae", mae)
    content = facts(best_of_n={"mae": facts()["best_of_n"]["psnr"]})
    content["metrics"] = {"mae": {"label": mae.label, "definition": "x", "higher_is_better": False}}
    for method, value in (("best", 4.04), ("mean", 5.0), ("black", 3.0)):
        content["results"][method] = {"mae": estimate(value)}
    page = report(tmp_path, evaluation(tmp_path / "a", content))
    assert page.row("best of 5")[1] == "4.0 ± 0.2"
    assert "A typical future scores 5.0 levels in MAE: 2.0 levels worse than black frames" in page.text


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    folders = [evaluation(tmp_path / name, facts()) for name in "ab"]
    assert [e.name for e in read_evaluations(folders)] == [f"first ({folder})" for folder in folders]
    other = {k: v for k, v in facts(predictions={"source": "somebody's"}).items() if k != "run"}
    assert [e.name for e in read_evaluations([evaluation(tmp_path / "c", other)])] == ["somebody's"]


def test_images_get_a_page_and_a_table_of_their_own(tmp_path):
    a = evaluation(tmp_path / "a", image_facts(published=to_json(published_rows("images", "mnist"))))
    write_strip(a / "images.png", [Panel("truth", np.zeros((3, 1, 8, 8), np.uint8), False)], 0)
    page = report(tmp_path, a)
    assert page.row("img")[1:] == ["14.50 ± 0.50", "15.50 ± 0.50", "1.250", "11.50"]
    assert page.row("GECO [M] unverified")[1:] == ["14.63", "–", "–", "10.5"]
    assert len(page.having("img")) == 1 and "50 test images of mnist" in page.text
    b = evaluation(tmp_path / "b", image_facts(run="runs/other"))
    assert any(line.startswith("other") and "14.50" in line for line in comparison_table([a, b]))


def test_an_installed_copy_has_the_template():
    root = Path(__file__).parent.parent
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packaged = {p.name for pattern in patterns["seqvae.report"] for p in (root / "seqvae/report").glob(pattern)}
    named = re.findall(r'get_template\("(.*)"\)', (root / "seqvae/report/page.py").read_text())
    assert named and set(named) <= packaged


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.charts
def test_a_browser_shows_the_page_whole_without_a_request_at_any_width_and_in_the_dark(tmp_path, browser):
    long = second() | {"run": "runs/" + "a_name_that_is_as_long_as_people_make_them-" * 3}
    folders = [evaluation(tmp_path / "a", facts(), True), evaluation(tmp_path / "b", long, True)]
    folders.append(evaluation(tmp_path / "c", image_facts()))
    write_report(tmp_path / "one.html", folders[:1])
    write_report(tmp_path / "several.html", folders)
    problems, left = [], []
    for name in ("one", "several"):
        seen = {}
        for scheme, width, motion in (("light", 1280, "no-preference"), ("dark", 360, "reduce")):
            context = browser.new_context(
                color_scheme=scheme, viewport={"width": width, "height": 800}, reduced_motion=motion
            )
            page = context.new_page()
            page.on("console", lambda message: problems.append(message.text))
            page.on("pageerror", lambda error: problems.append(str(error)))
            own = (tmp_path / f"{name}.html").as_uri()
            page.route(
                lambda url, own=own: url != own and not url.startswith("data:"),
                lambda route: (left.append(route.request.url), route.abort()),
            )
            page.goto(own)
            pictures = page.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.alt, i.currentSrc])")
            assert len(pictures) == {"one": 5, "several": 2}[name]
            assert all(complete and wide > 0 and alt for complete, wide, alt, _ in pictures)
            moving = [source for *_, source in pictures if source.startswith("data:image/gif")]
            assert len(moving) == (0 if motion == "reduce" else {"one": 3, "several": 2}[name])
            wide, inner = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
            assert wide <= inner == width
            chart = page.locator("svg[role=img]").first
            assert chart.bounding_box()["width"] <= width and chart.locator("path").count() >= 2
            style = "getComputedStyle(document.querySelector('{}')).{}"
            wanted = style.format("body", "backgroundColor"), style.format(".charts text", "fill")
            seen[scheme] = [page.evaluate(expression) for expression in wanted]
            context.close()
        (light, light_text), (dark, dark_text) = seen["light"], seen["dark"]

        def brightness(colour: str) -> float:
            return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3

        assert brightness(light) > 230 > 60 > brightness(dark)
        assert brightness(light_text) < 130 < brightness(dark_text)
    assert problems == [] and left == []


def test_the_browser_test_would_notice_a_request_and_a_broken_picture(tmp_path, browser):
    (tmp_path / "bad.html").write_text('<img src="missing.png"><img src="https://example.invalid/x.png">')
    page, left = browser.new_page(), []
    own = (tmp_path / "bad.html").as_uri()
    page.route(lambda url: url != own, lambda route: (left.append(route.request.url), route.abort()))
    page.goto(own)
    assert len(left) == 2
    assert page.evaluate("[...document.images].map(i => i.naturalWidth)") == [0, 0]
    page.close()
