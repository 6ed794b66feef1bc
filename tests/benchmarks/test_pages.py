"""What benchmarks write for people: tables that are Markdown, pictures that are XML."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from benchmarks import chart, page

SVG = "{http://www.w3.org/2000/svg}"
MACHINE = {"cores": 2, "cpu": "a CPU", "commit": "abc", "time": "now"}


def _drawn(svg: str, tag: str) -> list[ElementTree.Element]:
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for one in root.iter():
        for name, most in (("x", width), ("x1", width), ("x2", width), ("y", height)):
            assert 0 <= float(one.attrib.get(name, 0)) <= most, "drawn outside of the picture"
    return list(root.iter(f"{SVG}{tag}"))


def test_bars_are_as_long_as_their_values():
    panels = {
        "a < b": [chart.Bar("us & them", 200, 150, 250, True), chart.Bar("x", 50, 50, 50, False)],
        "another": [chart.Bar("x", 3, 3, 3, False)],
        "third": [],
    }
    svg = chart.bars('what "is" drawn', panels)
    longest, shorter, alone = [
        one for one in _drawn(svg, "rect") if one.attrib["fill"] != "#ffffff"
    ]
    assert float(longest.attrib["width"]) == pytest.approx(4 * float(shorter.attrib["width"]), 0.01)
    assert longest.attrib["fill"] == chart.OURS
    assert shorter.attrib["fill"] == alone.attrib["fill"] == chart.THEIRS
    words = [one.text for one in _drawn(svg, "text")]
    assert {"a < b", "us & them", "200", "third", 'what "is" drawn'} <= {*words}


def test_lines_rise_with_their_values_on_shared_axes():
    panels = {
        "one": {"near": [(1, 10.0), (64, 1000.0)], "far": [(1, 10.0)]},
        "two": {"near": [(1, 100.0), (64, 1000.0)]},
    }
    svg = chart.lines("lines", panels, "batch")
    first, single, second = (
        [tuple(map(float, point.split(","))) for point in one.attrib["points"].split()]
        for one in _drawn(svg, "polyline")
    )
    assert first[0] == single[0]
    assert first[1][1] == second[1][1] < second[0][1] < first[0][1]  # y grows downwards
    assert first[0][1] - second[0][1] == pytest.approx(second[0][1] - second[1][1])  # decades
    assert second[0][0] > first[1][0]  # the panel beside
    assert len(_drawn(svg, "circle")) == 5


@pytest.mark.parametrize("values", [[(1, 7.0)], [(1, 10.0), (2, 10.0)]])
def test_lines_of_a_single_value_are_drawn(values):
    assert _drawn(chart.lines("t", {"p": {"s": values}}, "x"), "circle")


def test_a_page_has_its_parts_and_names_its_files(tmp_path):
    path = tmp_path / "some.json"
    rows = [{"a_name": 1234.5, "b": "x"}, {"a_name": 0.012345, "b": ""}]
    result = {"benchmark": "what it is", "machine": MACHINE}
    page.write(path, result, ["Words.", page.table(rows)], chart.bars("t", {}))
    assert path.with_suffix(".md").read_text() == (
        "# What it is\n\n"
        "2 cores of a CPU, commit abc, now; all figures: [some.json](some.json)\n\n"
        "![what it is](some.svg)\n\n"
        "Words.\n\n"
        "| a name | b |\n| --- | --- |\n| 1,234 | x |\n| 0.0123 |  |\n"
    )
    assert path.with_suffix(".svg").read_text().startswith("<svg")
