"""A run's page in a real browser: Debian's Chromium, or whatever Chromium is installed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reftune.reporting.run.report import write_live_page, write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium is installed: apt-get install chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api")

Page = Any  # playwright's has types of its own, which nobody needs who has no Chromium
HOSTILE = (
    '</script><img src=x onerror="document.title=\'broken\'"><script>document.title="broken"</script>'
)
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
]
LIGHT_PAGE, DARK_PAGE = "rgb(251, 251, 249)", "rgb(18, 22, 27)"
SHARE = {"accuracy": 0.5, "interval": [0.4, 0.6], "correct": 30}
QUESTIONS = 90


def put(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def answer(i: int, model: str) -> dict[str, Any]:
    """SFT is right where i is even, ReFT where 3 does not divide it; question 5 is hostile."""
    right = i % 2 == 0 if model == "sft" else i % 3 != 0
    text = HOSTILE if i == 5 else f"so {model} adds {i} apples"
    drawn = [(7.0, right)] * 3 + [(8.0, False)]
    samples: list[dict[str, Any]] = [
        {"completion": f"{text} {value}", "status": "ok", "value": value, "correct": one}
        for value, one in drawn
    ]
    samples.append({"completion": "hm", "status": "timeout", "value": None, "correct": False})
    status = "timeout" if i == 7 else "ok"
    return {
        "id": f"q {i}", "question": f"How many, {i}?", "answer": "7", "completion": text,
        "status": status, "value": None if i == 7 else 7.0, "correct": right,
        "prompt": f"<s>Question: How many, {i}?\n", "samples": samples,
    }  # fmt: skip


def write_run(run: Path) -> Path:
    run.mkdir()
    (run / "config.toml").write_text('name = "trial"\n[data]\ncot = "natural"\n')
    models = ("sft", "reft")
    for model in models:
        put(run / f"evaluation/{model}.jsonl", [answer(i, model) for i in range(QUESTIONS)])
    result = {"n": QUESTIONS, "models": {m: {"greedy": SHARE} for m in models}, "comparisons": []}
    (run / "evaluation/result.json").write_text(json.dumps(result))
    steps = [{"step": s, "kl": s / 8, "reward": 0.5, "accuracy": 0.25} for s in range(1, 9)]
    put(run / "ppo/metrics.jsonl", steps)
    tokens = {"tokens": ["so ", HOSTILE, "</s>"], "advantages": [0.5, -0.25, 0.125]}
    tokens |= {"logprobs": [-0.1, -0.2, -0.3], "log_ratios": [0.5, -0.5, 0.0]}
    sample = answer(1, "reft") | {"completion": f"so {HOSTILE}", "reward": 1.0, "step": 1} | tokens
    put(run / "ppo/samples.jsonl", [sample, sample | {"correct": False}, sample | {"step": 2}])
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_run(tmp_path_factory.mktemp("browser") / "run")
    write_report(directory)
    return directory


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, run: Path) -> Iterator[Any]:
    contexts = []

    def open_(link: str = "", width: int = 1280, scheme: str = "light") -> Page:
        size = {"width": width, "height": 800}
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: pytest.fail(str(error)))
        page.goto(f"file://{run}/report.html{link}")
        page.wait_for_selector("body[data-ready]")
        if "#q=" in link:  # what is folded is filled a moment after it has opened
            page.wait_for_selector("details.item[open] .card")
        return page

    yield open_
    for context in contexts:
        context.close()


def shown(page: Page) -> list[str]:
    found: list[str] = page.eval_on_selector_all(
        "details.item", "rows => rows.map(row => row.dataset.id)"
    )
    return found


def choose(page: Page, name: str, value: str) -> None:
    page.select_option(f"#questions select[name='{name}']", value)


def ids(*numbers: int) -> list[str]:
    return [f"q {number}" for number in numbers]


def test_all_questions_can_be_reached(open_page: Any) -> None:
    page = open_page()
    assert shown(page) == ids(*range(40))
    page.click("#more")
    page.click("#more")
    assert shown(page) == ids(*range(QUESTIONS))
    assert page.is_hidden("#more")


def test_filters_say_who_is_right_how_it_ended_and_what_is_written(open_page: Any) -> None:
    page = open_page()
    choose(page, "of-sft", "right")
    choose(page, "of-reft", "wrong")
    assert shown(page) == ids(*range(0, QUESTIONS, 6))
    assert page.inner_text("#found") == f"15 of {QUESTIONS} questions"
    choose(page, "of-sft", "")
    page.fill("[type=search]", "REFT ADDS 3")
    assert shown(page) == ids(3, 30, 33, 36, 39)  # of those that ReFT gets wrong
    page.fill("[type=search]", "")
    choose(page, "of-reft", "")
    choose(page, "status", "timeout")
    assert shown(page) == ids(7)
    choose(page, "status", "")
    page.check("input[value=gained]", force=True)
    assert shown(page)[:4] == ids(1, 5, 7, 11)


def test_questions_are_sorted(open_page: Any) -> None:
    page = open_page()
    choose(page, "order", "hard")
    assert shown(page)[:4] == ids(3, 9, 15, 21)  # none is right, in the order of the data
    choose(page, "order", "long")
    assert shown(page)[0] == "q 5"
    choose(page, "order", "data")
    assert shown(page)[:2] == ids(0, 1)


def test_a_link_opens_its_question_wherever_it_stands(open_page: Any) -> None:
    page = open_page("#q=q%2077")
    assert page.is_visible("details.item[open] .card")
    assert page.get_attribute("details.item[open]", "data-id") == "q 77"
    box = page.locator("details.item[open]").bounding_box()
    assert 0 <= box["y"] < 800  # it is in sight
    choose(page, "of-sft", "right")
    page.evaluate("location.hash = '#q=q%201'")  # which this filter hides
    page.wait_for_selector("details.item[data-id='q 1'][open] .card")
    page.click("details.item[data-id='q 4'] summary")
    page.wait_for_function("location.hash === '#q=q%204'")


def test_a_question_shows_prompt_marked_chains_and_votes(open_page: Any) -> None:
    page = open_page("#q=q%204")
    card = page.locator("details.item[open] .card")
    card.get_by_text("Prompt as the models got it").click()
    playwright.expect(card.locator("details pre").first).to_have_text("<s>Question: How many, 4?")
    assert card.locator("mark").all_inner_texts() == ["sft", "reft"]
    reft = card.locator(".model-reft")
    assert "3 of 5 samples right" in reft.inner_text()
    votes = [" ".join(vote.split()) for vote in reft.locator("details.vote").all_inner_texts()]
    assert votes == ["7 3 ✓ chosen", "8 1 ✗", "timeout 1 ✗"]
    assert [mark.strip() for mark in reft.locator(".outcomes span").all_inner_texts()] == [
        "✓ greedy", "✓ vote",
    ]  # fmt: skip
    reft.locator("details.vote summary").first.click()
    playwright.expect(reft).to_contain_text("so reft adds 4 apples 7.0")
    playwright.expect(reft).to_contain_text("3 times")


def test_what_a_model_writes_is_text_and_never_runs(open_page: Any) -> None:
    page = open_page("#q=q%205")
    assert HOSTILE in page.inner_text("details.item[open] .model-reft pre")
    page.click("details.item[open] .model-reft details.vote summary")
    assert HOSTILE in page.inner_text("#rollout-list")
    assert page.locator("img").count() == 0
    assert page.title() == "trial · reftune"


def test_values_are_told_under_the_pointer(open_page: Any) -> None:
    page = open_page()
    figure = page.locator("figure", has_text="KL divergence")
    figure.scroll_into_view_if_needed()
    box = figure.locator("svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 3, box["y"] + box["height"] / 2)
    assert figure.locator(".tip").inner_text() == "step 8\nReFT 1"
    tip = figure.locator(".tip").bounding_box()
    assert tip["x"] + tip["width"] <= box["x"] + box["width"] + 1
    page.mouse.move(0, 0)
    assert figure.locator(".tip").is_hidden()


def test_tokens_have_the_colour_and_the_numbers_of_the_chosen_measure(open_page: Any) -> None:
    page = open_page()
    first = page.locator("#rollout-list .chain").first
    assert "reward 1.0, advantage +0.125" in first.inner_text()  # of +0.5, -0.25 and +0.125
    colours = "tokens => tokens.map(token => getComputedStyle(token).backgroundColor)"
    ratio = first.locator(".token").evaluate_all(colours)
    assert len(set(ratio)) == 3  # above 0, below, and none
    page.select_option("#rollouts select", "advantages")
    assert first.locator(".token").evaluate_all(colours) != ratio
    first.locator(".token").first.hover()
    told = '"so ": log-ratio to the reference +0.5, advantage +0.5, log-probability -0.1'
    assert first.locator(".told").inner_text() == told
    assert page.locator("#rollout-list article").count() == 1  # both samples are of one question
    assert "1 of 2 right" in page.inner_text("#rollout-list article")
    page.fill("#rollouts [type=range]", "1")
    assert page.inner_text("#rollouts output") == "step 2"
    assert page.locator("#rollout-list .chain").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_follows_the_readers_theme(open_page: Any, scheme: str) -> None:
    page = open_page("#q=q%204", 390, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": LIGHT_PAGE, "dark": DARK_PAGE}[scheme]
    sizes = page.eval_on_selector_all(
        "figure svg text", "texts => texts.map(t => t.getBoundingClientRect().height)"
    )
    assert min(size for size in sizes if size) >= 9.5  # pixels from the top of a letter to its foot
    chains = page.locator("details.item[open] .chain").all()
    first, second = (chain.bounding_box() for chain in chains)
    assert second["y"] > first["y"]  # beneath each other


def test_a_page_of_a_run_that_goes_on_loads_itself_anew_and_a_finished_one_does_not(
    browser: Any, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "live")
    assert not write_live_page(run, 1)
    page = browser.new_page()
    page.goto(f"file://{run}/report.html")
    assert "renewed every 1 s" in page.inner_text(".eyebrow")
    page.evaluate("document.title = 'the same page'")
    page.wait_for_function("document.title !== 'the same page'", timeout=15000)
    write_report(run)
    page.wait_for_function("!document.body.dataset.reload", timeout=15000)
    page.evaluate("document.title = 'the same page'")
    page.wait_for_timeout(1500)
    assert page.title() == "the same page"
    page.close()
