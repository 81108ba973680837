"""The part of Python's `cmath` that answers need."""

import math

pi, e, tau, inf, nan = math.pi, math.e, math.tau, math.inf, math.nan


def phase(z):
    return math.atan2(complex(z).imag, complex(z).real)


def polar(z):
    return abs(complex(z)), phase(z)


def rect(r, phi):
    return complex(r * math.cos(phi), r * math.sin(phi))


def sqrt(z):
    z = complex(z)
    if z == 0:
        return complex(0, z.imag)
    half = math.sqrt((abs(z.real) + abs(z)) / 2)
    other = abs(z.imag) / (2 * half)
    if z.real >= 0:
        return complex(half, math.copysign(other, z.imag))
    return complex(other, math.copysign(half, z.imag))


def exp(z):
    z = complex(z)
    return rect(math.exp(z.real), z.imag)


def log(z, base=None):
    z = complex(math.log(abs(complex(z))), phase(z))
    return z if base is None else z / log(base)


def cos(z):
    z = complex(z)
    return complex(math.cos(z.real) * math.cosh(z.imag), -math.sin(z.real) * math.sinh(z.imag))


def sin(z):
    z = complex(z)
    return complex(math.sin(z.real) * math.cosh(z.imag), math.cos(z.real) * math.sinh(z.imag))


def isclose(a, b, rel_tol=1e-09, abs_tol=0.0):
    return abs(a - b) <= max(rel_tol * max(abs(a), abs(b)), abs_tol)
