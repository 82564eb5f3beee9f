"""The explorer: a real browser shows what the theory says, to every digit shown, and asks nobody for anything."""

import json
import math
import re
import shutil

import numpy as np
import pytest

import vgjax as vg
from vgjax.cli import main
from vgjax.plots import exploring
from vgjax.theory._tables import Tables, tables

FEW = ("tanh", "relu", "gelu", "sigmoid")
SETTINGS = 200
DEPTH = 1000
STARTS = (1.0, 0.04, 30.0)  # q0
FLOATS = {"float32": (-126, 128), "bfloat16": (-126, 128), "float16": (-24, 16)}  # exponents of 2: least, most


# --- the page in a browser ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page of a few activations."""
    return vg.plots.explorer(tmp_path_factory.mktemp("explorer") / "page.html", FEW, progress=False)


@pytest.fixture
def opened(browser, written):
    """A function that opens the page, and fails the test for whatever the browser complains about or asks for."""
    complaints, contexts = [], []

    def open_page(file=written, hash="", **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"exception: {error}"))
        page.on("request", lambda request: complaints.append(request.url) if not local(request.url) else None)
        page.goto(f"{file.as_uri()}#{hash}")
        page.evaluate("window.explorer.ready")
        return page

    def local(url):
        return url.startswith((written.as_uri(), "file://", "data:", "blob:"))

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


READ = """async (asked) => {
  await window.explorer.set(asked);
  const text = (id) => document.getElementById(id).innerText;
  const said = [...document.querySelectorAll("[id^=out-]")].map((e) => [e.id.slice(4), e.innerText]);
  return { ...Object.fromEntries(said), verdict: text("verdict"), note: text("note"), setting: window.explorer.get() };
}"""


def number(text):
    """A number as it is shown, and half a unit of its last digit."""
    text = text.strip().replace("−", "-").translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    if text in ("∞", "-∞"):
        return float(text.replace("∞", "inf")), 0.0
    mantissa, _, exponent = text.partition("×10")
    assert re.fullmatch(r"-?\d+(\.\d+)?", mantissa), f"no number: {text!r}"
    scale = 10.0 ** int(exponent or 0)
    decimals = len(mantissa.partition(".")[2])
    return float(mantissa) * scale, 0.5 * 10.0**-decimals * scale


def agrees(text, expected):
    """Whether a text is a number to its last digit; the millionth is for halves, which round either way."""
    if math.isnan(expected):
        return text == "not known"
    value, half = number(text) if text != "0" else (0.0, 0.0)
    if math.isinf(value) or math.isinf(expected):
        return value == expected
    return abs(value - expected) <= half * (1 + 1e-5) + 1e-14 * abs(value)


def asked_settings(names, count, seed):
    """Random settings: a tenth without bias, a tenth on the edge where there is one; three widths an activation."""
    rng, found = np.random.default_rng(seed), []
    for i in range(count):
        name = names[i % len(names)]
        width = [(16, 256, 4096), (32, 128, 1024), (64, 512, 2048)][i % len(names) % 3][rng.integers(3)]
        sigma_b = round(float(rng.choice([0.0, rng.uniform(0, 2)], p=[0.1, 0.9])), 2)
        edge = float(vg.theory.critical(name, sigma_b).edge)
        sigma_w = (
            edge
            if rng.random() < 0.1 and np.isfinite(edge)
            else float(rng.uniform(0.02, 12 if name == "sigmoid" else 4))
        )
        depth = int(np.exp(rng.uniform(np.log(2), np.log(DEPTH))))
        inputs = {"q0": float(rng.choice(STARTS, p=[0.6, 0.2, 0.2])), "c0": round(float(rng.uniform(0, 0.999)), 3)}
        layer = int(rng.integers(depth + 1))
        scales = {"sigma_w": sigma_w, "sigma_b": sigma_b}
        found.append({"activation": name, "width": width, "depth": depth, "layer": layer, **scales, **inputs})
    return found


def expected_numbers(settings):
    """What `vgjax.theory` says at each setting, by the names that the page has for it: one call for all settings of an
    activation, at the full depth, from whose start each takes its own."""
    found = [{} for _ in settings]
    for name in {s["activation"] for s in settings}:
        mine = [i for i, s in enumerate(settings) if s["activation"] == name]
        w, b, q0, c0 = (np.array([settings[i][key] for i in mine]) for key in ("sigma_w", "sigma_b", "q0", "c0"))
        moved = vg.theory.propagate(name, w, b, DEPTH, q0, c0)
        critical = vg.theory.critical(name, b)
        for start in set(q0):
            at = q0 == start
            point = vg.theory.mean_field(name, w[at], b[at], q0=float(start))
            for j, i in enumerate(np.flatnonzero(at)):
                told = {key: getattr(point, key)[j] for key in ("chi", "xi_grad", "q_star", "xi_q", "c_star", "xi_c")}
                found[mine[i]] |= told | {
                    "growth": np.sqrt(point.chi[j]),
                    "phase": point.phase[j],
                    "status": point.status[j],
                }
        for j, i in enumerate(mine):
            l, L = settings[i]["layer"], settings[i]["depth"]
            q, apart, log_chi = moved.q[j, l], moved.one_minus_c[j, l], moved.log_chi[j]
            found[i] |= {"q": q, "c": 1 - apart, "apart": apart}
            found[i] |= {
                "infinite": (log_chi[L] - log_chi[l]) / 2 / np.log(10),
                "edge": critical.edge[j],
                "reason": critical.reason[j],
            }
        for width in {settings[i]["width"] for i in mine}:
            at = [i for i in mine if settings[i]["width"] == width]
            scales = ([settings[i][key] for i in at] for key in ("sigma_w", "sigma_b", "q0"))
            w, b, q0 = map(np.array, scales)
            band = vg.theory.band(name, [width] * (DEPTH + 1), w, b, q0=q0)
            for j, i in enumerate(at):
                found[i] |= expected_gradient(band.mean[j], band.deviation[j], settings[i])
    return found


def expected_gradient(mean, deviation, setting):
    """The gradient at a layer in units of the last one's, and where floats lose it."""
    l, L, entry = setting["layer"], setting["depth"], np.log(setting["width"]) / 2
    log = mean[L] - mean[: L + 1]
    spread = np.sqrt(np.maximum(deviation[L] ** 2 - deviation[l] ** 2, 0))
    told = {"mean": log[l] / np.log(10), "deviation": spread / np.log(10)}
    for name, ends in FLOATS.items():
        least, most = np.log(2.0) * np.array(ends)
        told[f"{name}-norm"] = said_lost(2 * (log - entry) < least, 2 * log > most)
        told[f"{name}-entries"] = said_lost(log - entry < least, log - entry > most)
    return told


def said_lost(zero, infinite):
    for lost, what in ((zero, "0"), (infinite, "∞")):
        if lost.any():
            return f"{what} from layer {np.flatnonzero(lost).max()} back"
    return "held at all layers"


def differences(said, expected):
    """What the page says otherwise."""
    wrong = {}
    for name, value in expected.items():
        text = said["note" if name == "reason" else name]
        if name == "reason":
            right = f"{value}." in text if value else "No edge" not in text
        elif name == "edge":
            right = text == "none" if math.isnan(value) else agrees(text, value)
        else:
            right = text == value if isinstance(value, str) else agrees(text, float(value))
        if not right:
            wrong[name] = (text, value)
    return wrong


def check_numbers(page, names, count, seed):
    settings = asked_settings(names, count, seed)
    said = [page.evaluate(READ, setting) for setting in settings]
    for setting, answer in zip(settings, said, strict=True):  # the page is at what it was asked for
        assert {name: answer["setting"][name] for name in setting} == setting
    wrong = [
        (setting, difference)
        for setting, answer, expected in zip(settings, said, expected_numbers(settings), strict=True)
        if (difference := differences(answer, expected))
    ]
    assert not wrong, f"{len(wrong)} of {count} settings differ, first {wrong[:5]}"
    assert len({answer["status"] for answer in said}) >= 3  # settings with no ordinary fixed point are among them
    assert not any("NaN" in text or "undefined" in text for answer in said for text in map(str, answer.values()))


def test_numbers_are_those_of_the_theory_at_200_random_settings(opened):
    check_numbers(opened(), FEW, SETTINGS, seed=0)


@pytest.mark.torture
def test_numbers_of_the_default_page(opened, tmp_path):
    page = vg.plots.explorer(tmp_path / "page.html", progress=False)
    assert page.stat().st_size < 3e6
    check_numbers(opened(page), exploring.EXPLORED, SETTINGS, seed=1)


def test_a_wrong_digit_is_seen():
    """The comparison itself: the last digit counts, a missing exponent too."""
    assert agrees("1.235", 1.23451)
    assert not agrees("1.234", 1.23451)
    assert agrees("−7.804×10⁻¹²", -7.8041e-12)
    assert not agrees("−7.804", -7.8041e-12)
    assert agrees("∞", math.inf)
    assert not agrees("∞", 1e300)
    assert agrees("not known", math.nan)


# --- the page in a hand ---------------------------------------------------------------------------------------------


def test_a_slider_moved_by_keys_moves_curves_numbers_and_address(opened):
    page = opened(hash="activation=tanh&sigma_w=1.5")
    canvas, picture = "#gradient canvas", "(selector) => document.querySelector(selector).toDataURL()"
    before, said = page.evaluate(picture, canvas), page.inner_text("#out-chi")
    page.focus("#sigma_w-range")
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    page.evaluate("window.explorer.set({})")
    assert page.evaluate("window.explorer.get().sigma_w") > 1.5
    assert page.evaluate(picture, canvas) != before
    assert page.inner_text("#out-chi") != said
    assert f"sigma_w={page.evaluate('window.explorer.get().sigma_w')}&" in page.url
    again = opened(hash=page.url.partition("#")[2])  # the address alone gives the same page
    assert again.inner_text("#out-chi") == page.inner_text("#out-chi")


@pytest.mark.parametrize(("key", "scale", "sign"), [("ArrowLeft", "sigma_w", -1), ("ArrowUp", "sigma_b", 1)])
def test_keys_move_the_point_on_the_map(opened, key, scale, sign):
    page = opened(hash="activation=tanh&sigma_w=1.5&sigma_b=0.5")
    before = page.evaluate("window.explorer.get()")
    page.focus("#map")
    page.keyboard.press(key)
    page.evaluate("window.explorer.set({})")
    after = page.evaluate("window.explorer.get()")
    assert np.sign(after[scale] - before[scale]) == sign
    assert {name for name in after if after[name] != before[name]} == {scale}
    said = page.get_attribute("#map", "aria-label")
    assert f"weight scale {after['sigma_w']:#.4g}," in said
    assert f"bias scale {after['sigma_b']:g}:" in said


def test_a_click_on_the_map_and_the_way_to_the_edge(opened):
    page = opened(hash="activation=tanh")
    box = page.locator("#map").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.6)
    page.evaluate("window.explorer.set({})")
    assert page.evaluate("window.explorer.get().sigma_w") > 3
    page.click("#to-edge")
    page.evaluate("window.explorer.set({})")
    assert page.inner_text("#out-phase") == "critical"
    page.evaluate("window.explorer.set({ activation: 'relu', sigma_b: 0.5 })")
    assert page.is_disabled("#to-edge")


@pytest.mark.parametrize(
    "hash", ["activation=tanh", "activation=gelu&sigma_w=3&depth=1000", "activation=relu&sigma_w=1.2"]
)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_downwards_only(opened, hash, scheme):
    page = opened(hash=hash, viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True)
    page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_what_makes_no_sense_in_an_address_is_left_out(opened):
    page = opened(hash="activation=nonsense&sigma_w=NaN&sigma_b=-3&depth=1e9&width=300&layer=7.4&format=float7")
    setting = page.evaluate("window.explorer.get()")
    expected = {
        "activation": "tanh",
        "sigma_w": 1.5,
        "sigma_b": 0,
        "depth": 1000,
        "width": 256,
        "layer": 7,
        "format": "float32",
    }
    assert {name: setting[name] for name in expected} == expected


UNNAMED = """() => [...document.querySelectorAll("input, select, button, canvas[tabindex]")]
  .filter((e) => !(e.labels?.length || e.getAttribute("aria-label") || e.innerText)).length"""


def test_every_input_has_a_name(opened):
    assert opened().evaluate(UNNAMED) == 0


# --- the file -------------------------------------------------------------------------------------------------------


def test_the_file_is_small_and_carries_its_licence(written):
    text = written.read_text()
    assert written.stat().st_size < 3e6 / len(exploring.EXPLORED) * len(FEW)
    assert "Permission is hereby granted" in text
    assert not re.search(r"\{\{\w+\}\}", text)
    assert not re.search(r"<(script|link|img)[^>]*\s(src|href)=(?!\"data:)", text)


def test_the_map_is_that_of_the_theory():
    """Row by row from the bottom, in the middle of cells."""
    growth, unbounded = exploring._map(vg.activations.get("gelu"), 4.0)
    rows, columns = growth.shape
    for row, column in ((0, 0), (3, 100), (rows - 1, 17)):
        point = vg.theory.mean_field("gelu", (column + 0.5) * 4 / columns, (row + 0.5) * 2 / rows)
        assert growth[row, column] == pytest.approx(float(np.log(point.chi)) / 2, rel=1e-12)
        assert unbounded[row, column] == (point.status == "grows without bound")


def test_tables_give_the_moments_back():
    found = tables("tanh", [64], 100.0)
    assert isinstance(found, Tables)
    t = np.random.default_rng(0).uniform(found.edges[0], found.edges[-1], 50)
    place = (t - found.edges[0]) / (found.edges[1] - found.edges[0])
    segment = place.astype(int)
    rows = [
        np.polynomial.chebyshev.chebval(2 * x - 1, found.moments[s].T)
        for s, x in zip(segment, place - segment, strict=True)
    ]
    expected = np.array(vg.theory.moments("tanh", np.exp(t))).T
    np.testing.assert_allclose(rows, expected, rtol=1e-11)


def test_tables_give_one_layers_law_back():
    """At a node of the law's axis in ln q, against the public moments of a layer."""
    found, width = tables("tanh", [16, 64], 10.0), 64
    q = 0.7
    place = (np.log(q) - found.law_axis[0]) / found.law_axis[1]
    law = np.polynomial.chebyshev.chebval(2 * (place % 1) - 1, found.laws[1, int(place)].T)
    expected = vg.theory.log_gain_moments("tanh", width, q)
    np.testing.assert_allclose(law + found.norms[1], expected, rtol=1e-9)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activations", "sentence"),
    [
        (["tanb"], "did you mean 'tanh'"),
        ([], "activations must hold at least one"),
        (["tanh", "tanh"], "got 'tanh' twice"),
        ([vg.Activation("step", lambda h: (h > 0).astype(h.dtype))], "must be continuous"),
    ],
)
def test_bad_activations_are_one_sentence_and_nothing_is_written(tmp_path, activations, sentence):
    with pytest.raises(ValueError, match=sentence):
        vg.plots.explorer(tmp_path / "new" / "page.html", activations)
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_the_page_and_says_where(tmp_path, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr("vgjax.cli.exploring.webbrowser.open", opened.append)
    monkeypatch.setenv("DISPLAY", ":0")
    command = ["explore", "--activation", "linear", "--no-cache", "--out", str(tmp_path / "page.html")]
    assert main([*command, "--json", "--no-open"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {
        "path": str(tmp_path / "page.html"),
        "bytes": (tmp_path / "page.html").stat().st_size,
        "activations": ["linear"],
    }
    assert opened == []
    assert main(command) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"
    assert opened == [(tmp_path / "page.html").as_uri()]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--activation", "tanb", "--out", "page.html"], "did you mean 'tanh'"),
        (
            ["--activation", "relu", "--out", "file/page.html"],
            "the folder of path must be a folder that can be written to",
        ),
        (["--activation", "relu", "--out", "."], "path must be that of a file, got the folder"),
    ],
)
def test_bad_commands_are_one_sentence(tmp_path, capsys, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    assert main(["explore", *arguments, "--no-cache", "--no-open"]) == 2
    assert re.fullmatch(f"vgjax: .*{re.escape(sentence)}.*\n", capsys.readouterr().err)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
