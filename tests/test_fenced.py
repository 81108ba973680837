"""Programs in what instruct models write."""

import time

import pytest

from reftune.config import Reward
from reftune.grading.fenced import extract_program
from reftune.grading.judge import make_extractor, make_judge
from reftune.grading.sandbox import Sandbox
from reftune.problem import Problem

BODY = "def solution():\n    clips = 48\n    return clips + 24\n"
HELPER = f"PRICE = 3\n\ndef half(x):\n    return x // 2\n\n{BODY}"

WRONG = "```python\ndef solution():\n    return 1\n```\n"

# Each returns 72.
WRITTEN = {
    "a fence alone": f"```python\n{BODY}```",
    "SmolLM2's": f"Here's a Python function:\n\n```python\n{BODY}```\n\nIt adds both months.",
    "py": f"```py\n{BODY}```",
    "no language": f"```\n{BODY}```",
    "capital": f"```Python\n{BODY}```",
    "a list's": "1. The code:\n\n   ```python\n   def solution():\n       return 72\n   ```\n2. Done",
    "its output behind it": f"```python\n{BODY}```\n\nOutput:\n```\n72\n```",
    "printed": f"```python\n{BODY}\nprint(solution())\n```",
    "called in a second fence": f"```python\n{BODY}```\nUse it:\n```python\nprint(solution())\n```",
    "mended": f"{WRONG}Wait, that is wrong.\n```python\n{BODY}```",
    "a docstring": '```python\ndef solution():\n    """It.\n\n    ```\n    """\n    return 72\n```',
    "annotated": "```python\ndef solution() -> int:\n    return 72\n```",
    "imports": f"```python\nimport math\n\n{BODY}```",
    "helpers": f"```python\n{HELPER}```",
    "cut off": f"Sure!\n```python\n{BODY}",
    "thoughts": f"<think>\n{WRONG}</think>\n\n{BODY}",
    "only thoughts": f"<think>I write\n```python\n{BODY}```\n</think>\nSo 72.",
    "no fence": BODY,
    "no fence, a sentence before": f"Sure! Here is the function:\n\n{BODY}",
    "no fence, imports": f"Here it is.\nimport math\n\n{BODY}",
    "no fence, helpers": HELPER,
    "a fence that the prompt has opened": f"{BODY}```\nThis adds both months.",
}


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox(1, 2.0, Reward().sandbox_memory_mb, text=True)


def test_a_fenced_program_is_found_in_what_models_write(sandbox: Sandbox) -> None:
    judge = make_judge("program", trigger="", partial_reward=0.1, sandbox=sandbox, answer_style="fenced")
    problems = [Problem(name, "How many?", "72") for name in WRITTEN]
    verdicts = judge(problems, list(WRITTEN.values()), [True] * len(WRITTEN))
    assert {p.id: v.status for p, v in zip(problems, verdicts, strict=True) if not v.correct} == {}


def test_what_holds_no_program_earns_nothing(sandbox: Sandbox) -> None:
    judge = make_extractor("program", trigger="", sandbox=sandbox, answer_style="fenced")
    texts = ["The answer is 72.", "```python\n72\n```", "```python\ndef solve():\n    return 72\n```"]
    asked = [Problem(str(n), "How many?", "72") for n in range(len(texts))]
    verdicts = judge(asked, texts, [True] * len(texts))
    assert [(v.status, v.answer) for v in verdicts] == [("no_solution", None)] * len(texts)


def test_without_the_style_a_fence_is_no_program(sandbox: Sandbox) -> None:
    judge = make_judge("program", trigger="", partial_reward=0.1, sandbox=sandbox)
    [verdict] = judge([Problem("1", "", "72")], [WRITTEN["a fence alone"]], [True])
    assert verdict.status == "syntax_error"


def test_sentences_before_a_program_are_left_out_and_its_own_lines_are_not() -> None:
    assert extract_program(f"Sure! Here it is:\n{HELPER}") == HELPER
    assert extract_program(f"x = 1\n# why\n@cache\n{BODY}") == f"x = 1\n# why\n@cache\n{BODY}"


def test_no_text_takes_long_to_search() -> None:
    begun = time.process_time()
    for text in ("word " * 20_000, "a.b, " * 20_000, "x = 1\n" * 20_000, "</think>" * 10_000):
        extract_program(f"{text}\n{BODY}")
    assert time.process_time() - begun < 2.0
