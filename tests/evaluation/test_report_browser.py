"""The report in headless Chromium: drawn without complaint or network, answers the pointer, fits a phone and paper."""

from __future__ import annotations

import re

import pytest
from browser import browser, find_browser

pytestmark = pytest.mark.skipif(find_browser() is None, reason="there is no chromium or chrome on this machine")

FIRST_PLOT = "document.querySelector('[data-chart$=l2-norm-of-each-step]')"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def test_every_figure_is_drawn_without_complaint_or_network(page, full_report):
    page.open(full_report)
    page.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.wait("document.querySelectorAll('.plot:not(.js-plotly-plot)').length == 0")
    plots = page.run("document.querySelectorAll('.plot').length")
    drawn = page.run(
        "[...document.querySelectorAll('.plot')].filter((plot) => plot.querySelector('.main-svg')"
        " && plot.querySelectorAll('.scatterlayer .trace path, .heatmaplayer image').length).length"
    )
    assert plots == drawn > 30
    assert page.complaints() == []
    assert page.requests() == [full_report.resolve().as_uri()]


def test_the_pointer_over_a_point_shows_its_values(page, full_report):
    page.open(full_report)
    page.run(f"{FIRST_PLOT}.scrollIntoView({{block: 'center'}})")
    x, y = page.run(
        f"(() => {{ const box = {FIRST_PLOT}.querySelectorAll('.scatterlayer .points path')[2].getBoundingClientRect();"
        " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    page.hover(x, y)
    page.wait(f"{FIRST_PLOT}.querySelector('.hoverlayer .hovertext') !== null")
    text = page.run(f"{FIRST_PLOT}.querySelector('.hoverlayer').textContent")
    assert "R2DN" in text or "LSTM" in text
    assert re.search(r"size \(observation units\): 0\.11", text) and re.search(r"return: .\d+.* \[", text)


def test_the_legend_hides_a_method_in_every_figure(page, full_report):
    page.open(full_report)
    count = (
        "[...document.querySelectorAll('.js-plotly-plot')].flatMap((p) => p.data).filter((t) => t.visible === false)"
    )
    assert page.run(f"{count}.length") == 0
    page.run("document.querySelector('.legend button[data-name=LSTM]').click()")
    page.wait(f"{count}.length > 10")
    assert page.run(f"[...new Set({count}.map((t) => t.name))]") == ["LSTM"]
    pressed = "[...document.querySelectorAll('.legend button[data-name=LSTM]')].map((b) => b.ariaPressed)"
    assert set(page.run(pressed)) == {"false"}


def test_nothing_is_wider_than_the_screen(page, full_report):
    page.open(full_report, 390, 844, phone=True)
    page.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.wait("document.querySelectorAll('.plot:not(.js-plotly-plot)').length == 0")
    for width in (390, 320, 820):
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=True)
        # Pictures follow the width of the window a moment later.
        page.wait(f"document.documentElement.scrollWidth == {width} && innerWidth == {width}")
        outside = page.run(
            "[...document.querySelectorAll('figure, h1, h2, h3, p, .plot, summary, nav a')]"
            f".filter((e) => e.getBoundingClientRect().right > {width} + 0.5).map((e) => e.outerHTML.slice(0, 80))"
        )
        assert outside == []


def test_print_shows_the_static_figures_and_cuts_none(page, full_report):
    page.open(full_report, 695, 1000)
    page.call("Emulation.setEmulatedMedia", media="print")
    shown = page.run(
        "[...document.querySelectorAll('.still')].filter((e) => e.checkVisibility())"
        ".map((e) => [e.complete && e.naturalWidth > 0, e.getBoundingClientRect().right <= innerWidth,"
        " e.getBoundingClientRect().height < 980, getComputedStyle(e.closest('figure')).breakInside])"
    )
    plots = page.run("[...document.querySelectorAll('.plot')].filter((e) => e.checkVisibility()).length")
    page.call("Emulation.setEmulatedMedia", media="")
    assert len(shown) > 10 and all(row == [True, True, True, "avoid"] for row in shown) and plots == 0
    assert page.run("document.querySelectorAll('.still').length") >= len(shown)
    printed = page.pdf()
    assert printed.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", printed)) > 5


def test_print_has_two_figures_a_page(page, full_report):
    page.open(full_report, 695, 1000)
    page.call("Emulation.setEmulatedMedia", media="print")
    heights = page.run(
        "[...document.querySelectorAll('figure')].filter((e) => e.checkVisibility())"
        ".map((e) => e.getBoundingClientRect().height)"
    )
    page.call("Emulation.setEmulatedMedia", media="")
    # 269 mm of a page of A4 between its margins, at 96 pixels an inch.
    assert len(heights) > 10 and max(heights) < 269 / 25.4 * 96 / 2


def test_a_capture_at_any_moment_shows_every_figure(page, full_report):
    shown = (
        "(e) => [...e.querySelectorAll('.still')].some((s) => s.complete && s.checkVisibility()) || "
        "[...e.querySelectorAll('.plot')].every((p) => p.querySelector('.main-svg') && p.checkVisibility("
        "{visibilityProperty: true}) && p.getBoundingClientRect().height > 100)"
    )
    gaps = f"[...document.querySelectorAll('figure')].filter((e) => e.checkVisibility() && !({shown})(e)).length"
    watch = (
        "window.seen = [0, 0]; addEventListener('load', () => { const look = () => {"
        f" window.seen[0] += 1; window.seen[1] += {gaps};"
        " if (document.documentElement.dataset.drawn != 'all') setTimeout(look); }; look(); });"
    )
    script = page.call("Page.addScriptToEvaluateOnNewDocument", source=watch)["identifier"]
    try:
        page.open(full_report)
    finally:
        page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)
    looks, found = page.run("window.seen")
    assert looks > 5 and found == 0 and page.run(gaps) == 0
    assert page.run("document.querySelectorAll('figure.drawn').length") > 10


def test_a_table_that_scrolls_says_so(page, full_report):
    hints = (
        "[...document.querySelectorAll('#glance .wide')].map((e) => [e.querySelector('.hint').checkVisibility(),"
        " e.querySelector('.scroll').scrollWidth > e.querySelector('.scroll').clientWidth + 1])"
    )
    page.open(full_report, 390, 844, phone=True)
    assert page.run(hints) == [[True, True]]
    page.open(full_report, 1400)
    assert page.run(hints) == [[False, False]]


def test_without_scripts_the_static_figures_are_there(page, full_report, tmp_path):
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.events.clear()
        page.call("Page.navigate", url=full_report.resolve().as_uri())
        page.wait_for_event("Page.loadEventFired")
        tree = page.call("DOM.getDocument", depth=0)["root"]["nodeId"]
        found = page.call("DOM.querySelector", nodeId=tree, selector="figure .still")["nodeId"]
        box = page.call("DOM.getBoxModel", nodeId=found)["model"]
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)
    assert box["width"] > 200 and box["height"] > 50
