"""The report of runs, as a file and as a browser shows it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bundlerun.launcher.cli import command_parser, main
from bundlerun.launcher.report import keep
from bundlerun.launcher.report.figures import drawing
from bundlerun.launcher.run_folder.paths import RunPaths
from tests.unit.launcher.report.browser import FOUND, PROGRAMS, browser
from tests.unit.launcher.report.made_run import BOUND, FAILURE, make_run

pytest.importorskip("matplotlib", reason="the extra report is not installed")

from bundlerun.launcher.report.make import read_runs


class Parts(HTMLParser):
    """Titles, texts, ids and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.tags: Counter[str] = Counter()
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids[value or ""] += 1
            if name in ("href", "src", "xlink:href", "srcset", "action"):
                self.addresses.append(value or "")

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


@dataclass(frozen=True)
class Made:
    """Reports that several tests look at; each takes a second or two to make."""

    one: Path
    two: Path
    png: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("runs")
    first = make_run(root / "a <run>")
    second = make_run(root / "b", num_steps=40, is_done=False)
    options = json.loads(second.node_options("node-a").read_text())
    options["train"]["lr"] = {"value": 0.2, "source": "option"}
    second.node_options("node-a").write_text(json.dumps(options))
    assert main(["report", str(first.root), "--png", str(root / "png")]) == 0
    assert main(["report", str(first.root), str(second.root), "-o", str(root / "two.html")]) == 0
    return Made(first.report, root / "two.html", root / "png")


SECTIONS = [
    "Loss", "Metrics", "Speed", "Where the time goes", "What happened", "A step", "Memory",
    "Configuration",
]  # fmt: skip


def test_a_report_has_all_of_a_run_and_needs_nothing_else(made: Made) -> None:
    text = made.one.read_text()
    parts = Parts(text)
    assert re.findall(r"<h2>(.*?)</h2>", text) == SECTIONS
    # Two steps, and each figure for wide and for narrow pages.
    assert parts.tags["svg"] == 2 * 8
    assert [name for name, count in parts.ids.items() if count > 1] == []
    assert all(each.startswith(("#", "data:")) for each in parts.addresses)
    assert not re.search(r"url\((?!#)|@import|<script|<iframe|<img", text)
    assert parts.tags["meta"] == 2  # it is over: no page loads itself again
    assert len(text) < 1_000_000


def test_it_tells_what_failed_what_followed_and_where_options_come_from(made: Made) -> None:
    texts = Parts(made.one.read_text()).texts
    assert any("a <run>" in text for text in texts)
    assert any(FAILURE in text for text in texts)
    assert "local rank 1 of node node-b failed" in texts
    # Neither a name's dollar nor an underscore makes a formula of it.
    assert {"epoch 2", BOUND, "$odd_$"} <= {*texts}
    assert {"/data/<images>", "BUNDLERUN_SHAPE", "run.toml", "1 options by default"} <= {*texts}
    # What a pointer is told: of a node, and of a rank's passes by plan and as they were.
    assert any(re.fullmatch(r"node-b trains for .* s from .*", text) for text in texts)
    assert any(text.startswith("plan: B0, ") for text in texts)
    assert any(re.fullmatch(r"r3 on node-b: forward F0, 100 ms at .* ms", text) for text in texts)
    # The peak of the loss is outside of what nearly all of it is in.
    assert "\N{UPWARDS ARROW}90" in texts


def test_several_runs_stand_side_by_side_and_their_differences_first(made: Made) -> None:
    text = made.two.read_text()
    parts = Parts(text)
    assert re.findall(r"<h2>(.*?)</h2>", text) == SECTIONS
    assert [name for name, count in parts.ids.items() if count > 1] == []
    assert text.count('<div class="columns">') == 3
    rows = re.findall(r"<tr class=differs><td><code>(.*?)</code>", text)
    assert rows == ["--lr"]
    # One of them goes on: its page loads itself again, which is no request to anybody else.
    assert parts.tags["meta"] == 3


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [RunPaths(tmp_path / name / "run") for name in ("a", "b")]
    for each in paths:
        each.events.mkdir(parents=True)
    assert [run.name for run in read_runs(paths)] == ["a/run", "b/run"]
    assert [run.name for run in read_runs(paths[:1])] == ["run"]


def test_a_loop_of_a_users_own_has_its_values_and_steps_per_second(tmp_path: Path) -> None:
    rows = [{"time": 10.0, "kind": "start", "ranks": 2, "nodes": 1}]
    rows += [
        {"time": 11.0 + 2 * step, "kind": "step", "step": step, "epoch": 0, "score": step / 4}
        for step in range(4)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run,) = read_runs([RunPaths(tmp_path)])
    assert list(run.training) == ["score"]
    assert run.training["score"].values.tolist() == [0.0, 0.25, 0.5, 0.75]
    assert (run.speed.values.tolist(), run.unit) == ([0.5, 0.5, 0.5], "steps")


def test_a_run_that_has_only_just_begun_has_a_page_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.jsonl").touch()
    assert main(["report", str(tmp_path), "--png", str(tmp_path / "png")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/report.html\n"
    text = (tmp_path / "report.html").read_text()
    assert "<svg" not in text
    assert "not begun" in text


def test_files_that_are_no_json_cost_their_part_only(tmp_path: Path) -> None:
    paths = make_run(tmp_path / "run", num_steps=10)
    paths.node_options("node-a").write_text("[]")
    paths.config.write_bytes(b"\xff")
    paths.outcome.write_text("{")
    for file in paths.measured_steps.rglob("*.json"):
        file.write_text("{}")
    paths.node_events("node-b").write_bytes(b"\xff\xfe" * 50)
    assert keep.main([str(paths.root), keep.LAST]) == 0
    found = re.findall(r"<h2>(.*?)</h2>", paths.report.read_text())
    assert found == [name for name in SECTIONS if name not in ("A step", "Configuration")]


def test_figures_are_written_as_png_too(made: Made) -> None:
    names = sorted(path.stem for path in made.png.glob("*.png"))
    steps = ["step-0-3", "step-0-303"]
    assert names == ["loss", "memory", "metrics", "phases-0", "speed", *steps, "story-0"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in made.png.glob("*.png"))


@pytest.mark.slow
def test_a_run_of_many_steps_makes_a_small_page(tmp_path: Path) -> None:
    """And in processor time: `pytest --durations=1` says how long the call took."""
    paths = make_run(tmp_path / "run", num_steps=100_000)
    assert main(["report", str(paths.root)]) == 0
    assert paths.report.stat().st_size < 3_000_000


def test_what_cannot_be_is_said_in_a_line(
    made: Made,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = str(made.one.parent)

    def said(*words: str) -> tuple[int, str]:
        code = main(["report", *words])
        return code, capsys.readouterr().err

    assert said(str(tmp_path / "none"))[0] == 2
    assert said(*[run] * 13) == (
        2,
        "error: 13 runs are more than one page shows; give 12 at most\n",
    )
    assert "is a folder; give a file" in said(run, "-o", str(tmp_path))[1]
    (tmp_path / "file").touch()
    code, line = said(run, "-o", str(tmp_path / "file" / "r.html"))
    assert (code, line.count("\n")) == (3, 1)
    monkeypatch.setattr(drawing, "find_spec", lambda name: None)
    code, line = said(run)
    assert code == 2
    assert "pip install 'bundlerun[report]'" in line


def test_help_loads_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys; from bundlerun.launcher.cli import command_parser, main\n"
        "try: main(['report', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'matplotlib', 'numpy'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_the_commands_of_the_page_are_ones() -> None:
    page = Path(__file__).parents[4] / "docs" / "report.md"
    lines = re.findall(r"^    bundlerun (.*?)(?:  +#.*)?$", page.read_text(), re.MULTILINE)
    assert len(lines) == 5
    for line in lines:
        words = shlex.split(line)
        command_parser(words[0]).parse_args(words)


READABLE = """(() => {
  const light = c => {
    const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const page = light(getComputedStyle(document.body).backgroundColor);
  const seen = [...document.querySelectorAll('svg text')].filter(t => t.getClientRects().length);
  const contrast = t => {
    const found = light(getComputedStyle(t).fill);
    return (Math.max(found, page) + 0.05) / (Math.min(found, page) + 0.05);
  };
  const scale = m => Math.sqrt(Math.abs(m.a * m.d - m.b * m.c));
  const outside = seen.filter(t => !/^[FBW]\\d/.test(t.textContent.trim()));
  const root = document.documentElement;
  return {
    figures: [...document.querySelectorAll('svg')].filter(s => s.getClientRects().length).length,
    texts: seen.length,
    smallest: Math.min(...outside.map(t =>
      parseFloat(getComputedStyle(t).fontSize) * scale(t.getScreenCTM()))),
    contrast: Math.min(...outside.map(contrast)),
    body: (Math.max(light(getComputedStyle(document.body).color), page) + 0.05)
      / (Math.min(light(getComputedStyle(document.body).color), page) + 0.05),
    wider: root.scrollWidth - root.clientWidth,
    beyond: outside.filter(t => {
      const box = t.getBoundingClientRect(), svg = t.ownerSVGElement.getBoundingClientRect();
      return box.left < svg.left - 2 || box.right > svg.right + 2;
    }).map(t => t.textContent.trim()),
    dark: page < 0.2,
  };
})()"""


@pytest.mark.skipif(not FOUND, reason=f"none of {', '.join(PROGRAMS)} is on the PATH")
def test_a_browser_shows_it_wide_and_narrow_light_and_dark(made: Made, tmp_path: Path) -> None:
    with browser(tmp_path) as tab:
        for file, num_figures in ((made.one, 8), (made.two, 12)):
            tab.open(file)
            for width in (1280, 400):
                for scheme in ("light", "dark"):
                    tab.look(width=width, scheme=scheme)
                    seen = tab.value(READABLE)
                    case = f"{file.name} {width} {scheme}: {seen}"
                    assert seen["figures"] == num_figures, case
                    assert seen["dark"] == (scheme == "dark"), case
                    assert seen["wider"] <= 0, case
                    assert seen["beyond"] == [], case
                    assert seen["smallest"] >= 8.0, case
                    assert seen["contrast"] >= 4.5, case
                    assert seen["body"] >= 7.0, case
            assert tab.complaints() == []
