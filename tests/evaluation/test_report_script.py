"""The page's script, run by Node with a small document: the library unpacks, and every picture is drawn."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="there is no node on this machine")


def parts(report: Path):
    """Return what the script reads of a page."""
    page = report.read_text()
    scripts = dict(re.findall(r"<script type='[^']*' id='(\w+)'>(.*?)</script>", page, re.DOTALL))
    script = re.search(r"<script>(.*?)</script></body>", page, re.DOTALL)
    assert script is not None
    body, plots, depth = page[: page.index("<script type=")], [], 0
    tags = r"<details[^>]*>|</details>|<div class='plot' data-chart='([^']*)' data-panel='(\d+)'"
    for tag in re.finditer(tags, body):
        text = tag.group()
        if text.startswith("<details"):
            depth += " open" not in text
        elif text.startswith("</"):
            depth -= 1
        elif tag.group(1):
            plots.append({"chart": tag.group(1), "panel": int(tag.group(2)), "folded": depth > 0})
    names = sorted({html.unescape(name) for name in re.findall(r"<button[^>]*data-name='([^']*)'", body)})
    return {**scripts, "script": script.group(1), "plots": plots, "names": names}


def run(given):
    given = {**given, "sha256": hashlib.sha256(get_plotlyjs().encode()).hexdigest()}
    command = [str(NODE), str(Path(__file__).parent / "report_page.js")]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_picture_is_drawn_from_its_data_and_the_legend_hides(full_report):
    given = parts(full_report)
    charts = json.loads(given["charts"])
    assert len(given["plots"]) == sum(map(len, charts.values())) > 4 and len(given["names"]) > 1
    found = run(given)
    assert (found["outcome"], found["live"], found["errors"], found["still"]) == ("all", True, [], 0)
    # The very library of the package.
    assert found["library"] > 3_000_000 and found["same"]
    drawn = {(chart, int(panel)): (traces, layout) for chart, panel, traces, layout, _ in found["drawn"]}
    assert drawn == {
        (key, place): (len(panel["data"]), len(panel["layout"]))
        for key, panels in charts.items()
        for place, panel in enumerate(panels)
    }
    assert found["before_unfolding"] == sum(not plot["folded"] for plot in given["plots"])
    hidden = given["names"][0]
    assert found["pressed"] == {name: str(name != hidden).lower() for name in given["names"]}
    assert len(found["restyled"]) == len(drawn) and any(False in visible for visible in found["restyled"])


def test_a_library_that_does_not_unpack_leaves_the_still_pictures(full_report):
    given = parts(full_report)
    given["plotly"] = base64.b64encode(b"no gzip").decode()
    found = run(given)
    assert (found["outcome"], found["live"], found["drawn"]) == ("none", False, [])
    assert found["still"] == len(given["plots"])
