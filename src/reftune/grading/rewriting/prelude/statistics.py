"""The part of Python's `statistics` that answers need, for exact and for inexact numbers."""

import decimal
import math

StatisticsError = ValueError  # of which Python's is a kind


def _values(data, least=1):
    values = list(data)
    if len(values) < least:
        raise ValueError(f"at least {least} data points are needed")
    return values


def _ratio(total, count):
    if type(total) is int and total % count == 0:
        return total // count
    return total / count


def _sum(values):
    if any(type(value) is float for value in values):
        return math.fsum(values)
    return sum(values)


def _exact(values):
    """Return top and bottom of a sum that no rounding of floats has touched."""
    top, bottom = 0, 1
    for value in values:
        n, d = (value, 1) if type(value) is int else decimal.Decimal(value).as_integer_ratio()
        common = math.gcd(bottom, d)
        top, bottom = top * (d // common) + n * (bottom // common), bottom * (d // common)
    return top, bottom


def _is_float(values):
    return any(type(value) is float for value in values) and math.isfinite(math.fsum(values))


def mean(data):
    values = _values(data)
    if _is_float(values):
        top, bottom = _exact(values)
        return top / (bottom * len(values))
    return _ratio(_sum(values), len(values))


def fmean(data, weights=None):
    values = [float(value) for value in _values(data)]
    if weights is None:
        return math.fsum(values) / len(values)
    weights = [float(weight) for weight in weights]
    return math.fsum([v * w for v, w in zip(values, weights, strict=True)]) / math.fsum(weights)


def geometric_mean(data):
    values = _values(data)
    return math.exp(math.fsum([math.log(value) for value in values]) / len(values))


def harmonic_mean(data, weights=None):
    values = _values(data)
    weights = [1] * len(values) if weights is None else list(weights)
    if 0 in values:
        return 0
    parts = [w / v for v, w in zip(values, weights, strict=True)]
    if _is_float(parts) and type(sum(weights)) is int:
        top, bottom = _exact(parts)
        return sum(weights) * bottom / top
    return sum(weights) / sum(parts)


def median(data):
    values = sorted(_values(data))
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2


def median_low(data):
    values = sorted(_values(data))
    return values[(len(values) - 1) // 2]


def median_high(data):
    values = sorted(_values(data))
    return values[len(values) // 2]


def multimode(data):
    counts = {}
    for value in data:
        counts[value] = counts.get(value, 0) + 1
    most = max(counts.values(), default=0)
    return [value for value, count in counts.items() if count == most]


def mode(data):
    return multimode(_values(data))[0]


def _squares(values, centre):
    middle = _sum(values) / len(values) if centre is None else centre
    if type(middle) is float and middle == int(middle):
        middle = int(middle)
    return _sum([(value - middle) ** 2 for value in values])


def variance(data, xbar=None):
    values = _values(data, 2)
    return _ratio(_squares(values, xbar), len(values) - 1)


def pvariance(data, mu=None):
    values = _values(data)
    return _ratio(_squares(values, mu), len(values))


def stdev(data, xbar=None):
    return math.sqrt(variance(data, xbar))


def pstdev(data, mu=None):
    return math.sqrt(pvariance(data, mu))


def quantiles(data, n=4, method="exclusive"):
    values = sorted(_values(data, 2))
    span = len(values) + 1 if method == "exclusive" else len(values) - 1
    cuts = []
    for i in range(1, n):
        j = i * span // n
        if method == "exclusive":
            j = min(max(j, 1), len(values) - 1)
            delta = i * span - j * n
            low, high = values[j - 1], values[j]
        else:
            delta = i * span - j * n
            low, high = values[j], values[j + 1]
        cuts.append((low * (n - delta) + high * delta) / n)
    return cuts


def covariance(x, y):
    x, y = _values(x, 2), _values(y, 2)
    middle_x, middle_y = fmean(x), fmean(y)
    products = [(a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)]
    return math.fsum(products) / (len(x) - 1)


def correlation(x, y):
    return covariance(x, y) / (stdev(x) * stdev(y))
