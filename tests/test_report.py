from __future__ import annotations

import base64
import gzip
import io
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from reftune.problem import UserError
from reftune.reporting.run.report import final_table, write_report

HOSTILE = '</script><img src=x onerror="alert(1)"><!-- <b>`|*\n# heading\u2028\ud800 & {{ 7 * 7 }}'

CONFIG = """
name = "trial"
[data]
cot = "program"
[sft]
epochs = 4
[ppo]
steps = 3
kl_coef = 0.05
"""

GREEDY = {
    "warmup": {"correct": 650, "accuracy": 0.65, "interval": [0.6199, 0.6789]},
    "sft": {"correct": 710, "accuracy": 0.71, "interval": [0.6811, 0.7373]},
    "reft": {"correct": 841, "accuracy": 0.841, "interval": [0.817, 0.8624]},
}

SAMPLE = {"id": "t1", "question": "How many?", "answer": "4", "completion": "return 4"}
SAMPLE |= {"status": "ok", "value": 4.0, "correct": True}


class Page(HTMLParser):
    """The tags of a page with their attributes, and the content of its JSON script."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.json = "", ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        last = self.tags[-1] if self.tags else None
        if last == ("script", {"type": "application/gzip", "id": "data"}) and not self.json:
            self.json = gzip.decompress(base64.b64decode(data)).decode()
        elif last and last[0] not in ("style", "script"):
            self.text += data + " "

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps(row) + "\n" for row in value] if isinstance(value, list) else [json.dumps(value)]
    path.write_text("".join(rows), encoding="utf-8")


def comparison(**values: Any) -> dict[str, Any]:
    row = {
        "a": "sft",
        "b": "reft",
        "aggregation": "greedy",
        "difference": 0.131,
        "interval": [0.109, 0.153],
    }
    return row | {"mcnemar_p": 1.24e-9} | values


def result(*comparisons: dict[str, Any]) -> dict[str, Any]:
    models: dict[str, Any] = {key: {"greedy": greedy} for key, greedy in GREEDY.items()}
    models["reft"]["vote"] = {"k": 8, "correct": 880, "accuracy": 0.88, "interval": [0.8584, 0.8987]}
    models["reft"]["pass"] = {"1": 0.8, "8": 0.95}
    return {"n": 1000, "models": models, "comparisons": list(comparisons)}


def start_run(directory: Path) -> Path:
    directory.mkdir()
    (directory / "config.toml").write_text(CONFIG, encoding="utf-8")
    put(
        directory / "run.json",
        {"command": "reftune run trial.toml", "seed": 42, "versions": {"torch": "2"}},
    )
    return directory


def finish_run(directory: Path, text: str = "return 4") -> Path:
    start_run(directory)
    put(
        directory / "data/report.json", {"train": 1500, "validation": 200, "test": 1000, "duplicates": 3}
    )
    validation = {"validation_accuracy": 0.6}
    put(
        directory / "sft/metrics.jsonl",
        [{"step": s, "epoch": s, "loss": 1 / s} | validation for s in (1, 2)],
    )
    put(directory / "sft/result.json", {"best_epoch": 2, "best_validation_accuracy": 0.715})
    judged = SAMPLE | {"question": f"How many? {text}", "completion": text}
    step = {"reward": 0.7, "accuracy": 0.6, "kl": 0.1, "statuses": {"ok": 3, "timeout": 1}}
    put(directory / "ppo/metrics.jsonl", [step | {"step": s} for s in (1, 2, 3)])
    put(directory / "ppo/samples.jsonl", [judged | {"step": 2, "reward": 1.0}])
    put(directory / "ppo/result.json", {"best_step": 3, "best_validation_accuracy": 0.845})
    put(directory / "evaluation/sft.jsonl", [judged | {"value": text, "status": text, "correct": False}])
    put(directory / "evaluation/reft.jsonl", [judged])
    put(directory / "evaluation/result.json", result(comparison()))
    return directory


def test_a_finished_run_says_its_result_in_one_sentence(tmp_path: Path) -> None:
    path = write_report(finish_run(tmp_path / "run"))
    headline = (
        "ReFT answers 84.1% of 1000 unseen questions, SFT 71.0%: +13.1 points, "
        "95% interval [10.9, 15.3], McNemar p = 1.2e-9."
    )
    page = Page(path)
    assert path == tmp_path / "run/report.html"
    assert headline in page.words
    assert "this ReFT model is better than this SFT model" in page.words
    assert "Still missing" not in page.words
    markdown = path.with_suffix(".md").read_text(encoding="utf-8")
    assert f"**{headline}**" in markdown
    assert "| ReFT | 84.1% [81.7, 86.2] | 88.0% [85.8, 89.9] | 80.0% | 95.0% |" in markdown
    assert "| SFT | 71.0% [68.1, 73.7] |  |  |  |" in markdown
    assert "| ReFT against SFT | greedy | +13.1 | [10.9, 15.3] | p = 1.2e-9 |" in markdown


def test_the_page_shows_tables_curves_settings_and_samples(tmp_path: Path) -> None:
    page = Page(write_report(finish_run(tmp_path / "run")))
    for words in (
        "greedy vote of 8 pass@1 pass@8",
        "ReFT 84.1% [81.7, 86.2] 88.0% [85.8, 89.9] 80.0% 95.0%",
        "SFT done best epoch 2: 71.5% on validation",
        "training questions 1500",
        "KL coefficient 0.05",
        "torch 2",
        "ReFT right, SFT wrong 1 of 1",
    ):
        assert words in page.words
    assert "Rerankers" not in page.words  # nor any other title without figures
    assert (
        sum(tag == "svg" for tag, _ in page.tags) == 6
    )  # pass@k, loss, 2 x accuracy or reward, KL, statuses
    data = json.loads(page.json)
    assert data["questions"][0]["chains"]["reft"]["text"] == "return 4"
    assert data["rollouts"][0]["steps"][0]["samples"][0]["status"] == "ok"


def test_the_pages_show_which_start_was_chosen_and_what_there_was(tmp_path: Path) -> None:
    run = finish_run(tmp_path / "run")
    shares = {"validation_accuracy": 0.405, "pass_at_1": 0.192, "mixed": 0.785}
    rows = [shares | {"epoch": epoch, "pass_at_k": epoch / 10} for epoch in (6, 8)]
    chosen = {"warmup_epoch": 8, "warmup_validation_accuracy": 0.405, "warmup_k": 16, "starts": rows}
    put(run / "sft/result.json", {"best_epoch": 2, "best_validation_accuracy": 0.715} | chosen)
    path = write_report(run)
    words = "epoch of SFT greedy pass@1 pass@16 right and wrong 6 40.5% 19.2% 60.0% 78.5% 8 40.5% 19.2%"
    assert f"{words} 80.0% 78.5% chosen" in Page(path).words
    lines = path.with_suffix(".md").read_text(encoding="utf-8").splitlines()
    first = lines.index("| 6 | 40.5% | 19.2% | 60.0% | 78.5% |  |")
    assert lines[first - 2] == "| epoch of SFT | greedy | pass@1 | pass@16 | right and wrong | |"
    assert lines[first + 1] == "| 8 | 40.5% | 19.2% | 80.0% | 78.5% | **chosen** |"
    put(run / "sft/result.json", {"best_epoch": 2, "best_validation_accuracy": 0.715, "starts": [{}]})
    with pytest.raises(UserError, match=r"result.json: starts"):
        write_report(run)


def test_only_stages_beside_the_baseline_are_drawn_with_its_level(tmp_path: Path) -> None:
    run = finish_run(tmp_path / "run")
    put(run / "ppo/metrics.jsonl", [{"step": 1, "validation_accuracy": 0.8}])
    page = write_report(run).read_text(encoding="utf-8")
    assert page.count("SFT, best epoch 71.5%") == 1
    sft, _, ppo = page.partition("Reinforced fine-tuning (PPO)</h2>")
    assert "SFT, best epoch" in ppo
    assert "SFT, best epoch" not in sft


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    run = finish_run(tmp_path / "run", HOSTILE)
    put(run / "run.json", {"command": HOSTILE, "seed": HOSTILE, "git_commit": HOSTILE})
    path = write_report(run)
    page = Page(path)
    tags = [tag for tag, _ in page.tags]
    assert "img" not in tags
    assert "b" in tags  # our own
    assert tags.count("script") == 3  # the data, jsdiff, our own
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    chains = json.loads(page.json)["questions"][0]["chains"]
    assert chains["reft"]["text"] == HOSTILE
    assert chains["sft"] == {"text": HOSTILE, "status": HOSTILE, "value": HOSTILE, "correct": False}
    assert (
        json.loads(page.json)["rollouts"][0]["steps"][0]["samples"][0]["question"]
        == f"How many? {HOSTILE}"
    )
    assert '<img src=x onerror="alert(1)">' in page.text  # the command, as text
    assert "{{ 7 * 7 }}" in page.text


def test_hostile_text_in_markdown_stays_in_code_blocks(tmp_path: Path) -> None:
    path = write_report(finish_run(tmp_path / "run", HOSTILE)).with_suffix(".md")
    lines = path.read_text(encoding="utf-8").splitlines()
    hostile = [line for line in lines if "onerror" in line or "heading" in line]
    assert len(hostile) >= 6
    assert all(line.startswith("    ") for line in hostile)


def test_the_page_needs_no_other_file_and_no_network(tmp_path: Path) -> None:
    path = write_report(finish_run(tmp_path / "run"))
    page = Page(path)
    links = [
        v
        for _, attributes in page.tags
        for k, v in attributes.items()
        if k in ("src", "href", "xlink:href")
    ]
    assert all(link is not None and link.startswith("#") for link in links)
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe", "object", "base")]
    text = path.read_text(encoding="utf-8")
    assert "@import" not in text
    assert set(re.findall(r"https?://[\w.]+", text)) == {"http://www.w3.org"}  # names of XML dialects
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", text))


def test_markdown_shows_the_pictures_beside_it(tmp_path: Path) -> None:
    run = finish_run(tmp_path / "run")
    markdown = write_report(run).with_suffix(".md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", markdown)
    assert len(pictures) == 6
    assert all((run / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_a_run_that_has_just_begun_lists_what_is_missing(tmp_path: Path) -> None:
    page = Page(write_report(start_run(tmp_path / "run")))
    assert "This run has not been evaluated yet." in page.words
    assert "Still missing: Data, SFT, ReFT, Evaluation." in page.words
    assert "goes on from there: reftune run trial.toml" in page.words
    assert "Accuracy on" not in page.words
    assert json.loads(page.json)["questions"] == []


def test_a_run_cut_off_in_ppo_shows_what_there_is(tmp_path: Path) -> None:
    run = finish_run(tmp_path / "run")
    for name in (
        "ppo/result.json",
        "evaluation/result.json",
        "evaluation/sft.jsonl",
        "evaluation/reft.jsonl",
    ):
        (run / name).unlink()
    with (run / "ppo/metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')
    path = write_report(run)
    page = Page(path)
    assert "Still missing: ReFT (step 3 of 3), Evaluation." in page.words
    assert "ppo/metrics.jsonl: 1 of 4 lines cannot be read and are left out." in page.words
    assert sum(tag == "svg" for tag, _ in page.tags) == 5
    assert "- ReFT: unfinished (step 3 of 3)" in path.with_suffix(".md").read_text(encoding="utf-8")


def test_right_answers_with_a_wrong_chain_are_shown(tmp_path: Path) -> None:
    run = finish_run(tmp_path / "run")
    plain = write_report(run)
    assert "wrong chain" not in Page(plain).words
    assert "wrong chain" not in plain.with_suffix(".md").read_text(encoding="utf-8")
    found = result(comparison())
    found["models"]["reft"]["right_answer_wrong_chain"] = {
        "wrong": 87,
        "checked": 840,
        "unchecked": 1,
        "share": 87 / 840,
        "interval": [0.0848, 0.126],
    }
    put(run / "evaluation/result.json", found)
    page = write_report(run)
    assert "ReFT 10.4% [8.5, 12.6] 87 of 840 1 Every sentence" in Page(page).words
    markdown = page.with_suffix(".md").read_text(encoding="utf-8")
    assert "| ReFT | 10.4% [8.5, 12.6] | 87 of 840 | 1 |\n" in markdown
    assert "| model | greedy | vote of 8 | pass@1 | pass@8 |" in markdown  # it is no accuracy


def test_an_unfinished_epoch_is_shown_with_one_decimal(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run")
    put(run / "sft/metrics.jsonl", [{"step": 5, "epoch": 5 / 3, "loss": 1.0}])
    put(run / "ppo/metrics.jsonl", [{"step": 2, "reward": 0.5}])
    words = Page(write_report(run)).words
    assert "SFT unfinished epoch 1.7 of 4" in words
    assert "ReFT unfinished step 2 of 3" in words


def test_the_headline_below_the_table_has_the_consoles_width(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(final_table(finish_run(tmp_path / "run")))
    assert isinstance(console.file, io.StringIO)
    *_, headline, verdict, wrapped = (line.rstrip() for line in console.file.getvalue().splitlines())
    assert headline == (
        "ReFT answers 84.1% of 1000 unseen questions, SFT 71.0%: +13.1 points, "
        "95% interval [10.9, 15.3], McNemar p = 1.2e-9."
    )
    assert f"{verdict} {wrapped}" == (
        "The interval excludes 0: on such questions this ReFT model is better than this SFT model. "
        "One seed: this model, not this method; reftune compare pools several."
    )


def test_final_table(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=160)
    console.print(final_table(finish_run(tmp_path / "run")))
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert re.search(r"model\s*┃\s*greedy\s*┃\s*vote of 8", printed)
    assert re.search(r"SFT\s*│ 71\.0% \[68\.1, 73\.7\] │\s*│", printed)
    assert re.search(r"ReFT\s*│ 84\.1% \[81\.7, 86\.2\] │ 88\.0% \[85\.8, 89\.9\]", printed)
    assert "+13.1 points" in " ".join(printed.split())


def with_all_methods(run: Path) -> Path:
    """Turn a finished run into one of five models and four aggregations."""
    config = 'methods = ["offline_st", "online_st", "reft"]\n[evaluation]\nrerank = true\n'
    (run / "config.toml").write_text(config, encoding="utf-8")
    put(run / "online_st/samples.jsonl", [{"step": 1, **SAMPLE}])
    cell = GREEDY["reft"]
    sampled = {name: cell | {"k": 100} for name in ("vote", "rerank", "weighted vote")}
    sampled["rerank"] = sampled["rerank"] | {"within_question_auc": 0.612}
    curves = {"vote": {"1": 0.5, "2": 0.6}}
    model = {"greedy": cell, **sampled, "curves": curves, "pass": {str(2**i): 0.9 for i in range(7)}}
    model["something_new"] = {"share": 0.1, "interval": [0.05, 0.15]}
    names = ("warmup", "sft", "offline_st", "online_st", "reft")
    rows = [
        comparison(a=a, b=b, aggregation=aggregation)
        for a, b in itertools.combinations(names, 2)
        for aggregation in ("greedy", "vote", "rerank", "weighted vote")
    ]
    models = dict.fromkeys(names, model)
    put(run / "evaluation/result.json", {"n": 1000, "models": models, "comparisons": rows})
    return run


@pytest.mark.parametrize("width", [80, 120])
def test_many_aggregations_fit_into_the_terminal_with_the_interval_below(
    tmp_path: Path, width: int
) -> None:
    console = Console(file=io.StringIO(), width=width)
    console.print(final_table(with_all_methods(finish_run(tmp_path / "run"))))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    first, second = (line.split("│") for line in lines[4:6])
    assert [cell.strip() for cell in first[1:-1]] == ["Warm-up", *["84.1%"] * 4]
    assert [cell.strip() for cell in second[1:-1]] == ["", *["[81.7, 86.2]"] * 4]
    words = 2 + 2 if width == 80 else 1 + 2  # headline and verdict
    assert len(lines) == 4 + 5 * 2 + 1 + words  # head, models, foot


def test_a_page_of_all_methods_shows_their_sections_and_samples(tmp_path: Path) -> None:
    run = with_all_methods(finish_run(tmp_path / "run"))
    path = write_report(run)
    page = Page(path)
    assert "Majority vote" in page.words
    assert "pass@1 pass@64 Warm-up" in page.words  # the rest is a curve
    assert "puts the right one first in 61.2% (Warm-up), 61.2% (SFT)," in page.words
    assert "Still missing: Warm-up samples, Offline-ST, Online-ST, Rerankers." in page.words
    assert [method["stage"] for method in json.loads(page.json)["rollouts"]] == ["ReFT", "Online-ST"]
    inputs = [attributes for tag, attributes in page.tags if tag == "input"]
    assert [i["value"] for i in inputs if i.get("name") == "stage"] == ["0", "1"]
    assert (run / "report_files/accuracy_vote.png").exists()
    assert "report_files/accuracy_vote.png" in path.with_suffix(".md").read_text(encoding="utf-8")


def test_final_table_needs_an_evaluation(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not evaluated yet; finish the run"):
        final_table(start_run(tmp_path / "run"))


def test_what_is_no_run_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run directory"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not a run directory"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
