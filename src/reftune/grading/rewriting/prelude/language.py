"""What the interpreter leaves out of the language; `rewriting/expressions.py` writes the calls."""

import collections
import decimal
import re

_TYPES = (str, list, dict, set, frozenset, tuple, int, float, bool, bytes)


def method(owner, name, call):
    """Return a method as a value: `d.get`, or `str.lower`, which takes the object first."""
    if owner in _TYPES:
        return call
    if type(owner) in _TYPES or not hasattr(owner, name):
        return lambda *arguments, **keywords: call(owner, *arguments, **keywords)
    return getattr(owner, name)


def remove(owner, key):
    """Carry out `del owner[key]`."""
    if type(key) is slice:
        gone = list(range(len(owner)))[key]
        owner[:] = [item for place, item in enumerate(owner) if place not in gone]
    elif hasattr(owner, "__delitem__"):
        owner.__delitem__(key)
    elif type(owner) is collections.deque:
        items = list(owner)
        items.pop(key)
        owner.clear()
        owner.extend(items)
    elif type(owner) is not collections.Counter or key in owner:  # which misses none
        owner.pop(key)


def power(base, exponent, modulus):
    """Return `pow` of three numbers, of which the second may be negative."""
    if exponent >= 0:
        return pow(base, exponent, modulus)
    a, b, x, y = base % modulus, modulus, 1, 0
    while b:
        a, b, x, y = b, a % b, y, x - a // b * y
    if abs(a) != 1:
        raise ValueError("base is not invertible for the given modulus")
    return pow(x * a % modulus, -exponent, modulus)


def rounded(number, ndigits=None):
    """Round as Python does: of a float all digits count."""
    if type(number) is float and type(ndigits) is int and 0 <= ndigits < 20 and abs(number) < 1e15:
        return float(f"{number:.{ndigits}f}")
    return round(number) if ndigits is None else round(number, ndigits)


# Iterators: the interpreter makes lists of generator expressions, map, filter, zip and their like.


class _Iterator:
    def __init__(self, source, step):
        self.source, self.step, self.ready = iter(source), step, []

    def __iter__(self):
        return self

    def __next__(self):
        while not self.ready:
            self.ready = self.step(next(self.source))
        return self.ready.pop(0)


def lazy(source, step):
    """Return an iterator over what `step` makes of each item: a list of none or more."""
    return _Iterator(source, step)


def mapped(function, source, *more):
    if more:
        return _Iterator(zip(source, *more, strict=False), lambda items: [function(*items)])
    return _Iterator(source, lambda item: [function(item)])


def filtered(function, source):
    keep = truth if function in (None, bool) else function
    return _Iterator(source, lambda item: [item] if keep(item) else [])


def numbered(source, start=0):
    count = [start - 1]

    def step(item):
        count[0] += 1
        return [(count[0], item)]

    return _Iterator(source, step)


# Classes of the program: the interpreter does not ask them about order, length and truth.


def less(a, b):
    """Return `a < b`."""
    return _compared(a, b, "__lt__", "__gt__", lambda a, b: a < b)


def at_most(a, b):
    """Return `a <= b`."""
    return _compared(a, b, "__le__", "__ge__", lambda a, b: a <= b)


def _compared(a, b, name, mirrored, native):
    if hasattr(a, name) and type(a) not in _TYPES:
        return getattr(a, name)(b)
    if hasattr(b, mirrored) and type(b) not in _TYPES:
        return getattr(b, mirrored)(a)
    if type(a) in (tuple, list) and type(a) is type(b):
        for x, y in zip(a, b):  # noqa: B905
            if x != y:
                return _compared(x, y, name, mirrored, native)
        return native(len(a), len(b))
    return native(a, b)


def length(owner):
    return owner.__len__() if hasattr(owner, "__len__") else len(owner)


def truth(value):
    for name in ("__bool__", "__len__"):
        if hasattr(value, name):
            return bool(getattr(value, name)())
    return bool(value)


def either(value, other):
    """Return `value or other()`."""
    return value if truth(value) else other()


def both(value, other):
    return other() if truth(value) else value


def some(items):
    for item in items:  # noqa: SIM110
        if truth(item):
            return True
    return False


def every(items):
    for item in items:  # noqa: SIM110
        if not truth(item):
            return False
    return True


def ordered(items, key=None, reverse=False):
    """Return `sorted` by `less`, merging halves; equal items stay in their order."""
    items = list(items)
    if len(items) < 2:
        return items
    half = len(items) // 2
    left, right = ordered(items[:half], key, reverse), ordered(items[half:], key, reverse)
    merged, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        a, b = left[i], right[j]
        a, b = (a, b) if key is None else (key(a), key(b))
        if less(a, b) if reverse else less(b, a):
            merged.append(right[j])
            j += 1
        else:
            merged.append(left[i])
            i += 1
    return merged + left[i:] + right[j:]


def smallest(*items, **options):
    return _extreme(items, options, min, False)


def largest(*items, **options):
    return _extreme(items, options, max, True)


def _extreme(items, options, native, reverse):
    values = list(items[0] if len(items) == 1 else items)
    if not values:
        return native(values, **options)
    return ordered(values, options.get("key"), reverse)[0]


# Methods that the built-in types lack; `f(x, ...)` stands for `x.f(...)`.


def bit_length(x):
    return len(bin(abs(x))) - 2 if type(x) is int and x else 0 if type(x) is int else x.bit_length()


def bit_count(x):
    return bin(x).count("1") if type(x) is int else x.bit_count()


def is_integer(x):
    if type(x) is float:
        return x - x == 0 and x == int(x)
    return True if type(x) is int else x.is_integer()


def as_integer_ratio(x):
    if type(x) is not float:
        return (x, 1) if type(x) is int else x.as_integer_ratio()
    bottom = 1
    while x != int(x):
        x, bottom = x * 2, bottom * 2
    return int(x), bottom


def sub(owner, *arguments, **keywords):
    """Call `re.sub` or a pattern's, of which the replacement may be a function."""
    of_module = type(owner) is type(re) and hasattr(owner, "Pattern")
    if not of_module and type(owner) is not re.Pattern:
        return owner.sub(*arguments, **keywords)
    function = arguments[1] if of_module else arguments[0]
    if type(function) is str or keywords or len(arguments) != 2 + of_module:
        return owner.sub(*arguments, **keywords)
    if of_module:
        owner = re.compile(arguments[0])
    text = arguments[-1]
    pieces, end = [], 0
    for found in owner.finditer(text):
        pieces += [text[end : found.start()], function(found)]
        end = found.end()
    return "".join(pieces) + text[end:]


# Answers


def plain(answer):
    """Return a Decimal or Fraction as the number that it is."""
    if type(answer) is decimal.Decimal and not answer.is_finite():
        return float(answer)
    if type(answer) is decimal.Decimal or hasattr(answer, "limit_denominator"):
        return int(answer) if answer == int(answer) else float(answer)
    return answer


# Parts of modules that the interpreter has but in part

OrderedDict = dict


def wraps(wrapped):
    return lambda function: function


def cmp_to_key(compare):
    """Return a key whose values `ordered` compares."""

    class Key:
        def __init__(self, value):
            self.value = value

        def __lt__(self, other):
            return compare(self.value, other.value) < 0

    return lambda value: Key(value)


def sort(owner, **options):
    if type(owner) is not list:
        return owner.sort(**options)
    owner[:] = ordered(owner, **options)
    return None
