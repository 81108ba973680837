"""What the interpreter leaves out of `datetime`; `rewriting/expressions.py` writes the calls."""

import datetime
import re


def delta(owner, *arguments, **keywords):
    """Call `timedelta`, whose amounts may be floats."""
    if owner is not datetime.timedelta:
        return owner(*arguments, **keywords)
    amounts = dict(zip(_UNITS, arguments))  # noqa: B905
    amounts.update(keywords)
    microseconds = sum([amount * _UNITS[unit] for unit, amount in amounts.items()])
    return datetime.timedelta(microseconds=round(microseconds))


_UNITS = {"days": 86_400_000_000, "seconds": 1_000_000, "microseconds": 1, "milliseconds": 1000}
_UNITS |= {"minutes": 60_000_000, "hours": 3_600_000_000, "weeks": 604_800_000_000}


def times(a, b):
    """Return `a * b`, where one may be a timedelta and the other a float."""
    if type(a) is float and type(b) is datetime.timedelta:
        a, b = b, a
    if type(a) is datetime.timedelta and type(b) is float:
        return datetime.timedelta(microseconds=round(_microseconds(a) * b))
    return a * b


def divided(a, b):
    if type(a) is datetime.timedelta and type(b) is float:
        return datetime.timedelta(microseconds=round(_microseconds(a) / b))
    return a / b


def _microseconds(span):
    return (span.days * 86400 + span.seconds) * 1_000_000 + span.microseconds


_MONTHS = "january february march april may june july august september october november december"
_DAYS = "monday tuesday wednesday thursday friday saturday sunday"
_FIELDS = {
    "Y": r"\d{4}", "y": r"\d\d", "m": r"1[0-2]|0?[1-9]", "d": r"3[01]|[12]\d|0?[1-9]", "j": r"\d{1,3}",
    "H": r"2[0-3]|[01]?\d", "I": r"1[0-2]|0?[1-9]", "M": r"[0-5]?\d", "S": r"6[01]|[0-5]?\d",
    "f": r"\d{1,6}", "p": "am|pm", "A": _DAYS.replace(" ", "|"), "B": _MONTHS.replace(" ", "|"),
    "a": "|".join([day[:3] for day in _DAYS.split()]),
    "b": "|".join([month[:3] for month in _MONTHS.split()]),
}  # fmt: skip


def strptime(owner, text, form):
    """Call `datetime.strptime`, whose format may leave anything out."""
    if owner is not datetime.datetime or re.search(r"%[^YymdjHIMSfpABab%]", form):
        return owner.strptime(text, form)
    names, pattern = [], ""
    for piece in re.findall(r"%.|\s+|[^%\s]", form):
        if piece[0] == "%" and piece != "%%":
            names.append(piece[1])
            pattern += f"({_FIELDS[piece[1]]})"
        else:
            pattern += r"\s+" if piece.isspace() else re.escape(piece.replace("%%", "%"))
    found = re.fullmatch(pattern, text, re.IGNORECASE)
    if found is None:
        raise ValueError(f"time data '{text}' does not match format '{form}'")
    return _moment(dict(zip(names, found.groups(), strict=True)))


def _moment(parts):
    year = int(parts.get("Y", 1900))
    if "y" in parts:
        year = int(parts["y"]) + (2000 if int(parts["y"]) < 69 else 1900)
    names = [month[:3] for month in _MONTHS.split()]
    word = parts.get("B", parts.get("b"))
    month = int(parts.get("m", 1)) if word is None else names.index(word[:3].lower()) + 1
    hour = int(parts.get("H", 0))
    if "I" in parts:
        hour = int(parts["I"]) % 12 + (12 if parts.get("p", "").lower() == "pm" else 0)
    rest = [int(parts.get("M", 0)), int(parts.get("S", 0)), int(parts.get("f", "0").ljust(6, "0"))]
    moment = datetime.datetime(year, month, int(parts.get("d", 1)), hour, *rest)
    return moment + datetime.timedelta(days=int(parts["j"]) - 1) if "j" in parts else moment
