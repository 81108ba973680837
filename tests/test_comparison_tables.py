from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reftune.config.files import parse_config
from reftune.reporting.comparison.compare import Cell, Comparison, Difference
from reftune.reporting.comparison.finished_runs import FinishedRun, RunGroup
from reftune.reporting.comparison.reported import Number
from reftune.reporting.comparison.tables import (
    CSV_COLUMNS,
    accuracy_sections,
    columns,
    csv_rows,
    difference_sections,
    headline,
    notes,
    sentences,
)

RUN = FinishedRun(Path("runs/a"), parse_config({"model": {"scratch": "tiny"}}, [], "a"), {})


def cell(method: str, accuracy: float, group: str = "", **values: Any) -> Cell:
    bounds = (accuracy - 0.03, accuracy + 0.03)
    found = Cell(
        group, "program", method, "greedy", 1, 1000, 1, accuracy, bounds, accuracy, accuracy
    )  # fmt: skip
    return replace(found, **values)


def difference(base: str, method: str, group: str = "", **values: Any) -> Difference:
    found = Difference(
        group, method, group, base, "greedy", 1, 1000, 1, 1, 0.247, (0.215, 0.279), 1e-5, 2e-5
    )
    return replace(found, **values)


def comparison(cells: list[Cell], differences: list[Difference], **values: Any) -> Comparison:
    labels = dict.fromkeys(cell.group for cell in cells)
    aggregations = list(dict.fromkeys(cell.aggregation for cell in cells))
    groups = [RunGroup(label, [RUN], {}) for label in labels]
    found = Comparison(groups, cells, differences, {}, 1000, 8, [8], aggregations, 0)
    return replace(found, **values)


NUMBER = Number(
    model="m", data="d", chains="program", method="reft", aggregation="vote", samples=8, accuracy=78
)
ONE = comparison(
    [cell("sft", 0.634), cell("reft", 0.881), cell("reft", 0.9, aggregation="vote", samples=8)],
    [difference("sft", "reft")],
)
TWO = comparison(
    [
        cell(method, share, group)
        for group in ("P-CoT", "N-CoT")
        for method, share in (("sft", 0.6), ("reft", 0.7))
    ],
    [
        difference("sft", "reft", "P-CoT"),
        difference("sft", "reft", "N-CoT", difference=-0.031),
        difference("reft", "reft", "N-CoT", base_group="P-CoT"),
    ],
)


@pytest.mark.parametrize(
    ("p", "interval", "clear"),
    [
        (0.049, (0.1, 0.2), True), (0.049, (-0.2, -0.1), True), (0.05, (0.1, 0.2), False),
        (0.001, (-0.01, 0.2), False), (0.001, (0.0, 0.2), False),  # seeds scatter: no claim
    ],
)  # fmt: skip
def test_bold_is_what_both_the_p_value_and_the_interval_say(
    p: float, interval: tuple[float, float], clear: bool
) -> None:
    assert difference("sft", "reft", p_holm=p, interval=interval).clear is clear


def test_what_the_sandbox_failed_on_is_told() -> None:
    assert not any("sandbox" in text for text in notes(ONE))
    assert any(text.startswith("3 questions are left out") for text in notes(replace(ONE, unjudged=3)))


def test_the_headline_of_one_group_is_its_sentence() -> None:
    expected = (
        "ReFT answers 88.1% of 1000 unseen questions (one seed), SFT 63.4%: +24.7 points, 95% interval"
        " [21.5, 27.9], corrected p = 2.0e-5."
    )
    assert headline(ONE) == expected
    assert sentences(ONE) == [expected]


def test_the_headline_of_several_groups_gathers_their_gains() -> None:
    assert headline(TWO) == "ReFT against SFT: +24.7 points (P-CoT), \N{MINUS SIGN}3.1 points (N-CoT)."
    assert [text.partition(":")[0] for text in sentences(TWO)] == ["P-CoT", "N-CoT"]


def test_without_reft_the_last_method_is_the_news_and_without_any_there_is_none() -> None:
    cells = [cell("sft", 0.6), cell("offline_st", 0.65), cell("online_st", 0.7)]
    rows = [difference("sft", "offline_st"), difference("sft", "online_st")]
    assert headline(comparison(cells, rows)).startswith("Online-ST answers 70.0% of 1000")
    assert headline(comparison(cells[:1], [])) == "Accuracy on 1000 unseen questions."


def test_seeds_are_counted_where_there_are_several() -> None:
    cells = [cell("sft", 0.6, seeds=3), cell("reft", 0.7, seeds=3), cell("online_st", 0.65, seeds=1)]
    found = comparison(cells, [difference("sft", "reft", seeds=3)])
    found = replace(found, groups=[replace(found.groups[0], runs=[RUN] * 3)])
    assert "1000 unseen questions (mean of 3 seeds)" in headline(found)
    assert [row.label for row in accuracy_sections(found)[""]] == [
        "SFT",
        "ReFT",
        "Online-ST (1 of 3 seeds)",
    ]
    labelled = replace(found, groups=[replace(found.groups[0], label="P-CoT")])
    assert list(accuracy_sections(labelled)) == ["P-CoT, 3 seeds"]


def test_tables_have_a_column_per_aggregation_and_gaps_where_nothing_is() -> None:
    assert list(columns(ONE)) == ["greedy", "vote of 8"]
    ((title, rows),) = accuracy_sections(ONE).items()
    assert title == ""
    assert [(row.label, row.method) for row in rows] == [("SFT", "sft"), ("ReFT", "reft")]
    assert [[c and c.accuracy for c in row.cells] for row in rows] == [
        [0.634, None],
        [0.881, 0.9],
    ]


def test_differences_stand_within_groups_then_between_them() -> None:
    sections = difference_sections(TWO)
    assert [(title, [row.label for row in rows]) for title, rows in sections.items()] == [
        ("P-CoT", ["ReFT against SFT"]),
        ("N-CoT", ["ReFT against SFT"]),
        ("N-CoT against P-CoT", ["ReFT"]),
    ]


def test_reported_numbers_have_a_column_only_where_there_are_any() -> None:
    assert list(columns(ONE).values()) == [False, False]
    cells = [*ONE.cells[:2], replace(ONE.cells[2], reported=NUMBER)]
    found = replace(ONE, cells=cells, source="somebody")
    assert columns(found) == {"greedy": False, "vote of 8": True}
    assert "As reported by somebody; ~ read second-hand." in notes(found)
    assert not any("As reported" in text for text in notes(ONE))


def test_the_notes_say_how_many_comparisons_and_what_they_leave_open() -> None:
    text = " ".join(notes(TWO))
    assert "Holm's method for all 3 comparisons" in text
    assert "One seed: this model, not this method." in text
    assert "McNemar" in text
    assert "Several seeds" not in text
    several = replace(TWO, cells=[replace(c, seeds=3) for c in TWO.cells])
    assert "They speak of the method." in " ".join(notes(several))
    assert "McNemar" not in " ".join(notes(several))
    assert "Holm" not in " ".join(notes(replace(ONE, differences=[])))


def test_the_notes_say_which_samples_were_used() -> None:
    fewer = replace(ONE, drawn=[4, 8], samples=4)
    assert "The runs drew 4 and 8 samples per question: the first 4 of each are used." in notes(fewer)
    assert notes(replace(ONE, drawn=[0, 8], samples=0))[-1].endswith("greedy only.")
    assert "Of 8 samples per question the first 2." in notes(replace(ONE, samples=2))
    assert not any("samples" in text for text in notes(ONE))


def test_a_difference_of_one_seed_among_several_is_marked() -> None:
    cells = [cell("sft", 0.6, seeds=3), cell("online_st", 0.65), cell("reft", 0.7, seeds=3)]
    rows = [difference("sft", "reft", seeds=3, base_seeds=3), difference("sft", "online_st")]
    labels = [row.label for row in difference_sections(comparison(cells, rows))[""]]
    assert labels == ["ReFT against SFT", "Online-ST against SFT (one seed)"]
    mixed = difference("online_st", "reft", seeds=3)
    (row,) = difference_sections(comparison(cells, [mixed]))[""]
    assert row.label == "ReFT against Online-ST (one seed of Online-ST)"
    assert [row.label for row in difference_sections(ONE)[""]] == ["ReFT against SFT"]  # all are
    assert [row.scope for row in rows] == ["", "one seed: this model, not this method"]
    half = difference("sft", "reft", seeds=3, base_seeds=1)
    assert half.scope == "one seed of SFT: this model, not this method"


def test_rows_of_the_csv_have_all_columns() -> None:
    rows = list(csv_rows(TWO))
    assert [row["quantity"] for row in rows] == ["accuracy"] * 4 + ["difference"] * 3
    assert all(tuple(row) == CSV_COLUMNS for row in rows)
    assert (rows[0]["group"], rows[0]["method"], rows[0]["value"]) == ("P-CoT", "sft", 0.6)
    last = rows[-1]
    assert (last["base_group"], last["group"], last["p"], last["p_holm"]) == (
        "P-CoT",
        "N-CoT",
        1e-5,
        2e-5,
    )
    assert (last["low"], last["high"], last["as_reported"]) == (0.215, 0.279, None)
    assert last["chains"] == "program"
    assert last["scope"] == rows[0]["scope"] == "one seed: this model, not this method"


def test_a_row_of_the_csv_tells_its_seeds_and_what_others_report() -> None:
    one = replace(ONE.cells[2], lowest=0.85, highest=0.95, reported=NUMBER)
    row = next(csv_rows(replace(ONE, cells=[one])))
    assert (row["chains"], row["lowest_seed"], row["highest_seed"]) == ("program", 0.85, 0.95)
    assert (row["as_reported"], row["second_hand"]) == (0.78, False)
