"""Python's `fractions.Fraction` as a class that the interpreter knows to run."""

import decimal
import math


class Fraction:
    def __init__(self, numerator=0, denominator=None):
        top, bottom = _ratio(numerator)
        if denominator is not None:
            if type(numerator) is str or type(numerator) is float or type(denominator) is float:
                raise TypeError("both arguments should be Rational instances")
            low, high = _ratio(denominator)
            top, bottom = top * high, bottom * low
        if bottom == 0:
            raise ZeroDivisionError(f"Fraction({top}, 0)")
        common = math.gcd(top, bottom) * (1 if bottom > 0 else -1)
        self.numerator, self.denominator = top // common, bottom // common

    def as_integer_ratio(self):
        return self.numerator, self.denominator

    def is_integer(self):
        return self.denominator == 1

    def limit_denominator(self, max_denominator=1000000):
        if self.denominator <= max_denominator:
            return Fraction(self)
        p0, q0, p1, q1 = 0, 1, 1, 0
        n, d = self.numerator, self.denominator
        while q0 + n // d * q1 <= max_denominator:
            a = n // d
            p0, q0, p1, q1, n, d = p1, q1, p0 + a * p1, q0 + a * q1, d, n - a * d
        k = (max_denominator - q0) // q1
        if 2 * d * (q0 + k * q1) <= self.denominator:
            return Fraction(p1, q1)
        return Fraction(p0 + k * p1, q0 + k * q1)

    def __add__(self, other):
        return _apply(self, other, lambda a, b: a + b, lambda a, b, c, d: (a * d + c * b, b * d))

    def __radd__(self, other):
        return self + other

    def __sub__(self, other):
        return _apply(self, other, lambda a, b: a - b, lambda a, b, c, d: (a * d - c * b, b * d))

    def __rsub__(self, other):
        return -self + other

    def __mul__(self, other):
        return _apply(self, other, lambda a, b: a * b, lambda a, b, c, d: (a * c, b * d))

    def __rmul__(self, other):
        return self * other

    def __truediv__(self, other):
        return _apply(self, other, lambda a, b: a / b, lambda a, b, c, d: (a * d, b * c))

    def __rtruediv__(self, other):
        if type(other) is float:
            return other / float(self)
        return Fraction(other) / self

    def __floordiv__(self, other):
        return math.floor(self / other)

    def __rfloordiv__(self, other):
        return math.floor(other / self)

    def __mod__(self, other):
        return self - other * (self // other)

    def __rmod__(self, other):
        return other - self * (other // self)

    def __divmod__(self, other):
        return self // other, self % other

    def __pow__(self, power):
        power = power.numerator if type(power) is Fraction and power.denominator == 1 else power
        if type(power) is not int:
            return float(self) ** float(power)
        if power >= 0:
            return Fraction(self.numerator**power, self.denominator**power)
        return Fraction(self.denominator**-power, self.numerator**-power)

    def __rpow__(self, base):
        return base**self.numerator if self.denominator == 1 else float(base) ** float(self)

    def __neg__(self):
        return Fraction(-self.numerator, self.denominator)

    def __pos__(self):
        return Fraction(self)

    def __abs__(self):
        return Fraction(abs(self.numerator), self.denominator)

    def __float__(self):
        return self.numerator / self.denominator

    def __int__(self):
        return self.__trunc__()

    def __trunc__(self):
        return -(-self.numerator // self.denominator) if self.numerator < 0 else self.__floor__()

    def __floor__(self):
        return self.numerator // self.denominator

    def __ceil__(self):
        return -(-self.numerator // self.denominator)

    def __round__(self, ndigits=None):
        if ndigits is not None:
            shift = Fraction(10) ** ndigits
            return Fraction(round(self * shift)) / shift
        floor, rest = divmod(self.numerator, self.denominator)
        twice = 2 * rest - self.denominator
        return floor + (1 if twice > 0 or (twice == 0 and floor % 2) else 0)

    def __bool__(self):
        return self.numerator != 0

    def __eq__(self, other):
        return _is_number(other) and _difference(self, other) == 0

    def __lt__(self, other):
        return _difference(self, other) < 0

    def __le__(self, other):
        return _difference(self, other) <= 0

    def __gt__(self, other):
        return _difference(self, other) > 0

    def __ge__(self, other):
        return _difference(self, other) >= 0

    def __hash__(self):
        exact = Fraction(float(self)) == self
        return hash(float(self)) if exact else hash((self.numerator, self.denominator))

    def __str__(self):
        if self.denominator == 1:
            return str(self.numerator)
        return f"{self.numerator}/{self.denominator}"

    def __repr__(self):
        return f"Fraction({self.numerator}, {self.denominator})"


def _is_number(value):
    return type(value) in (int, bool, float, Fraction)


def _ratio(value):
    if type(value) is Fraction:
        return value.numerator, value.denominator
    if type(value) in (int, bool):
        return int(value), 1
    if type(value) is float:
        value = decimal.Decimal(value)
    if type(value) is decimal.Decimal:
        return value.as_integer_ratio()
    if type(value) is str:
        top, slash, bottom = value.strip().partition("/")
        if slash:
            return int(top), int(bottom)
        return decimal.Decimal(top).as_integer_ratio()
    raise TypeError("argument should be a string or a Rational instance")


def _apply(self, other, of_floats, of_ratios):
    if type(other) is float:
        return of_floats(float(self), other)
    if not _is_number(other):
        raise TypeError(f"unsupported operand type(s): 'Fraction' and '{type(other).__name__}'")
    top, bottom = _ratio(other)
    return Fraction(*of_ratios(self.numerator, self.denominator, top, bottom))


def _difference(self, other):
    if type(other) is float and (other != other or other in (math.inf, -math.inf)):
        return float(self) - other
    return (self - Fraction(other)).numerator
