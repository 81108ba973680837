"""What programs can use in the sandbox: docs/programs.md is run, the prelude is held against Python."""

from __future__ import annotations

import ast
import importlib
import itertools
import math
import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reftune.grading.rewriting import is_subtle, rewrite
from reftune.grading.rewriting.library import MODULES, exports, namespace
from reftune.grading.sandbox import Sandbox

PAGE = (Path(__file__).parents[1] / "docs" / "programs.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(.+?)`(?: \(.+\))? \| `(.+)` \|$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(workers=1, text=True) as sandbox:
        yield sandbox


def solution(row: str) -> str:
    """Return the program of a row: its last part, behind a semicolon, is the result."""
    *lines, last = row.split("; ")
    return "def solution():\n" + "".join(f"    {line}\n" for line in [*lines, f"return {last}"])


def python(program: str) -> Any:
    names: dict[str, Any] = {}
    limit = sys.getrecursionlimit()
    try:
        exec(program, names)
        return names["solution"]()
    finally:
        sys.setrecursionlimit(limit)  # some programs raise it: deep JSON would end the process then


def test_every_row_of_the_page_is_read() -> None:
    assert len(ROWS) == len([line for line in PAGE.splitlines() if line.startswith("| `")]) > 35


@pytest.mark.parametrize(("row", "result"), ROWS)
def test_the_page_says_what_a_program_can_use(box: Sandbox, row: str, result: str) -> None:
    (found,) = box.run([solution(row)])
    if result == "unsupported":
        assert found.status == "unsupported", found
    else:
        expected = ast.literal_eval(result)
        assert found.value == (expected if isinstance(expected, str) else pytest.approx(expected))


@pytest.mark.parametrize(("row", "result"), [row for row in ROWS if row[1] != "unsupported"])
def test_the_results_of_the_page_are_pythons(row: str, result: str) -> None:
    if "numpy" in row:
        pytest.skip("numpy may be missing here")
    found, expected = python(solution(row)), ast.literal_eval(result)
    assert found == expected if isinstance(expected, str) else float(found) == pytest.approx(expected)


# Programs of more than a line, as models write them; Python itself gives the expected value.
EVERYDAY = {
    "Dijkstra's distances": """
        import heapq
        graph = {"A": {"B": 1, "C": 4}, "B": {"C": 2, "D": 5}, "C": {"D": 1}, "D": {}}
        best, queue = {"A": 0}, [(0, "A")]
        while queue:
            far, at = heapq.heappop(queue)
            for to, step in graph[at].items():
                if far + step < best.get(to, 99):
                    best[to] = far + step
                    heapq.heappush(queue, (best[to], to))
        return best["D"]""",
    "a rational harmonic number": """
        from fractions import Fraction
        total = sum(Fraction(1, n) for n in range(1, 11))
        return total.numerator + total.denominator""",
    "a chain of comparisons, each side evaluated once": """
        from fractions import Fraction as F
        seen = []
        def half():
            seen.append(1)
            return F(1, 2)
        return (F(1, 3) < half() <= F(2, 3)) + 10 * len(seen)""",
    "a zero fraction is false": """
        from fractions import Fraction
        x = Fraction(0)
        return 1 if not x and (x or 0) == 0 else 2""",
    "the root of a fraction": """
        import math
        from fractions import Fraction
        return math.sqrt(Fraction(1, 4)) + math.floor(Fraction(7, 2))""",
    "money in decimals": """
        from decimal import Decimal, ROUND_HALF_UP
        price = Decimal("19.99") * 3
        return price + (price * Decimal("0.0825")).quantize(Decimal("0.01"), rounding=ROUND_HALF_UP)""",
    "times of a day": """
        from datetime import datetime, timedelta
        end = datetime.strptime("9:45 AM", "%I:%M %p") + timedelta(hours=2.5, minutes=10)
        return end.hour * 60 + end.minute + datetime.strptime("7pm", "%I%p").hour""",
    "dates by their names": """
        import datetime as dt
        a = dt.datetime.strptime("Jan 31, 2023", "%b %d, %Y")
        b = dt.datetime.strptime("2023/03/01 07:05:09", "%Y/%m/%d %H:%M:%S")
        return (b - a).total_seconds()""",
    "a time that is none": """
        from datetime import datetime
        try:
            datetime.strptime("25:00", "%H:%M")
        except ValueError as error:
            return len(str(error))""",
    "a generator that reads another": """
        squares = (i * i for i in range(10))
        evens = (s for s in squares if s % 2 == 0)
        first = next(evens)
        return first * 100 + sum(evens) + len(list(squares))""",
    "two loops in a generator": """
        return sum(next((a, b) for a in range(1, 50) for b in range(a, 50) if a * b == 391))""",
    "endless primes": """
        from itertools import count, islice
        primes = (n for n in count(2) if all(n % d for d in range(2, n)))
        return sum(islice(primes, 10)) + next(primes)""",
    "iterators are used up": """
        rows, lengths = zip(range(3), range(3, 6)), map(len, ["x", "yy"])
        return sum(a * b for a, b in rows) + len(list(rows)) + next(lengths) + 10 * sum(lengths)""",
    "methods as values": """
        out = []
        add = out.append
        for word in map(str.upper, "ab"): add(word)
        return "".join(out) + sorted(["Bob", "alice"], key=str.lower)[0]""",
    "a class with an order": """
        class P:
            def __init__(self, value): self.value = value
            def __lt__(self, other): return self.value < other.value
        ps = [P(3), P(1), P(2)]
        ps.sort()
        return ps[0].value * 100 + max(ps).value * 10 + sorted(ps, reverse=True)[1].value""",
    "a class with a length": """
        class Stack:
            def __init__(self): self.items = [1, 2, 3]
            def __len__(self): return len(self.items)
        stack, n = Stack(), 0
        while stack: n += stack.items.pop()
        return n * 10 + len(stack)""",
    "parts are removed": """
        d, xs, y = {"a": 1, "b": 2}, [1, 2, 3, 4, 5], 0
        del d["a"], xs[0], xs[-1], y
        del xs[::2]
        return len(d) * 10 + sum(xs)""",
    "means without an error of rounding": """
        import statistics
        try:
            statistics.mean([])
        except statistics.StatisticsError:
            n = int(statistics.harmonic_mean([40, 60])) + int(statistics.mean([0.1, 0.2, 0.3]) * 10)
        return n * 100 + int(10 * statistics.mean([2.2, 2.4, 2.6, 2.8, 1.5]))""",
    "parts of collections are removed": """
        from collections import Counter, deque
        queue, counts = deque([1, 2, 3, 4]), Counter("aab")
        del queue[1], queue[-1], counts["a"], counts["none"]
        return queue[0] * 100 + queue[1] * 10 + len(counts)""",
    "a class that sorts itself": """
        class Hand:
            def __init__(self, cards): self.cards = cards
            def __lt__(self, other): return self.cards < other.cards
            def sort(self): self.cards = sorted(self.cards)
        hand = Hand([3, 1])
        hand.sort()
        return hand.cards[0] + round(2.675, 2)""",
    "a comparison as a key": """
        from functools import cmp_to_key
        nums = ["3", "30", "34", "5", "9"]
        nums.sort(key=cmp_to_key(lambda a, b: (a + b < b + a) - (a + b > b + a)))
        return int("".join(nums))""",
    "a deep recursion is asked for": """
        import sys
        sys.setrecursionlimit(10**6)
        return (lambda f: f(f, 20))(lambda f, n: 1 if n <= 1 else n * f(f, n - 1))""",
    "annotations that are imported": """
        from collections.abc import Iterable
        def total(xs: Iterable[int]) -> Iterable: return sum(xs)
        return total([1, 2])""",
    "an old class": """
        class Old(object):
            count = 0
            def __init__(self): Old.count += 1
        Old(), Old()
        return Old.count""",
    "names of modules as variables": """
        statistics, string, operator = [1, 2], "abc", 4
        return len(statistics) + len(string) + operator""",
    "digits of a rounding on lines of their own": """
        total = 2.675
        return round(
            total,
            2
        ) + round (0.35, 1)""",
    "rounding as a value": """
        from functools import partial
        r = round
        return r(2.675, 2) + partial(round, ndigits=1)(0.35) + sum(map(round, [1.25, 0.5], [1, 0])) + (
            round(*[2.675, 2]))""",
    "a generator that a function gets or returns": """
        def twice(g): return sum(g) * 10 + sum(g)
        def make(): return (x for x in range(5))
        g=map(int, "123")
        parts = {"a": (
            x
            for x in range(4)
        ), "b": [zip([1], [2])][0]}
        return twice(x for x in range(4)) + twice(make()) + twice(g) + twice(parts["a"]) + (
            len(list(parts["b"])) * 10 + len(list(parts["b"])))""",
    "loops over what has no end": """
        from itertools import count
        for first in (n for n in count(2) if n % 7 == 0):
            if first > 30: break
        for i, x in enumerate(map(abs, count(5))):
            if i == 3: break
        square = next(y for y in map(lambda n: n * n, count()) if y > 50)
        return first + x + square + any(n * n > 50 for n in count())""",
    "a list takes a generator": """
        xs = [1]
        xs += (x for x in [2, 3])
        xs += map(abs, [-4])
        return sum(xs)""",
    "a search that stops early": """
        calls = []
        def found(x):
            calls.append(x)
            return x > 2
        return any(found(x) for x in range(9)) * 10 + len(calls) + all(found(x) for x in range(9))""",
    "groups with their numbers": """
        from itertools import groupby
        return sum(len(list(g)) * 10**i for i, (k, g) in enumerate(groupby("aabccc"), 1))""",
    "truth in values": """
        class A:
            def __init__(self, v): self.v = v
            def __bool__(self): return self.v > 0
        a, b = A(0), not A(0)
        found = [a or 5, (A(2) and 3) or 4, b + 0, any([a, A(-1)]) + 0, all([A(1), a]) + 0]
        found += [len(list(filter(None, [a, A(1)]))), sum(map(bool, [a, A(2)])), 1 if not a or 0 else 2]
        match a:
            case x if x: found.append(8)
            case _: found.append(9)
        return int("".join(map(str, found)))""",
    "an order inside of tuples and heaps": """
        import heapq
        from fractions import Fraction
        class Job:
            def __init__(self, cost): self.cost = cost
            def __lt__(self, other): return self.cost < other.cost
        plain, paired = [], []
        for cost in (3, 1, 2):
            heapq.heappush(plain, Job(cost))
            heapq.heappush(paired, (0, Job(cost)))
        best = max([(Fraction(1, 2), 5), (Fraction(2, 3), 6), (Fraction(2, 3), 4)])
        return heapq.heappop(plain).cost + heapq.heappop(paired)[1].cost * 10 + best[1] * 100""",
    "builtins that the program redefines": """
        import statistics
        global sum, len, sorted
        sum, len, sorted = 10, 20, 30
        return statistics.median([2, 4, 9]) + statistics.mean([2, 4]) + sum + len + sorted""",
    "a function named like a builtin": """
        def round(x, n): return 7
        def pow(a, b, c): return 8
        return round(2.675, 2) + pow(1, 2, 3)""",
}


@pytest.mark.parametrize("name", EVERYDAY)
def test_everyday_programs_end_as_in_python(box: Sandbox, name: str) -> None:
    program = "def solution():" + EVERYDAY[name].replace("\n        ", "\n    ") + "\n"
    (found,) = box.run([program])
    expected = python(program)
    if not isinstance(expected, str):
        expected = pytest.approx(float(expected))
    assert found.value == expected, found.message


# The prelude, run by Python itself and held against Python's modules


def made(name: str) -> Any:
    names: dict[str, Any] = {}
    exec(namespace(name), names)
    return names[f"_reftune_{name}"]


def test_the_prelude_has_no_name_of_its_own() -> None:
    for name in MODULES:
        real = importlib.import_module(name)
        assert [export for export in exports(name) if not hasattr(real, export)] == []


NUMBERS = random.Random(0)
SAMPLES = [
    [2, 4, 4, 4, 5, 5, 7, 9],
    [1.5, 2.25, 8.0],
    [3, 3],
    [NUMBERS.randint(1, 99) for _ in range(31)],
]
OF_SAMPLES = ["mean", "fmean", "geometric_mean", "harmonic_mean", "median", "median_low", "median_high"]
OF_SAMPLES += ["mode", "multimode", "variance", "pvariance", "stdev", "pstdev", "quantiles"]


@pytest.mark.parametrize("function", OF_SAMPLES)
@pytest.mark.parametrize("sample", SAMPLES)
def test_statistics_are_pythons(function: str, sample: list[float]) -> None:
    ours = getattr(made("statistics"), function)(sample)
    assert ours == pytest.approx(getattr(importlib.import_module("statistics"), function)(sample))


def test_a_heap_has_pythons_order() -> None:
    ours, real = made("heapq"), importlib.import_module("heapq")
    for seed in range(20):
        numbers = [random.Random(seed).randint(0, 9) for _ in range(seed)]
        heaps = [list(numbers), list(numbers)]
        for module, heap in zip((ours, real), heaps, strict=True):
            module.heapify(heap)
            for number in (5, -1, 12):
                module.heappush(heap, number)
            heap.append(module.heappop(heap) + module.heappushpop(heap, 4) + module.heapreplace(heap, 6))
        assert heaps[0] == heaps[1]
        assert ours.nlargest(3, numbers) == real.nlargest(3, numbers)


def test_fractions_are_pythons() -> None:
    ours, real = made("fractions").Fraction, importlib.import_module("fractions").Fraction
    values = [(1, 2), (-7, 3), (0, 5), (6, -4), ("0.125",), ("3/4",), (0.1,), (5,)]
    for a, b in itertools.product(values, values):
        for act in (
            lambda x, y: x + y, lambda x, y: x - y, lambda x, y: x * y, lambda x, y: x / y if y else 0,
            lambda x, y: x // y if y else 0, lambda x, y: x % y if y else 0, lambda x, y: x**2 - 3,
            lambda x, y: 2 * x + 0.5, lambda x, y: 1 - y, lambda x, y: int(x), lambda x, y: round(x),
            lambda x, y: round(x, 1), lambda x, y: math.ceil(x) + math.floor(y), lambda x, y: abs(x),
            lambda x, y: x.limit_denominator(10), lambda x, y: x < y, lambda x, y: x >= y,
            lambda x, y: x == y, lambda x, y: hash(x) == hash(y), lambda x, y: bool(x), lambda x, y: -x,
        ):  # fmt: skip
            mine, right = act(ours(*a), ours(*b)), act(real(*a), real(*b))
            assert str(mine) == str(right), (a, b)


def test_calendars_and_complex_numbers_are_pythons() -> None:
    ours, real = made("calendar"), importlib.import_module("calendar")
    for year, month in itertools.product((1900, 2000, 2023, 2024), range(1, 13)):
        assert ours.monthrange(year, month) == real.monthrange(year, month)
        assert ours.monthcalendar(year, month) == real.monthcalendar(year, month)
        assert ours.isleap(year) == real.isleap(year)
    ours, real = made("cmath"), importlib.import_module("cmath")
    for name, z in itertools.product(("sqrt", "exp", "log", "sin", "cos", "phase"), (2, -4, 3 - 4j, 1j)):
        assert getattr(ours, name)(z) == pytest.approx(getattr(real, name)(z))


def test_moments_are_read_as_by_python() -> None:
    from datetime import datetime

    read = made("dates").strptime
    for text, form in (
        ("2024-03-05 10:30", "%Y-%m-%d %H:%M"), ("5 Mar 2024", "%d %b %Y"), ("12 AM", "%I %p"),
        ("12:05pm", "%I:%M%p"), ("March 5, 24", "%B %d, %y"), ("03/05/70", "%m/%d/%y"), ("60", "%j"),
        ("Monday 7:00", "%A %H:%M"), ("1:02:03.5", "%H:%M:%S.%f"), ("100% 7", "100%% %H"),
    ):  # fmt: skip
        assert read(datetime, text, form) == datetime.strptime(text, form)
    for text, form in (("25:00", "%H:%M"), ("7", "%H:%M"), ("2023-02-30", "%Y-%m-%d")):
        with pytest.raises(ValueError, match=r"match|range"):
            read(datetime, text, form)


# What is left alone


@pytest.mark.parametrize(
    "program",
    [
        "def solution():\n    x = 3 + 4\n    return x",
        "import math\ndef solution():\n    return math.sqrt(sum(x * x for x in range(3)))",
        "import numpy as np\ndef solution():\n    return np.mean([1])",  # needed, and nobody has it
        "def solution(:",
        "def solution():\n    return 1\n\x00",
        "x = " + "-" * 20_000 + "1",
        "x = f" + "()" * 9_000,
        "(" * 9_000,
        "1" + "+1" * 9_000,
    ],
)
def test_other_programs_are_not_rewritten(program: str) -> None:
    assert not is_subtle(program) or " for " in program
    assert rewrite(program) is None


@pytest.mark.parametrize(
    "part",
    ["= (", "= (fo ", "round(", "round((", "x for ", "x\t for", "\nfor x", "map(", " ", "\n", "for in"],
)
def test_no_text_takes_long_to_look_at(part: str) -> None:
    program = "next" * (part == " ") + part * (20_000 // len(part))
    begun = time.process_time()
    is_subtle(program)
    assert time.process_time() - begun < 0.2


def test_a_rewritten_program_is_confined_like_any_other(box: Sandbox) -> None:
    head = "import statistics\nfrom fractions import Fraction\ndef solution():\n    "
    programs = [
        "return open('/etc/passwd').read()",
        "import os\n    return os.getenv('PATH')",
        "return len('a' * 10**10)",
        "raise SystemExit",
        "return _reftune_language.plain.__globals__",
        "return statistics.mean.__globals__['__builtins__']",
    ]
    found = box.run(
        [head + program + " or next(iter([1]))" * (program[0] == "r") for program in programs]
    )
    assert [r.status for r in found][:4] == ["blocked", "blocked", "memory", "exited"]
    assert not any(result.status in ("ok", "ok_text") for result in found)


def test_a_decimal_that_is_no_number_is_none(box: Sandbox) -> None:
    head = "from decimal import Decimal\ndef solution():\n    return "
    found = box.run(
        [head + f"Decimal('{text}')" for text in ("NaN", "Infinity", "12345678901234567891")]
    )
    assert [result.status for result in found] == ["non_finite", "non_finite", "ok"]
    assert found[2].value == 12345678901234567891
