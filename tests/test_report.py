"""The report: what is in the page of a made-up study, what never is, and how it behaves in a browser (where playwright and chromium are)."""
import base64
import dataclasses
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.torch import save_file

from fer_lib import report, study
from fer_lib.faces import EMOTIONS
from fer_lib.measures import METHODS
from fer_lib.report import KEPT, SHOWN, prose, write_report
from fer_lib.saliency import cam_layer
from fer_lib.study import Study, open_study, run_study

TITLE = "# 02 \u00b7 First: *which* one?\n\nWhat <is> it? Second sentence.\n\n**Needs** nothing"
CHROMIUM = Path("/usr/bin/chromium")
SMALL = dataclasses.replace(study.PRESETS["smoke"], sizes=(35, 35, 140), sweep={"depth": 8, "width": 0.05},
                            models={**study.PRESETS["smoke"].models, "vgg16": {"depth": 8, "width": 0.1}})


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory):
    """A smoke preset of few faces and narrow networks, 20 test faces a mean, notebooks in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FER2013", raising=False)
        patch.setitem(study.PRESETS, "smoke", SMALL)
        patch.setattr(report, "MAP_ROWS", 7)
        patch.setattr(report, "NOTEBOOKS", tmp_path_factory.mktemp("notebooks"))
        for settings in (report.SETTINGS, report.SINGLE):
            patch.setitem(settings, "integrated_gradients", {"n_steps": 2})
        notebook(report.NOTEBOOKS / "02_first.ipynb", TITLE)
        notebook(report.NOTEBOOKS / "09_never.ipynb", "# 09 · Never\n\nWas it run?")
        yield


def notebook(path: Path, *cells: str) -> None:
    """Markdown cells begin with a #, all others are code that printed "printed"."""
    outputs = [{"output_type": "stream", "name": "stdout", "text": ["printed\n"]}]
    made = [{"cell_type": "markdown", "source": [cell]} if cell.startswith("#") else
            {"cell_type": "code", "source": [cell], "outputs": outputs} for cell in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": made}))


def store(opened: Study, weights: bool = True) -> Study:
    """The runs of 06 with made-up logits, maps and untrained weights."""
    rng, n, split = np.random.default_rng(0), len(opened.data.labels("test")), ("test_unmasked", "test_masked")
    for spec in (several[0] for grid in ("06", "06_seeds") for several in opened.specs(grid).values()):
        folder, model = opened.store.runs / spec.key, spec.build()
        folder.mkdir(parents=True)
        layer = cam_layer(model, opened.data.inputs([0]))[0]
        np.savez(folder / "logits.npz", **{name: (3 * rng.normal(size=(n, 7))).astype(np.float16) for name in split})
        np.savez(folder / "measures.npz", **{"saliency.methods": np.array(METHODS), "saliency.layer": np.array(f"{layer}, 8 maps"),
                                             "saliency.maps": rng.normal(size=(6, 7, 48, 48)).astype(np.float16)})
        (folder / "spec.json").write_text(json.dumps(spec.to_json()))
        if weights:
            save_file(model.state_dict(), folder / "weights.safetensors")
    return opened


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Study:
    """A study of synthetic faces with a ledger, two figures, three tables, one executed notebook and runs with weights."""
    made, rng = store(open_study("smoke", results=str(tmp_path_factory.mktemp("study")))), np.random.default_rng(0)
    none, columns = None, ["id", "paper", "claim", "published", "value", "low", "high", "seeds", "n", "verdict"]
    made.table(pd.DataFrame([(1, "P", "a", 0.03, -0.0123, -0.02, -0.004, 3, 140, "not reproduced"),
                             (2, "P", "b", none, 0.2, 0.1, 0.3, 3, 140, "reproduced"), (3, "M", "c", 0.1, 0.1, none, none, 1, 140, "inconclusive"),
                             (4, "A", "d", none, none, none, none, 0, 0, "not testable")], columns=columns)
               .assign(where="Table 2", measure="recall", note=["told twice", none, none, "no run"]), "00_claims")
    made.table(pd.DataFrame({"model": ["b", "a", "c"], "share": [0.123456, 1e-7, -0.5], "n": [10, 9, 100], "source": "synthetic"}), "02_scores")
    made.table(pd.DataFrame({"emotion": ["all", *EMOTIONS] * 100, "value": rng.normal(size=800)}), "02_long")
    made.table(pd.DataFrame({"x": np.arange(20)}), "05_stray")
    (made.root / "figures").mkdir()
    Image.new("RGB", (900, 300), "white").save(made.root / "figures" / "02_plot.png")
    Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(made.root / "figures" / "02_noise.png")
    notebook(made.root / "notebooks" / "02_first.ipynb", TITLE, "## How good\nLook at `share`: **all** of it. [Here](https://example.org/).",
             'study.table(a, "02_scores")\nstudy.figure(b, "02_plot")',
             '[study.table(a, f"02_lo{name}") for name in ("ng",)]', 'study.figure(c, "02_noise")', 'study.figure(d, "02_absent")')
    (made.root / "manifest.json").write_text(json.dumps({
        "data": {}, "commit": "0123456789abcdef", "clean": True, "seeds": [0], "device": "a <processor>", "cores": 2, "python": "3.11",
        "packages": {"torch": "2.15", "timm": None}, "notebooks": {"02_first": {"commit": "0123456789abcdef", "minutes": 0.5}},
        "runs": {"a": {"seconds": 90, "device": "a GPU"}}}))
    return made


@pytest.fixture(scope="module")
def page(opened) -> str:
    return write_report(opened).read_text()


class Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def embedded(page: str) -> dict:
    return json.loads(re.search(r'id="g-data">(.*?)</script>', page, re.S)[1])


def inflated(value) -> list[bytes]:
    """Every packed string in a nest of JSON."""
    if isinstance(value, dict | list):
        return [one for each in (value.values() if isinstance(value, dict) else value) for one in inflated(each)]
    return [zlib.decompress(base64.b64decode(value))] if isinstance(value, str) and re.match("eN[o-r]", value) else []


# ---- what is in it ----

def test_page_holds_every_table_figure_and_notebook_in_order(opened, page):
    order = ("Figure 02_plot", "Table 02_scores", "Table 02_long", "Figure 02_noise", "Table 05_stray")
    places = [page.index(f"<b>{what}</b>") for what in order]
    assert places == sorted(places)
    for text in ("First: *which* one?", "What &lt;is&gt; it?", "<strong>all</strong>", "<code>share</code>", "printed",
                 "Figure 02_absent is not here", "This notebook has not been executed at preset smoke", "a &lt;processor&gt;, 2 cores; a GPU",
                 "commit 0123456789abcdef", "1.5 min of training in 1 runs", "torch 2.15", opened.data.fingerprint, "in every row: source synthetic"):
        assert text in page, text
    assert "<b>Table 00_claims" not in page and "timm" not in page and page.count("told twice") == 1 and not re.search(r">\s*nan\b", page)


def test_finding_and_ledger_come_from_the_table(page):
    assert '<strong id="headline">-1.2 points</strong>' in page and "over 3 trainings: -2.0 to -0.4" in page and "The paper reports +3.0." in page
    assert re.findall(r'<tr data-verdict="([^"]+)"', page) == ["not reproduced", "reproduced", "inconclusive", "not testable"]
    assert re.findall(r'<button type="button" data-verdict="([^"]*)"', page) == ["", "reproduced", "not reproduced", "inconclusive", "not testable"]


def test_cells_are_those_of_the_file_rounded(page):
    body = re.search(r"Table 02_scores</b>.*?<tbody>(.*?)</tbody>", page, re.S)[1]
    assert [re.split(r"<td[^>]*>", row)[1:] for row in re.findall(r"<tr>(.*)", body)] == \
        [["b", "0.1235", "10"], ["a", "1e-07", "9"], ["c", "-0.5000", "100"]]


def test_long_table_keeps_rows_for_all_emotions_and_says_so(page):
    part = re.search(r"Table 02_long</b>(.*?)</table>", page, re.S)[1]
    assert "here: 100 rows for all emotions together, of 800" in part and part.count("<tr>") == 1 + 100 and "Show all 100 rows" in page
    few = report._cells(pd.Series([1.0, np.nan, 3.0]))
    assert few == [(True, "1"), (True, ""), (True, "3")] and SHOWN < 100 < KEPT


def test_every_picture_has_a_text(page):
    pictures = [attributes for tag, attributes in Tags(page).found if tag == "img"]
    assert len(pictures) == 2 and {one["alt"] for one in pictures} == {"Look at share: all of it. (How good)"}
    assert all(attributes.get("aria-label") for tag, attributes in Tags(page).found if tag == "canvas")


def test_page_loads_nothing_and_is_small(opened, page):
    assert not re.search(r"https?:|url\(|@import|\bfetch\(|XMLHttpRequest|WebSocket|\bimport\b|<link (?!rel=\"icon\" href=\"data:)", page)
    for _, attributes in Tags(page).found:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:")), attributes
    assert page.isascii() and len(page) < 3e6 and str(opened.root) not in page


def test_maps_of_a_method_have_one_scale(opened, page):
    mean = embedded(page)["mean"]
    runs = {name: several[0].measured("saliency") for name, several in opened.finished("06").items()}
    assert set(mean["reach"]) == set(METHODS) and [item["emotion"] for item in mean["items"]] == list(range(7))
    trainings = mean["networks"]["06 vgg16"]["trainings"]
    assert set(trainings) == {"unmasked", "masked", "perturb", "untrained"} and len(mean["networks"]) == 2
    for arm in ("unmasked", "perturb"):
        shown = (np.frombuffer(inflated(trainings[arm]["maps"]["grad_cam unmasked"])[0], np.uint8).reshape(7, 48, 48) - 64.0) / 63
        wanted = runs[f"vgg16 {arm}"]["maps"][METHODS.index("grad_cam")].astype(float)
        assert np.abs(shown - np.clip(wanted / mean["reach"]["grad_cam"], -1, 1)).max() < 0.01


def test_probabilities_are_those_of_the_stored_logits(opened, page):
    faces, mean = embedded(page)["faces"], embedded(page)["mean"]
    run, labels = opened.finished("06")["vgg16 masked"][0], opened.data.labels("test")
    right = run.logits("test_unmasked").argmax(1) == labels
    shown, wanted = mean["networks"]["06 vgg16"]["trainings"]["masked"]["right"]["unmasked"], [right[labels == c].mean() for c in range(7)]
    assert shown == pytest.approx(wanted, abs=1e-3)
    assert len(faces["items"]) == 7 * report.FACES and set(faces["faces"]) == {"unmasked", "masked"}
    for kind in faces["faces"]:
        probs = np.array(faces["networks"]["06 vgg16"]["trainings"]["masked"]["probs"][kind])
        assert probs.shape == (21, 7) and np.allclose(probs.sum(1), 1, atol=0.01)


# ---- what is missing, and what never is there ----

def test_empty_study_is_a_page_of_sentences(tmp_path):
    text = write_report(open_study("smoke", results=str(tmp_path))).read_text()
    for sentence in ("has not been tested here yet", "no manifest.json", "ledger of claims has not been computed", "There are no maps to show",
                     "This notebook has not been executed"):
        assert sentence in text


def real(tmp_path, show_faces: bool, weights: bool = True) -> Study:
    made = open_study("smoke", results=str(tmp_path))
    people = dataclasses.replace(made.data, faces=dataclasses.replace(made.data.faces, source="people"), synthetic=None)
    return store(Study("smoke", people, made.root, (0,), 1, show_faces), weights)


def test_page_to_pass_on_holds_no_face_of_a_person(tmp_path):
    made = real(tmp_path, False)
    for folder in ("figures/faces", "notebooks/faces"):
        (made.root / folder).mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(made.root / "figures" / "faces" / "06_faces.png")
    path = write_report(made)
    gallery = embedded(path.read_text())
    assert path == made.root / "report.html" and "06_faces" not in path.read_text()
    assert gallery["faces"] is None and "left out" in gallery["why"] and len(gallery["mean"]["items"]) == 7
    known = {image.tobytes() for variant in ("unmasked", "masked") for image in made.data.images(variant)}
    pictures = [blob[i:i + 2304] for blob in inflated(gallery) for i in range(0, len(blob), 2304)]
    assert len(pictures) > 100 and not known & set(pictures)


def test_mean_of_few_people_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MAP_ROWS", 8)  # 17 faces an emotion
    assert report._gallery(real(tmp_path, False))["mean"] is None


def test_page_with_faces_of_people_is_one_that_git_ignores(tmp_path):
    made = real(tmp_path, True)
    path = write_report(made)
    text = path.read_text()
    assert path == made.root / "faces" / "report.html" and "not to be passed on" in text and not (made.root / "report.html").exists()
    shown = inflated(embedded(text)["faces"]["faces"]["unmasked"])[0]
    assert {image.tobytes() for image in made.data.faces.images} >= {shown[i:i + 2304] for i in range(0, len(shown), 2304)}


def test_without_weights_single_faces_are_a_sentence(tmp_path):
    gallery = report._gallery(real(tmp_path, True, weights=False))
    assert gallery["faces"] is None and "weights" in gallery["why"] and gallery["mean"]


def test_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    made = open_study("smoke", results=str(tmp_path))
    path = write_report(made)
    before = path.read_text()

    def stop(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(study.os, "replace", stop)
    with pytest.raises(OSError, match="disk"):
        write_report(made)
    assert path.read_text() == before


def test_run_ends_with_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "_execute", lambda *_: None)
    parameters = ("preset", "data", "results", "votes", "maskfer_rows", "seeds", "workers", "show_faces")
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": [f"{name} = 0\n" for name in parameters]}
    (tmp_path / "01_made_up.ipynb").write_text(json.dumps({"cells": [cell]}))
    run_study("smoke", results=str(tmp_path / "out"), notebooks=tmp_path)
    text = (tmp_path / "out" / "smoke" / "report.html").read_text()
    assert "Of 37 claims" not in text and text.count("<tr data-verdict") == len(pd.read_csv(tmp_path / "out/smoke/tables/00_claims.csv"))


def test_prose_is_escaped_and_marked():
    assert prose("a <b> `x*y` *c* **d `e`**\n\n[f](http://g)") == \
        "<p>a &lt;b&gt; <code>x*y</code> <em>c</em> <strong>d <code>e</code></strong></p><p><span>f</span></p>"


# ---- in a browser ----

@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def browse(chromium, opened, page):
    """A function that opens the page; when the test ends nothing may have been said to the console or asked of a network."""
    said, contexts = [], []

    def open_page(**settings):
        contexts.append(chromium.new_context(offline=True, **{"viewport": {"width": 1280, "height": 900}, **settings}))
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else said.append(request.url))
        tab.goto((opened.root / "report.html").as_uri())
        tab.wait_for_selector(".card")
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert not said


PIXELS = "(canvas) => [...canvas.getContext('2d').getImageData(0, 0, 48, 48).data]"


def pixels(tab, tile: str, card: int = 0) -> np.ndarray:
    canvas = tab.locator(".card").nth(card).locator(f"canvas[data-tile={tile}]")
    return np.array(canvas.evaluate(PIXELS)).reshape(48, 48, 4)[..., :3]


def test_filters_change_what_is_shown(browse):
    tab = browse()
    cards = tab.locator(".card")
    assert cards.count() == 7 and tab.locator("#g-kind").is_disabled() and "for single faces" in tab.locator("#g-hint").inner_text()
    tab.select_option("#g-emotion", label="sad")
    assert [card.get_attribute("data-emotion") for card in cards.all()] == ["sad"]
    looks = [pixels(tab, "map-a")]
    for control, value in (("#g-method", "saliency"), ("#g-a", "masked"), ("#g-network", "06_seeds vgg16")):
        tab.select_option(control, value)
        looks.append(pixels(tab, "map-a"))
        assert (looks[-1] != looks[-2]).any(), control
    tab.select_option("#g-method", "occlusion")
    assert "not drawn for this method" in cards.first.inner_text()  # the untrained net
    tab.select_option("#g-source", "faces")
    assert cards.count() == 3 and not tab.locator("#g-kind").is_disabled()
    tab.select_option("#g-emotion", "")
    whole = pixels(tab, "face")
    tab.select_option("#g-kind", "masked")
    assert (pixels(tab, "face") != whole).any()
    counts = []
    for answer, word in (("1", "right"), ("0", "wrong")):
        tab.select_option("#g-answer", answer)
        counts.append(cards.count())
        assert all(f": {word}" in text for text in tab.locator(".card .said").all_inner_texts())
    assert sum(counts) == 21


def test_difference_is_on_the_scale_of_the_maps(browse, page):
    tab, gallery = browse(), embedded(page)
    mean, lut = gallery["mean"], np.frombuffer(inflated(gallery["lut"])[0], np.uint8).reshape(256, 3)
    tab.select_option("#g-a", "masked")
    a, b = (np.frombuffer(inflated(mean["networks"]["06 vgg16"]["trainings"][arm]["maps"]["integrated_gradients unmasked"])[0], np.uint8)
            .reshape(7, 48, 48) / 63.0 for arm in ("masked", "unmasked"))
    wanted = lut[np.floor((np.clip(a[2] - b[2], -1, 1) + 1) / 2 * 255 + 0.5).astype(int)]
    assert np.abs(pixels(tab, "difference", 2).astype(int) - wanted).max() <= 3
    reach = tab.evaluate("[...new Set([...document.querySelectorAll('canvas[data-tile]')].map(one => one.dataset.reach))]")
    assert [float(one) for one in reach] == [mean["reach"]["integrated_gradients"]]
    tab.select_option("#g-b", "masked")
    assert (pixels(tab, "difference") == lut[128]).all()  # a training less itself


def test_keyboard_enlarges_sorts_and_filters(browse):
    tab = browse()
    tab.locator(".card").nth(1).focus()
    tab.keyboard.press("Enter")
    large = tab.locator("#large")
    assert large.is_visible() and "disgust" in tab.locator("#large-title").inner_text() and large.locator("canvas").count() == 8
    tab.keyboard.press("ArrowRight")
    assert "fear" in tab.locator("#large-title").inner_text()
    tab.keyboard.press("Escape")
    assert not large.is_visible()
    tab.locator(".zoom").first.focus()
    tab.keyboard.press("Enter")
    assert large.locator("img").is_visible()
    tab.keyboard.press("Escape")
    table = tab.locator("[aria-label='Table 02_scores'] table")
    rows = lambda: [row.split("\t") for row in table.locator("tbody tr").all_inner_texts()]
    given, button = rows(), table.locator("th button").nth(2)
    for order in ([1, 0, 2], [2, 0, 1], [0, 1, 2]):  # up, down, as in the file
        button.focus()
        tab.keyboard.press("Enter")
        assert rows() == [given[i] for i in order]
    assert tab.locator("[aria-label='Table 05_stray'] tbody tr:visible").count() == SHOWN
    tab.get_by_text("Show all 20 rows").click()
    assert tab.locator("[aria-label='Table 05_stray'] tbody tr:visible").count() == 20
    tab.locator(".chips button", has_text="inconclusive").press("Enter")
    assert tab.locator("#ledger tbody tr:visible").all_inner_texts()[0].startswith("c\tMSD-E, Table 2")


@pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)])
def test_page_fits_both_themes_and_a_phone(browse, scheme, width):
    tab = browse(color_scheme=scheme, viewport={"width": width, "height": 844})
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    light = tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light == (scheme == "light")
    tab.locator(".card").first.click()
    assert tab.evaluate("document.getElementById('large').scrollWidth <= document.getElementById('large').clientWidth")


def test_print_leaves_the_controls_out(browse):
    tab = browse(color_scheme="dark")
    tab.emulate_media(media="print")
    assert not any(tab.locator(name).first.is_visible() for name in ("nav", ".controls", ".chips", ".more"))
    assert tab.locator(".card").first.is_visible() and tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
