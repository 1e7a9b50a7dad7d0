"""What the report says has been measured and counted rightly."""

from __future__ import annotations

import importlib
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    Bench = Callable[[str], ModuleType]

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])
    return importlib.import_module


def test_lines_that_are_lost_and_lines_that_are_split_are_counted(tmp_path: Path, bench: Bench) -> None:
    account, suffix = bench("supervisors")._account, bench("supervisors")._SUFFIX
    lines = [b"%08d" % number + suffix for number in range(10)]
    (tmp_path / "app.log.1").write_bytes(b"".join(lines[:4]))
    (tmp_path / "app.log").write_bytes(b"".join(lines[4:]))
    paths = [str(path) for path in tmp_path.iterdir()]
    assert account(paths, 10) == "0; 0"
    (tmp_path / "app.log").write_bytes(lines[4][20:] + b"".join(lines[5:9]))
    assert account(paths, 10) == "2; 0"
    (tmp_path / "app.log.1").write_bytes(b"".join(lines[:4]) + lines[4][:20])
    assert account(paths, 10) == "1; 1"


def test_a_picture_is_well_formed_and_names_each_contender_with_its_figure(bench: Bench) -> None:
    charts = [
        {"title": "a `crash` & more", "unit": "ms", "values": {"daemonkit": 1.5, "<other>": 1200.0, "idle": 0.0}},
        {"title": "speed", "unit": "MB/s", "values": {"daemonkit": 700.0, "C": 950.0}},
    ]
    root = ET.fromstring(bench("bars").draw(charts))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "a crash & more, ms"
    assert {"daemonkit", "<other>", "1.5", "1,200", "0", "speed, MB/s", "950"} <= set(texts)
    widths = [float(element.get("width", "")) for element in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths[1] > widths[0] > widths[2] == 0
    assert widths[3] / widths[4] == pytest.approx(700 / 950, rel=0.01)


def test_the_page_for_readers_has_the_figures_and_the_other_page_the_goals_and_why_one_is_missed(bench: Bench) -> None:
    line = bench("table").Line
    lines = [
        line("memory (PSS), 1 child", {"daemonkit": [12.0, 14.0, 13.0], "C": [0.2]}, "MiB", "<= 10 MiB", holds=False),
        line("stop 100", {"daemonkit": [9.0], "C": "failed"}, "ms", "<= 30 ms", holds=True, notes=["C: the compiler"]),
    ]
    parts = {"supervisors": bench("report").part_of_lines("Keeping", lines)}
    text = bench("pages").page(parts, "a machine")
    assert "| what | daemonkit | C |\n" in text and "| stop 100, ms | 9 | failed |\n" in text
    assert "| memory (PSS), 1 child, MiB | 13 (12 to 14) | 0.20 |\n" in text
    assert "- C: the compiler" in text and "Missed" not in text and "a machine" in text
    goals = bench("pages").goals(parts)
    assert "| memory (PSS), 1 child, MiB | 13 (12 to 14) | <= 10 MiB | **missed** |\n" in goals
    assert "| stop 100, ms | 9 | <= 30 ms | yes |\n" in goals
    assert "- Missed: memory (PSS), 1 child: two Python processes" in goals and "compiler" not in goals


def test_the_page_for_readers_begins_with_what_was_measured_of_what_matters_to_them(bench: Bench) -> None:
    values = {"daemonkit": 120.0, "`Popen(start_new_session=True)`": 100.0}
    charts = [{"title": "`spawn_detached()`, 20 MB caller", "unit": "us", "values": values}]
    part = bench("report").part_of_lines("Launching", []) | {"charts": charts}
    text = bench("pages").page({"spawn": part}, "")
    assert "`spawn_detached()` takes 1.2 times as long as `subprocess.Popen`" in text
    assert "(benchmarks/overview.svg)" in text and "PM2" not in text


def test_a_curve_is_flat_where_the_cost_is_and_each_contender_has_its_own(bench: Bench) -> None:
    series = {"daemonkit": [[20, 200.0], [8192, 200.0]], "<Node>": [[20, 700.0], [8192, 60000.0]], "none": []}
    root = ET.fromstring(bench("plots").draw([{"title": "a `launch`", "x": "MB & more", "y": "us", "series": series}]))
    tag = "{http://www.w3.org/2000/svg}"
    texts = {element.text for element in root.iter(f"{tag}text")}
    assert {"a launch, us", "MB & more", "daemonkit", "<Node>", "100", "100,000"} <= texts
    flat, steep, _ = (
        [point.split(",") for point in line.get("points", "").split()] for line in root.iter(f"{tag}polyline")
    )
    assert flat[0][1] == flat[1][1] and flat[0][0] == steep[0][0]
    assert float(steep[1][1]) < float(steep[0][1]) < float(flat[0][1])


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_survivors_of_a_kill_are_seen_by_their_roles_and_ended_in_the_end(tmp_path: Path, bench: Bench) -> None:
    assert bench("table").compile_program("child", str(tmp_path)) is None
    assert bench("table").compile_program("supervisor", str(tmp_path)) is None
    peers, stage = bench("peers"), bench("stage")
    with stage.staged(peers.InC, str(tmp_path)) as scene:
        scene.peer.start(peers.App(("tree",), 2))
        for role in stage.ROLES:
            scene.wait_for(2, role)
        assert scene.left() == "2/2/2/2"
        scene.kill(scene.wait_for(1)[0])  # whose place another takes, with all that goes with it
        for role in stage.ROLES:
            scene.wait_for(3, role)
        assert scene.left() == "2/3/3/3"
        scene.peer.kill()
        assert scene.left() == "2/3/3/3"
        reports = scene.alive()
    assert reports and not Path(scene.peer.folder).exists()
