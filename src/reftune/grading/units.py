"""The units beside a number: many spellings of one, and which of them contradict each other."""

import re

_UNITS = {
    "m": "m meter meters metre metres", "km": "km kilometer kilometers kilometre kilometres kms",
    "cm": "cm centimeter centimeters centimetre centimetres cms",
    "mm": "mm millimeter millimeters millimetre millimetres",
    "in": "inch inches", "ft": "ft foot feet", "yd": "yd yard yards", "mi": "mi mile miles",
    "g": "g gram grams", "kg": "kg kilogram kilograms kgs kilo kilos", "mg": "mg milligram milligrams",
    "lb": "lb lbs pound pounds", "oz": "oz ounce ounces", "t": "ton tons tonne tonnes",
    "s": "s sec secs second seconds", "min": "min mins minute minutes",
    "h": "h hr hrs hour hours", "d": "day days", "wk": "week weeks", "mo": "month months",
    "yr": "yr yrs year years", "l": "l liter liters litre litres",
    "ml": "ml milliliter milliliters millilitre millilitres", "gal": "gallon gallons",
    "$": "$ dollar dollars usd bucks", "€": "€ euro euros eur", "c": "cent cents ¢",
    "£": "£ gbp", "¥": "¥ yen jpy", "₹": "₹ rs rupee rupees inr",
    "°": "degree degrees deg", "rad": "radian radians",
    "profit": "profit gain", "loss": "loss", "increase": "increase increased",
    "decrease": "decrease decreased", "N": "north", "S": "south", "E": "east", "W": "west",
}  # fmt: skip
UNITS = {word: unit for unit, words in _UNITS.items() for word in words.split()}
_OPPOSITES = ({"profit", "loss"}, {"increase", "decrease"}, {"N", "S"}, {"E", "W"})
_NAMES = re.compile(r"[$€£¥₹]|(?<=0)\s*-?([A-Za-z]+|¢)")
_DIRECTION = re.compile(
    r"\b(?:profit|gain|loss|increased?|decreased?|north|south|east|west)\b", re.IGNORECASE
)


def units_of(text: str) -> frozenset[str]:
    """Return the units of a text whose number is written as 0: money before it, a word behind it."""
    names = [found[1] or found[0] for found in _NAMES.finditer(text)] + _DIRECTION.findall(text)
    return frozenset(UNITS[name.lower()] for name in names if name.lower() in UNITS)


def contradict(a: frozenset[str], b: frozenset[str]) -> bool:
    """Tell whether no quantity can be in both units; one without units is in any."""
    if any(pair <= a | b for pair in _OPPOSITES):
        return True
    directions = frozenset().union(*_OPPOSITES)
    return bool(a - directions and b - directions) and (a - directions).isdisjoint(b - directions)
