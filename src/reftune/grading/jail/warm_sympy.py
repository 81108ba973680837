"""Let sympy load what it loads late, while it still can: by doing what programs do with it."""

import importlib
import sys
from contextlib import suppress

# What some functions import when they are called, beside what the statements below bring.
_LATE = """
abc assumptions.facts assumptions.handlers.calculus assumptions.handlers.common
assumptions.handlers.matrices assumptions.handlers.ntheory assumptions.handlers.order
assumptions.handlers.sets assumptions.lra_satask assumptions.predicates.matrices
assumptions.predicates.sets assumptions.satask assumptions.wrapper combinatorics combinatorics.galois
concrete.delta discrete.recurrences geometry integrals.heurisch integrals.manualintegrate
integrals.risch logic.algorithms.dpll logic.algorithms.dpll2 logic.algorithms.lra_theory
matrices.expressions.applyfunc parsing.sympy_parser physics.units polys.dispersion
polys.distributedmodules polys.domains.old_fractionfield polys.domains.old_polynomialring
polys.domains.quotientring polys.numberfields.resolvent_lookup sets.handlers.add sets.handlers.functions
sets.handlers.issubset sets.handlers.mul sets.handlers.power sets.setexpr solvers.diophantine stats
tensor.array.array_derivatives utilities.lambdify vector
"""

# Each by itself: what one version of sympy has not, it does without.
_STATEMENTS = """
solve(x**2 - 2, x), solve([x + y - 3, x - y - 1], [x, y]), solve(x**3 - x - 1, x), solve(sin(x) - 1, x)
solve(x**2 > 4, x), solve(Abs(Symbol('r', real=True) - 1) - 2), solve(2**x - 8, x), solve(log(x) - 1, x)
solve(sqrt(x) - 2), solveset(x**2 - 1, x, S.Reals), solveset(sin(x), x)
linsolve([x + y - 2, x - y], x, y), nonlinsolve([x**2 + y**2 - 5, x*y - 2], [x, y])
nsolve(cos(x) - x, x, 1), reduce_inequalities([x > 1]), roots(x**3 - 6*x**2 + 11*x - 6)
real_roots(x**5 - x - 1), nroots(x**4 - 2), Poly(x**2 + 1).all_roots(), integrate(x**2*exp(x)*sin(x), x)
integrate(exp(-x**2), (x, -oo, oo)), integrate(1/(x**4 + 1), (x, 0, 1)), integrate(sqrt(1 - x**2), x)
integrate(log(x)/x, (x, 1, 2)), diff(sin(x)**x, x), limit(sin(x)/x, x, 0), limit((1 + 1/n)**n, n, oo)
series(cos(x), x, 0, 6), summation(k**2, (k, 1, n)), Sum(1/k**2, (k, 1, oo)).doit()
product(k, (k, 1, n)), Product(k, (k, 1, 5)).doit(), Integral(x, (x, 0, 1)).evalf()
Derivative(x**2, x).doit(), simplify(sin(x)**2 + cos(x)**2), expand((x + y)**5), factor(x**4 - 1)
cancel((x**2 - 1)/(x - 1)), trigsimp(sin(2*x)), apart(1/(x**2 - 1)), together(1/x + 1/y)
collect(x*y + x, x), nsimplify(0.333333, rational=True), radsimp(1/sqrt(2))
Matrix([[1, 2], [3, 4]]).inv(), Matrix([[2, 1], [1, 2]]).eigenvects(), Matrix([[1, 2], [3, 4]]).det()
eye(2).rref(), Matrix([[1, 2], [3, 4]]).LUsolve(Matrix([1, 2])), Matrix([[2, 0], [0, 3]]).diagonalize()
Matrix([[1, 2]]).norm(), dsolve(Function('f')(x).diff(x) - Function('f')(x))
rsolve(Function('a')(n) - 2*Function('a')(n - 1), Function('a')(n)), diophantine(3*x + 5*y - 1)
factorint(360), isprime(97), nextprime(10), primepi(100), totient(36), divisors(12), mod_inverse(3, 7)
gcd(12, 18), lcm(4, 6), gcdex(x**2 - 1, x - 1), binomial(5, 2), factorial(6), fibonacci(10), bell(4)
catalan(3), N(pi, 50), sqrt(2).evalf(), Rational(1, 3) + Rational('0.5'), nan, zoo, S('1/3')
sympify('x**2 + 1'), Float('1.5'), latex(x**2/y), str(sqrt(x)), pretty(x/2), pycode(x**2), repr(x)
lambdify(x, sin(x) + sqrt(x))(1), ccode(x), lambdify([x, y], x + y, 'numpy')(1, 2)
lambdify(x, x**2, 'math')(1), lambdify(x, x**2, 'mpmath')(1), Point(0, 0).distance(Point(3, 4))
Triangle((0, 0), (3, 0), (0, 4)).area, Circle((0, 0), 2).area, Line((0, 0), (1, 1))
Polygon((0, 0), (1, 0), (1, 1), (0, 1)).area, Segment((0, 0), (1, 1)).midpoint
Circle((0, 0), 1).intersection(Line((0, 0), (1, 1))), FiniteSet(1, 2) | FiniteSet(3)
Interval(0, 5) & Interval(3, 7), Union(Interval(0, 1), Interval(2, 3)).measure
ConditionSet(x, x > 1, S.Reals), ImageSet(Lambda(x, x**2), S.Integers)
Piecewise((x, x > 0), (0, True)).subs(x, 1), satisfiable(Symbol('p') & ~Symbol('q'))
simplify_logic(Symbol('p') | Symbol('p')), is_decreasing(-x), floor(3.5) + ceiling(2.1), Mod(7, 3)
Max(1, x), Min(1, x), re(1 + 2*I), Abs(3 + 4*I), arg(I), conjugate(I), root(8, 3), minimum(x**2, x)
maximum(sin(x), x), stationary_points(x**2, x), is_increasing(x**3), Eq(x, 1), ask(Q.positive(x))
interpolate([1, 4, 9], x), resultant(x**2 - 1, x - 1, x), groebner([x*y - 1, x - y], x, y)
continued_fraction(Rational(3, 7)), gamma(5), zeta(2), erf(1.0), besselj(0, 1.0), harmonic(5)
polygamma(0, 1.0), beta(2, 3), LambertW(1.0), Ynm(1, 0, 0, 0)
"""


def warm() -> None:
    """Run all of this once; raises nothing."""
    # sympy uses them where they are installed, and a program could load them no more.
    for name in ("scipy", "matplotlib", "IPython", "pytest", "pyglet"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    for name in _LATE.split():
        with suppress(Exception):
            importlib.import_module(f"sympy.{name}")
    names: dict[str, object] = {}
    exec("from sympy import *\nx, y, n, k = symbols('x y n k')", names)
    for statement in _STATEMENTS.splitlines():
        with suppress(Exception):
            exec(statement, names)
