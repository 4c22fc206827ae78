"""A study's files: the same bytes from the same report, safe to open, and linked to each other."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from planted_study import Plan, given, planted

from rlaif.evaluate.plots import STYLE
from rlaif.evaluate.study.figures import study_report
from rlaif.evaluate.study.page import write_study
from rlaif.evaluate.study.plots import LOOKS, plots
from rlaif.evaluate.study.records import StudyReport
from rlaif.evaluate.study.summary import headline_words
from rlaif.evaluate.study.words import alarms, warnings

CURVE = (0.25, 0.5)
EVIL = '</div><script>alert("x")</script> | ``` \n\n# no heading'
AGAIN = """
import sys
from pathlib import Path
from rlaif.evaluate.study.records import StudyReport
from rlaif.evaluate.study.page import write_study

folder = Path(sys.argv[1])
report = StudyReport.model_validate_json((folder / "study.json").read_text(encoding="utf-8"))
write_study(report, Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def report() -> StudyReport:
    data = planted(Plan(shares=CURVE, compared_by="openai/gpt-5"))
    evil = [
        g.model_copy(
            update={
                "responses": (EVIL, EVIL + "!"),
                "prompt": g.prompt.model_copy(update={"tags": ("one | two", "<b>")}),
            }
        )
        for g in data.groups
    ]
    return study_report(data._replace(groups=evil))


@pytest.fixture(scope="module")
def folder(report: StudyReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("study")
    write_study(report, found)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_files_are_those_that_are_promised(folder: Path) -> None:
    plots = [
        "accuracy",
        "agreement",
        "dpo_loss",
        "learning_curve",
        "reward_model_loss",
        "win_rates",
    ]
    assert sorted(contents(folder)) == sorted(
        ["study.html", "study.json", "study.md"]
        + [f"csv/{name}.csv" for name in plots]
        + [f"plots/{name}.{suffix}" for name in plots for suffix in ("svg", "pdf")]
    )


def test_another_process_writes_the_same_bytes_from_the_json(folder: Path, tmp_path: Path) -> None:
    # Another hash seed: no order may hang on it.
    subprocess.run(
        [sys.executable, "-c", AGAIN, str(folder), str(tmp_path)],
        check=True,
        env={"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)},
    )
    assert contents(tmp_path) == contents(folder)


def test_nothing_in_the_files_tells_when_they_were_written(folder: Path) -> None:
    for name, data in contents(folder).items():
        assert b"CreationDate" not in data, name
        assert b"<dc:date>" not in data, name


class Tags(HTMLParser):
    """Checks that every tag is closed in order, and counts the cells of rows."""

    VOID = frozenset({"meta", "br", "hr", "img", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.tables: list[list[int]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append(0)
        elif tag in ("th", "td"):
            self.tables[-1][-1] += 1

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_its_tables_are_rectangular(folder: Path) -> None:
    page = Tags()
    page.feed((folder / "study.html").read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    assert len(page.tables) >= 10
    for rows in page.tables:
        assert len(set(rows)) == 1
        assert rows[0] <= 8
    assert not {"script", "link", "img", "iframe", "b"} & page.seen


def test_what_a_response_says_is_neither_tag_nor_markdown(folder: Path) -> None:
    assert "&lt;script&gt;" in (folder / "study.html").read_text(encoding="utf-8")
    lines = (folder / "study.md").read_text(encoding="utf-8").splitlines()
    assert any("<script>" in line for line in lines)
    for line in lines:
        if "script" in line or "no heading" in line:
            assert line.startswith("    "), line


def test_markdown_links_lead_to_files_and_its_tables_are_rectangular(folder: Path) -> None:
    text = (folder / "study.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) == 3 * 6
    assert all((folder / link).is_file() for link in links)
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(blocks) >= 10
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_a_judge_that_labelled_is_a_warning_in_red(folder: Path) -> None:
    page = (folder / "study.html").read_text(encoding="utf-8")
    red = page[page.index('<div class="warn red" role="alert">') :]
    assert "labelled the AI arms and compares the policies as well" in red[: red.index("</div>")]
    assert ".warn.red" in page
    caution = (folder / "study.md").read_text(encoding="utf-8").split("> [!CAUTION]\n")[1]
    assert caution.startswith("> - openai/gpt-5 labelled the AI arms")


def test_another_familys_judge_is_no_warning_in_red(tmp_path: Path) -> None:
    write_study(study_report(planted()), tmp_path)
    assert 'class="warn red"' not in (tmp_path / "study.html").read_text(encoding="utf-8")
    assert "CAUTION" not in (tmp_path / "study.md").read_text(encoding="utf-8")


def test_a_plots_numbers_are_those_of_the_report(folder: Path, report: StudyReport) -> None:
    with (folder / "csv" / "accuracy.csv").open(newline="") as file:
        rows = {row["label"]: row for row in csv.DictReader(file)}
    for of in report.accuracies:
        row = rows[f"{'DPO' if of.kind == 'dpo' else 'reward model'}, {of.arm}"]
        assert float(row["value"]) == of.on_human.value
        assert float(row["low"]) == of.on_human.low
    with (folder / "csv" / "reward_model_loss.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses == [0.7, 0.6, 0.5] * 9


def test_a_study_without_intervals_is_written_as_well(tmp_path: Path) -> None:
    """One seed, ties everywhere, no verdict, no judge that decided a held-out pair."""
    data = planted(Plan(prompts=12, seeds=1))
    held_out = {g.prompt.id for g in data.groups if g.split == "test"}
    level = {i: [0.0, 0.0] for i in data.units["dpo", "human", 0].scores}
    data = data._replace(
        verdicts=[],
        comparisons=[c for c in data.comparisons if c.prompt_id not in held_out],
        units=given(data.units, dict.fromkeys(data.units, level)),
    )
    write_study(study_report(data), tmp_path)
    found = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))
    assert found["held_out"]["ai_pairs"] == 0
    assert found["accuracies"][0]["on_human"]["value"] == 0.5
    assert found["against_start"] == {}
    assert "No exchange rate" in (tmp_path / "study.md").read_text(encoding="utf-8")


def headings(folder: Path) -> tuple[list[str], list[str]]:
    """Of the Markdown and of the page, in order."""
    text = (folder / "study.md").read_text(encoding="utf-8")
    page = (folder / "study.html").read_text(encoding="utf-8")
    return re.findall(r"^##+ (.*)$", text, re.MULTILINE), re.findall(r"<h[23]>(.*?)</h[23]>", page)


def test_the_page_and_the_markdown_have_one_order(folder: Path) -> None:
    in_markdown, on_page = headings(folder)
    boxes = ("These comparisons are not fair", "Before you trust it", "In short")
    plain = [unescape(title).replace("'", "’") for title in on_page if title not in boxes]
    assert [title.replace("'", "’") for title in in_markdown] == plain
    assert in_markdown[0] == "Main figures"
    assert in_markdown[-2:] == ["What this does and does not show", "All comparisons"]


def test_a_report_begins_with_ten_lines_at_most_and_the_main_table(tmp_path: Path) -> None:
    """One seed, nine prompts, one verdict lost, arms trained unlike, a judge that labelled …"""
    data = planted(Plan(prompts=9, seeds=1, shares=CURVE, compared_by="openai/gpt-5"))
    other = {
        key: unit._replace(trained=unit.trained.model_copy(update={"steps": i}))
        for i, (key, unit) in enumerate(data.units.items())
    }
    still = {
        key: of._replace(log_ratios=[(i, 0.0) for i, _ in of.log_ratios])
        for key, of in data.said.items()
    }
    found = study_report(data._replace(units=other, said=still, verdicts=data.verdicts[:3]))
    assert len([*alarms(found), *warnings(found), *headline_words(found)]) > 10
    write_study(found, tmp_path)
    text = (tmp_path / "study.md").read_text(encoding="utf-8")
    top, rest = text.split("\n## Main figures\n")
    lines = [line for line in top.splitlines() if line.startswith(("- ", "> - "))]
    assert len(lines) == 10
    more = re.search(r"(\d+) more warnings? under the table", top)
    assert more is not None
    under = rest.split("\n## More warnings\n")[1].split("\n## ")[0]
    assert len([line for line in under.splitlines() if line.startswith("- ")]) == int(more[1])
    for sentence in warnings(found):
        assert text.count(escaped(sentence)) == 1


def escaped(sentence: str) -> str:
    return sentence.replace("_", "\\_").replace("[", "\\[").replace("]", "\\]")


def test_the_main_table_has_every_arm_and_marks_the_primary_comparisons(folder: Path) -> None:
    text = (folder / "study.md").read_text(encoding="utf-8")
    table = text.split("\n## Main figures\n")[1].strip().split("\n\n")[0].splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == [
        "| start",
        "| human",
        "| ai\\_soft",
        "| noise\\_matched",
    ]
    assert [line.count("†") for line in table] == [0, 0, 0, 0, 2, 0]


def test_the_curves_intervals_stand_beside_its_plot(folder: Path, report: StudyReport) -> None:
    assert report.curve is not None
    with (folder / "csv" / "learning_curve.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["arm"] == "ai_soft"]
    assert [int(row["pairs"]) for row in rows] == [25, 50, 100]
    for row, of in zip(rows, report.curve.ai.accuracies, strict=True):
        assert (float(row["value"]), float(row["low"])) == (of.value, of.low)
        assert (float(row["high"]), int(row["prompts"])) == (of.high, of.clusters)
        fit = report.curve.ai.a - report.curve.ai.b * float(row["pairs"]) ** -report.curve.ai.c
        assert float(row["fit"]) == pytest.approx(fit)


FIVE = ("human", "ai_soft", "ai_hard", "mixed", "noise_matched")


@pytest.mark.parametrize("seeds", [1, 3])
def test_no_text_of_a_plot_lies_on_another_or_on_what_is_drawn(seeds: int) -> None:
    plan = Plan(
        arms=FIVE,
        seeds=seeds,
        right=dict.fromkeys(FIVE, 0.7),
        wins=dict.fromkeys(FIVE, 0.5),
        shares=(0.25, 0.5, 0.9, 0.95),
    )
    for plot in plots(study_report(planted(plan))):
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=plot.size, layout="constrained")
            axes = figure.subplots()
            plot.draw(axes)
            figure.draw_without_rendering()
        hidden = set()
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
            hidden |= {label for at, label in ticks if not low <= at <= high}
        texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
        texts = [t for t in texts if t not in hidden]
        boxes = [t.get_window_extent() for t in texts]
        for (one, box), (other, beside) in combinations(zip(texts, boxes, strict=True), 2):
            assert not box.overlaps(beside), (plot.name, one.get_text(), other.get_text())
        for text, box in zip(texts, boxes, strict=True):
            assert not box.overlaps(axes.bbox), (plot.name, text.get_text())
            assert text.get_fontsize() >= 9
            assert figure.bbox.padded(1).containsx(box.x0), (plot.name, text.get_text())
            assert figure.bbox.padded(1).containsx(box.x1), (plot.name, text.get_text())


def test_lines_of_arms_are_told_apart_without_colour() -> None:
    looks = {(str(look.line), look.marker) for look in LOOKS.values()}
    assert len(looks) == len({marker for _, marker in looks}) == len(FIVE)
