"""Where in a text that a model has written is its program?"""

import re
import textwrap

# A fence of ``` or ~~~, up to one of its own kind that begins or ends a line and is in no docstring.
_CODE = r"((?:\"{3}.*?\"{3}|'{3}.*?'{3}|.)*?)"
_FENCE = re.compile(
    rf"(?P<mark>```|~~~)[^\n`]{{0,100}}\n{_CODE}(?:^[ \t]*(?P=mark)|(?P=mark)[ \t]*$|\Z)",
    re.DOTALL | re.MULTILINE,
)
_BEFORE_FENCE = re.compile(rf"{_CODE}(?:^[ \t]*(?:```|~~~)|\Z)", re.DOTALL | re.MULTILINE)
_SOLUTION = re.compile(r"^[ \t]*def\s+solution\b", re.MULTILINE)
# How a line of a program may begin, rather than a sentence.
_CODE_LINE = re.compile(
    r"\s|\Z|[#@)\]}\"']|(?:import|from|def|class|if|elif|else|for|while|try|except|finally|with)\b"
    r"|[A-Za-z_][\w.\[\], ]{0,80}(?:[-+*/]?=|\()"
)


def extract_program(completion: str) -> str:
    """Return the last fenced block that defines `solution`, or the text that does where there is none.

    Where the prompt has opened the fence, the program ends at the one that closes it. Thoughts that end
    with `</think>` are left out, and so are sentences before a program without a fence.
    """
    said = completion.rpartition("</think>")[2]
    completion = said if _SOLUTION.search(said) else completion
    blocks = [block for _, block in _FENCE.findall(completion) if _SOLUTION.search(block)]
    if blocks:
        return textwrap.dedent(blocks[-1])
    before = _BEFORE_FENCE.match(completion)
    return _without_sentences(before[1] if before and _SOLUTION.search(before[1]) else completion)


def _without_sentences(text: str) -> str:
    """Return a text from behind the last line before `solution` that is none of a program."""
    found = _SOLUTION.search(text)
    if found is None:
        return text
    lines = text[: found.start()].splitlines(keepends=True)
    said = [number for number, line in enumerate(lines, start=1) if not _CODE_LINE.match(line)]
    return text[sum(map(len, lines[: said[-1]])) :] if said else text


def has_program(text: str) -> bool:
    """Tell whether a text defines `solution`."""
    return bool(_SOLUTION.search(text))
