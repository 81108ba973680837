from __future__ import annotations

import csv
import io
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from reftune import cli
from reftune.reporting.comparison.compare import Comparison, compare_runs
from reftune.reporting.comparison.group_plots import learning_plots, sample_plots
from reftune.reporting.comparison.page import default_directory, terminal_tables, write_comparison
from written_runs import add_reranker, write_run

HOSTILE = "<img src=x onerror=alert(1)>|`[a](b)` & {{ 7 * 7 }}"
PAPER = Path(__file__).parents[1] / "reproduction" / "paper.toml"
METHODS = ("warmup", "sft", "offline_st", "online_st", "reft")


def draw(share: float, seed: object, n: int) -> list[int]:
    rng = random.Random(str(seed))
    return [int(rng.random() < share) for _ in range(n)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return two seeds each of two kinds of chains, with five models and four aggregations."""
    folder = tmp_path_factory.mktemp("runs")
    directories = []
    for cot in ("program", "natural"):
        for seed in (1, 2):
            right = {m: draw(0.4 + i / 10, (cot, seed, m), 50) for i, m in enumerate(METHODS)}
            samples = {m: [draw(0.5, (cot, seed, m, i), 4) for i in range(50)] for m in METHODS}
            name = f"{cot}-{seed}"
            directory = write_run(folder / name, right, seed=seed, samples=samples, data={"cot": cot})
            for model in METHODS[1:]:
                add_reranker(directory, model)
            directories.append(directory)
    return directories


@pytest.fixture(scope="module")
def comparison(runs: list[Path]) -> Comparison:
    return compare_runs(runs)


@pytest.fixture(scope="module")
def written(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparison(comparison, tmp_path_factory.mktemp("out"))


class Page(HTMLParser):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if not self.tags or self.tags[-1][0] != "style":
            self.text += data + " "

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def printed(comparison: Comparison, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(terminal_tables(comparison))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_the_page_shows_tables_bars_and_curves(comparison: Comparison, written: Path) -> None:
    page = Page(written)
    for words in (
        "comparison of 4 runs",
        "Accuracy on 50 unseen questions",
        "P-CoT, 2 seeds (program-1, program-2)",
        "N-CoT against P-CoT",
        "ReFT against Offline-ST",
        f"Holm's method for all {len(comparison.differences)} comparisons",
        "Accuracy over the number of samples: N-CoT",
        "How N-CoT differs from P-CoT data.cot natural",
    ):
        assert words in page.words
    assert "as reported" not in page.words
    # Bars; curves and pass@k of both groups over each other, and of each.
    assert sum(tag == "svg" for tag, _ in page.tags) == 4 + 4 + 2 * 4
    accuracy = comparison.cells[0]
    assert f"{accuracy.accuracy:.1%}" in page.words
    assert f"seeds {100 * accuracy.lowest:.1f} to {100 * accuracy.highest:.1f}" in page.words


def test_the_page_needs_no_other_file(written: Path) -> None:
    page = Page(written)
    links = [v for _, attributes in page.tags for k, v in attributes.items() if k in ("src", "href")]
    assert all(link is not None and link.startswith("#") for link in links)
    assert not [tag for tag, _ in page.tags if tag in ("link", "script", "iframe")]


def test_markdown_shows_the_same_numbers_and_its_pictures(comparison: Comparison, written: Path) -> None:
    text = written.with_suffix(".md").read_text(encoding="utf-8")
    cells = [line for line in text.splitlines() if line.startswith("| ReFT |")]
    assert len(cells) == 2 + 1  # accuracies of two groups, the difference between them
    reft = next(c for c in comparison.cells if c.method == "reft")
    assert cells[0].startswith(f"| ReFT | {reft.accuracy:.1%} [")
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert len(pictures) == 16
    assert all((written.parent / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {5 + 1, 4 + 1}


def test_the_csv_can_be_read_back(comparison: Comparison, written: Path) -> None:
    with written.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    accuracies = [row for row in rows if row["quantity"] == "accuracy"]
    differences = [row for row in rows if row["quantity"] == "difference"]
    assert len(accuracies) == len(comparison.cells)
    for row, cell in zip(accuracies, comparison.cells, strict=True):
        assert (row["group"], row["method"], row["aggregation"]) == (
            cell.group,
            cell.method,
            cell.aggregation,
        )
        assert float(row["value"]) == cell.accuracy
        assert (float(row["low"]), float(row["high"])) == cell.interval
        assert (int(row["seeds"]), row["p"], row["as_reported"]) == (cell.seeds, "", "")
    for row, found in zip(differences, comparison.differences, strict=True):
        assert float(row["value"]) == found.difference
        assert (float(row["p"]), float(row["p_holm"])) == (found.p, found.p_holm)
        assert (row["base_group"], row["base_method"]) == (found.base_group, found.base_method)


@pytest.mark.parametrize("width", [80, 120])
def test_the_tables_fit_into_the_terminal(comparison: Comparison, width: int) -> None:
    lines = printed(comparison, width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "…" not in text
    reft = [cell for cell in comparison.cells if cell.method == "reft" and cell.group == "P-CoT"]
    (row,) = re.findall(r"^  ReFT .*$", text.partition("N-CoT, 2 seeds")[0], re.MULTILINE)
    assert row.split()[1:] == [f"{cell.accuracy:.1%}" for cell in reft]
    found = next(d for d in comparison.differences if d.method == "reft" and d.base_method == "sft")
    assert re.search(rf"ReFT against SFT\s+greedy\s+\{100 * found.difference:+.1f}\s+\[", text)


def test_reported_numbers_stand_beside_ours(tmp_path: Path) -> None:
    data = {"test": "data/gsm8k_test_set.json", "cot": "program"}
    right = {"sft": draw(0.5, 1, 40), "online_st": draw(0.6, 2, 40), "reft": draw(0.7, 3, 40)}
    run = write_run(tmp_path / "run", right, data=data, model={"name": "codellama/CodeLlama-7b-hf"})
    found = compare_runs([run], reported=PAPER)
    page = write_comparison(found, tmp_path / "out")
    words = Page(page).words
    assert "as reported" in words
    assert "75.28%" in words
    assert "~67.85%" in words
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    assert "| method | greedy | as reported |" in text
    assert re.search(r"\| SFT \| .* \| 63.68% \|$", text, re.MULTILINE)
    assert "reported ~67.85% ReFT" in " ".join(" ".join(printed(found, 80)).split())
    assert "As reported by the paper (Luong et al." in words


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE.replace("/", "")
    right = {"sft": [0, 1, 0], "reft": [1, 1, 0]}
    one = write_run(folder / "one", right)
    two = write_run(
        folder / HOSTILE.replace("/", ""), right, seed=2, prompt={"template": HOSTILE + "{question}"}
    )
    found = compare_runs([one, two])
    assert HOSTILE in found.groups[1].label
    page = Page(write_comparison(found, tmp_path / "out"))
    assert "img" not in [tag for tag, _ in page.tags]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "<img src=x onerror=alert(1)>" in page.text
    assert "{{ 7 * 7 }}" in page.text
    lines = (tmp_path / "out/comparison.md").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if "<img" in line and not line.startswith("    ")]
    assert not [line for line in lines if "[a](b)" in line and not line.startswith("    ")]
    assert HOSTILE in " ".join(printed(found, 400))


def test_a_comparison_lies_beside_its_runs() -> None:
    assert default_directory([Path("/a/runs/x"), Path("/a/runs/y")]) == Path("/a/runs/comparison")
    assert default_directory([Path("/a/runs/x"), Path("/a/old/x")]) == Path("/a/comparison")
    assert default_directory([Path("x")]) == Path("comparison")
    assert default_directory([Path("runs/x"), Path("runs/y/")]) == Path("runs/comparison")
    assert default_directory([Path("../x"), Path("/y")]) == Path("/comparison")


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr("sys.argv", ["reftune", "compare", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_the_command_writes_the_page_and_prints_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = {"sft": [0, 1, 0, 1], "reft": [1, 1, 0, 1]}
    samples = {model: [[1, 0]] * 4 for model in right}
    names = [
        str(write_run(tmp_path / f"run-{seed}", right, seed=seed, samples=samples)) for seed in (1, 2)
    ]
    out = ["--out", str(tmp_path / "out"), "--reported", str(PAPER)]
    assert run_cli(monkeypatch, *names, "--k", "1", *out) == 0
    shown = capsys.readouterr()
    assert "ReFT answers 75.0% of 4 unseen questions (mean of 2 seeds), SFT 50.0%" in " ".join(
        shown.out.split()
    )
    assert f"comparison: {tmp_path / 'out' / 'comparison.html'}" in shown.err
    assert "in place of" not in shown.err
    assert run_cli(monkeypatch, names[0], "--out", str(tmp_path / "out")) == 0
    assert "comparison.html, in place of the one that was there\n" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "comparison.csv",
        "comparison.html",
        "comparison.md",
        "comparison_files",
        "comparison_flips.jsonl",
    }


def test_the_command_refuses_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(write_run(tmp_path / "run", {"sft": [0, 1]}))
    other = str(write_run(tmp_path / "other", {"sft": [0, 1, 1]}, seed=2))
    assert run_cli(monkeypatch, run, other) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("reftune: error: ")
    assert "different questions" in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "comparison").exists()


def test_a_file_in_the_place_of_the_output_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(write_run(tmp_path / "run", {"sft": [0, 1]}))
    (tmp_path / "out").write_text("mine")
    assert run_cli(monkeypatch, run, "--out", str(tmp_path / "out")) == 2
    assert "give another --out" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_curves_of_groups_lie_over_each_other_with_the_names_of_their_runs(
    comparison: Comparison, runs: list[Path]
) -> None:
    plots = sample_plots(comparison.groups, comparison.curves)
    assert [plot.title for plot in plots] == ["Majority vote", "Reranking", "Weighted vote", "pass@k"]
    lines = plots[0].figure.axes[0].get_lines()
    names = ["ReFT, P-CoT (program-1, program-2)", "ReFT, N-CoT (natural-1, natural-2)"]
    assert [" ".join(str(lines[i].get_label()).split()) for i in (0, 2)] == names
    assert [line.get_linestyle() for line in lines] == ["-", "--"] * 2  # the baseline is dashed
    assert len({line.get_color() for line in lines}) == 2
    for group, line in zip(comparison.groups, lines[::2], strict=True):
        assert list(line.get_ydata()) == list(comparison.curves[group.label]["reft"]["vote"].values())


def test_how_runs_learned_is_drawn_together(tmp_path: Path) -> None:
    runs = []
    for seed, kl in ((1, 0.0), (2, 0.0), (1, 0.5)):
        right = {"sft": [0, 1, 1], "reft": [1, 1, seed % 2]}
        run = write_run(tmp_path / f"run-{kl}-{seed}", right, seed=seed, ppo={"kl_coef": kl})
        rows = [{"step": step, "reward": step / 10 + kl} for step in (1, 2, 3)]
        (run / "ppo").mkdir()
        (run / "ppo/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        runs.append(run)
    (plot,) = learning_plots(compare_runs(runs).groups)
    assert plot.title == "Reward"
    ax = plot.figure.axes[0]
    assert {line.get_ydata()[0] for line in ax.get_lines()} == {0.1, 0.6}
    assert [" ".join(text.get_text().split()) for text in ax.get_legend().get_texts()] == [
        "kl_coef = 0 (run-0.0-1, run-0.0-2)",
        "kl_coef = 0.5 (run-0.5-1)",
    ]
