"""MathQA's formulas as programs.

A formula is a chain of operations, `add(n1,const_100)|subtract(const_100,n0)|divide(#0,#1)|`: n0 is the
first number of the question, #0 the result of the first operation. Operations and constants are those
of MathQA (Amini et al., NAACL 2019), with the meaning that the authors' interpreter gives them
(new_DataStructure.py of mathqa-categorization), less its slips: sine, cosine and tangent are not their
inverses here, and `choose` counts combinations. Angles are in radians, by const_deg_to_rad.
"""

import re
from collections.abc import Mapping
from fractions import Fraction

from reftune.data.derive.arithmetic import write
from reftune.data.derive.programs import UnderivableError, free_name, write_program

# operation -> (name of its result, expression in its operands); {0:int} is an operand to be made whole
OPERATIONS: dict[str, tuple[str, str]] = {
    "add": ("total", "{0} + {1}"),
    "subtract": ("difference", "{0} - {1}"),
    "multiply": ("product", "{0} * {1}"),
    "divide": ("quotient", "{0} / {1}"),
    "power": ("power", "{0} ** {1}"),
    "sqrt": ("root", "math.sqrt({0})"),
    "log": ("logarithm", "math.log2({0})"),
    "negate": ("opposite", "-{0}"),
    "inverse": ("inverse", "1 / {0}"),
    "max": ("largest", "max({0}, {1})"),
    "min": ("smallest", "min({0}, {1})"),
    "floor": ("whole_part", "math.floor({0})"),
    "round": ("rounded", "round({0}, 4)"),
    "reminder": ("remainder", "{0} % {1}"),
    "gcd": ("common_divisor", "math.gcd({0:int}, {1:int})"),
    "lcm": ("common_multiple", "math.lcm({0:int}, {1:int})"),
    "factorial": ("factorial", "math.factorial({0:int})"),
    # of the two operands the larger one is what is chosen from
    "choose": ("combinations", "math.comb(max({0:int}, {1:int}), min({0:int}, {1:int}))"),
    "permutation": ("permutations", "math.perm(max({0:int}, {1:int}), min({0:int}, {1:int}))"),
    "sum_consecutive_number": ("sum_of_range", "sum(range({0:int}, {1:int}))"),
    "count_interval": ("count", "{0} - {1} + 1"),
    "union_prob": ("union_probability", "{0} + {1} - {2}"),
    "negate_prob": ("opposite_probability", "1 - {0}"),
    "sine": ("sine", "math.sin({0})"),
    "cosine": ("cosine", "math.cos({0})"),
    "tangent": ("tangent", "math.tan({0})"),
    "radians_to_degree": ("degrees", "math.degrees({0})"),
    "degree_to_radians": ("radians", "math.radians({0})"),
    # plane figures
    "square_area": ("square_area", "{0} ** 2"),
    "square_perimeter": ("square_perimeter", "4 * {0}"),
    "square_edge_by_area": ("square_edge", "math.sqrt({0})"),
    "square_edge_by_perimeter": ("square_edge", "{0} / 4"),
    "rectangle_area": ("rectangle_area", "{0} * {1}"),
    "rectangle_perimeter": ("rectangle_perimeter", "2 * ({0} + {1})"),
    "diagonal": ("diagonal", "math.sqrt({0} ** 2 + {1} ** 2)"),
    "side_by_diagonal": ("side", "math.sqrt({0} ** 2 - {1} ** 2)"),
    "triangle_area": ("triangle_area", "{0} * {1} / 2"),
    "triangle_perimeter": ("triangle_perimeter", "{0} + {1} + {2}"),
    "triangle_area_three_edges": (  # Heron
        "triangle_area",
        "math.sqrt(({0} + {1} + {2}) * ({0} + {1} - {2}) * ({0} - {1} + {2}) * (-{0} + {1} + {2})) / 4",
    ),
    "quadrilateral_area": ("quadrilateral_area", "{0} * ({1} + {2}) / 2"),
    "trapezium_area": ("trapezium_area", "{0} * ({1} + {2}) / 2"),
    "rhombus_area": ("rhombus_area", "{0} * {1} / 2"),
    "rhombus_perimeter": ("rhombus_perimeter", "4 * {0}"),
    "circle_area": ("circle_area", "math.pi * {0} ** 2"),
    "circumface": ("circumference", "2 * math.pi * {0}"),
    "circle_arc": ("circle_arc", "{0} / 360 * 2 * math.pi * {1}"),
    "circle_sector_area": ("sector_area", "{1} / 360 * math.pi * {0} ** 2"),
    "semi_circle_perimiter": ("semicircle_perimeter", "math.pi * {0} + 2 * {0}"),
    # solids
    "volume_cube": ("cube_volume", "{0} ** 3"),
    "volume_rectangular_prism": ("prism_volume", "{0} * {1} * {2}"),
    "volume_cylinder": ("cylinder_volume", "math.pi * {0} ** 2 * {1}"),
    "volume_cone": ("cone_volume", "math.pi * {0} ** 2 * {1} / 3"),
    "volume_sphere": ("sphere_volume", "4 / 3 * math.pi * {0} ** 3"),
    "surface_cube": ("cube_surface", "6 * {0} ** 2"),
    "surface_rectangular_prism": ("prism_surface", "2 * ({0} * {1} + {1} * {2} + {0} * {2})"),
    "surface_cylinder": ("cylinder_surface", "2 * math.pi * {0} * ({0} + {1})"),
    "surface_cone": ("cone_surface", "math.pi * {0} * ({0} + math.sqrt({0} ** 2 + {1} ** 2))"),
    "surface_sphere": ("sphere_surface", "4 * math.pi * {0} ** 2"),
    "cube_edge_by_volume": ("cube_edge", "{0} ** (1 / 3)"),
    # percentages and prices
    "percent": ("percentage", "{0} / 100 * {1}"),
    "from_percent": ("fraction", "{0} / 100"),
    "to_percent": ("percentage", "{0} * 100"),
    "gain_percent": ("percentage_after_gain", "100 + {0}"),
    "loss_percent": ("percentage_after_loss", "100 - {0}"),
    "negate_percent": ("other_percentage", "100 - {0}"),
    "p_after_gain": ("price_after_gain", "(1 + {0} / 100) * {1}"),
    "p_after_loss": ("price_after_loss", "(1 - {0} / 100) * {1}"),
    "original_price_before_gain": ("original_price", "{1} * 100 / (100 + {0})"),
    "original_price_before_loss": ("original_price", "{1} * 100 / (100 - {0})"),
    # motion and work
    "speed": ("speed", "{0} / {1}"),
    "speed_in_still_water": ("speed_in_still_water", "({0} + {1}) / 2"),
    "stream_speed": ("stream_speed", "({0} - {1}) / 2"),
    "speed_ratio_steel_to_stream": ("speed_ratio", "({0} + {1}) / ({0} - {1})"),
    # times of work, or their inverses where they are below 1
    "combined_work": ("combined_time", "1 / (min({0}, 1 / {0}) + min({1}, 1 / {1}))"),
    "find_work": ("other_time", "1 / abs(min({0}, 1 / {0}) - min({1}, 1 / {1}))"),
}
_OTHER_NAMES = {
    "remindar": "reminder",
    "price_after_gain": "p_after_gain",
    "price_after_loss": "p_after_loss",
    "square_edge_by_parameter": "square_edge_by_perimeter",
    "combination": "choose",
}
_CONSTANTS = {"const_pi": "math.pi", "const_deg_to_rad": "(math.pi / 180)"}

_OPERATION = re.compile(r"\s*(\w+)\s*\(([^()]*)\)\s*")
_NUMBER = re.compile(r"[\d,]*\.?\d+")
_CONSTANT = re.compile(r"const_(\d+)(?:[_.](\d+))?")


def program_from_formula(formula: str, question: str) -> str:
    """Return the program that a MathQA question's `linear_formula` stands for.

    Raises UnderivableError if the formula cannot be read.
    """
    numbers = enumerate(question_numbers(question))
    known = _CONSTANTS | {f"n{index}": write(number) for index, number in numbers}
    steps: dict[str, str] = {}
    for text in filter(str.strip, formula.split("|")):
        match = _OPERATION.fullmatch(text)
        if match is None:
            raise UnderivableError("the formula cannot be read")
        operands = [_operand(part.strip(), known) for part in match[2].split(",")]
        word, expression = _apply(match[1], operands)
        name = known[f"#{len(steps)}"] = free_name(word, steps)
        steps[name] = expression
    if not steps:
        raise UnderivableError("the formula is empty")
    return write_program(steps)


def question_numbers(question: str) -> list[Fraction]:
    """Return the numbers n0, n1, ... of a MathQA question, in order.

    MathQA separates the words of a question by spaces. A number is a word of digits, commas and at most
    one point (`1,200`, and also `4,5`, which it reads as 45); `one` and `2nd` are none, `1 / 2` is two.
    """
    words = (word.replace(",", "") for word in question.split() if _NUMBER.fullmatch(word))
    return [Fraction(word) for word in words]


def _operand(text: str, known: Mapping[str, str]) -> str:
    if constant := _CONSTANT.fullmatch(text):
        return write(Fraction(f"{constant[1]}.{constant[2] or 0}"))
    if text in known:
        return known[text]
    if re.fullmatch(r"[n#]\d+", text):
        raise UnderivableError("the formula names a number that is not there")
    raise UnderivableError("the formula has an unknown constant")


class _Operand(str):
    """An operand's text; `{0:int}` makes it whole, where it is no whole number already."""

    def __format__(self, spec: str) -> str:
        return f"int({self})" if spec == "int" and not self.isdecimal() else str(self)


def _apply(operation: str, operands: list[str]) -> tuple[str, str]:
    operation = _OTHER_NAMES.get(operation, operation)
    if operation not in OPERATIONS:
        raise UnderivableError(f"the formula has the unknown operation {operation}")
    name, expression = OPERATIONS[operation]
    if len(set(re.findall(r"{(\d)", expression))) != len(operands):
        raise UnderivableError(f"{operation} has a wrong number of operands")
    return name, expression.format(*map(_Operand, operands))
