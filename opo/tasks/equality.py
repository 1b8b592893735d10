r"""Whether two answers are equal as mathematics: math-verify (https://github.com/huggingface/Math-Verify) with an exact comparison of
numbers in place of its rounding, and refusals where it says yes too easily.

What is decided here and not there:

- Numbers: exact, or where one side is a decimal within 1e-6 of the smaller of one and the gold number. math-verify rounds both to six
  digits, so that 1/2004! equals 1/2006!.
- Units that both sides name must agree (5 cm is not 5 m); a unit on one side alone does not matter, nor does a percent sign.
- A set in braces is not a tuple in parentheses; digits with two different bases as subscripts are different numbers; a quantifier on
  one side alone is a different statement; a false equation (4 = 3) is no answer.
- Words are compared as words.
- Answers that nobody writes for a right one (towers of powers, factorials of millions, nesting deeper than 50) are compared as text,
  since evaluating them would take the machine.

Known to be missed, scored 0: \frac{1}{\sqrt n} against \sqrt{1/n} (equal for n > 0 alone), an interval against an inequality where the
gold answer is the interval, plural against singular in answers of words.
"""

import logging
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from typing import Any

from opo.tasks.answers import SPACES, TEXT, normalise, number

CPU_LIMIT_S = 2.0  # processor time of one comparison: an answer that takes longer is not equal
DEEPEST = 50  # nested brackets
LARGEST_EXPONENT = 100_000
LARGEST_FACTORIAL = 10_000
CLOSE = Fraction(1, 10**6)

UNITS = {
    "millimeter": "mm millimetre", "centimeter": "cm centimetre", "meter": "m metre", "kilometer": "km kilometre", "inch": "in inches",
    "foot": "ft feet", "yard": "yd", "mile": "mi", "gram": "g", "kilogram": "kg", "second": "s sec", "minute": "min", "hour": "h hr",
    "liter": "l litre", "milliliter": "ml millilitre", "degree": "^\\circ \\circ deg", "dollar": "usd", "pound": "lb",
    "unit": "units", "cent": "cents",
}  # fmt: skip
ALIASES = {alias: unit for unit, aliases in UNITS.items() for alias in (unit, *aliases.split())}
UNIT = re.compile(
    r"(?P<value>.+?)(?:\s*\\(?:text(?:normal|rm|bf|it)?|mbox)\s*\{\s*(?P<text>[A-Za-z][A-Za-z. ]*?)\s*\}"
    r"|(?<=[\d})])\s*\\mathrm\s*\{\s*(?P<roman>[A-Za-z]{1,12})\s*\}"
    r"|(?<=[\d})])(?P<plain>\s*[A-Za-z][A-Za-z. ]*)|(?<=[\d})])\s*(?P<circle>\^\s*\{?\s*\\circ\s*\}?))\s*(?P<power>\^\s*\{?\s*[23]\s*\}?)?",
    re.DOTALL,
)
BASED = re.compile(r"(\w+)_\{?(\d+)\}?")
WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*")
FACTORIAL = re.compile(r"(\d+|[)}])\s*!")
LARGE_BINOMIAL = re.compile(r"\\[dt]?binom\{(\d+)\}")
NESTED_POWER = re.compile(r"\^\{?[^{}^]*\^\{?[^{}^]*\^")
EXPONENT = re.compile(r"\^\s*\{?\s*(\d+)")
SUM_POWER = re.compile(r"\)\s*\^\s*\{?\s*(\d+)")
CALCULUS = re.compile(r"\\(?:i{0,3}int|oint|sum|prod|lim)(?![A-Za-z])")


def equal(gold: str, given: str) -> bool:
    """True where `given` says what `gold` says. Never raises for what `given` is; bounded by `CPU_LIMIT_S`."""
    gold, given = normalise(gold), normalise(given)
    if not given:
        return False
    if _as_text(gold) == _as_text(given):
        return True
    (gold, gold_unit), (given, given_unit) = _unit(gold), _unit(given)
    if gold_unit and given_unit and gold_unit != given_unit:
        return False
    if (a := number(gold)) is not None and (b := number(given)) is not None:
        return _numbers_equal(gold, given, a, b)
    if is_words(gold) or _differ(gold, given) or _heavy(given) or _heavy(gold):
        return False
    return _algebra(gold, given)


def readable(gold: str) -> bool:
    """True where `equal` can say yes to something else than a copy: a number, a few words, or a formula that parses."""
    text, _ = _unit(normalise(gold))
    if not text:
        return False
    if number(text) is not None or is_words(text) or _heavy(text):
        return True
    if len(re.findall(r"(?<![\\A-Za-z])[A-Za-z]{3,}", TEXT.sub("", text))) > 3:
        return False  # prose, of which a parser would take any part
    with _cpu_limit():
        return bool(_parse(text))
    return False


def warm_up() -> None:
    """Import what is slow to import and parse once, so that the first response is not charged for it."""
    _algebra("x", "y")


def is_words(text: str) -> bool:
    r"""True for an answer that is a text: all of it \text{}, or at most five words of two letters or more."""
    if TEXT.fullmatch(text):
        return True
    return WORDS.fullmatch(text) is not None and len(text.split()) <= 5 and len(text) > 3


def _as_text(text: str) -> str:
    return SPACES.sub("", TEXT.sub(r"\1", text)).casefold()


def _unit(text: str) -> tuple[str, str]:
    """An answer without its unit, and the unit by its usual name ("" where there is none)."""
    match = UNIT.fullmatch(text)
    if not match:
        return text, ""
    name = match["text"] or match["roman"] or match["plain"] or "^\\circ"
    words = name.lower().replace(".", "").split()
    spaced = match["plain"] is None or match["plain"][0].isspace()
    variable = (
        match["plain"]
        and (len(words[0]) == 1 or not spaced)
        and not (words[0] in ALIASES and (spaced or len(words[0]) > 1))
    )
    if variable or words[0] in ("and", "or", "if", "mod"):
        return text, ""
    words = [ALIASES.get(word, ALIASES.get(word.removesuffix("s"), word.removesuffix("s"))) for word in words]
    power = "".join(re.findall(r"[23]", match["power"] or ""))
    for word, exponent in (("square", "2"), ("sq", "2"), ("cubic", "3"), ("cu", "3")):
        if word in words:
            words.remove(word)
            power = exponent
    return match["value"].strip(), " ".join(words) + power


def _numbers_equal(gold: str, given: str, a: Fraction, b: Fraction) -> bool:
    if gold.endswith(r"\%") != given.endswith(r"\%") and (a * 100 == b or a == b * 100):
        return True
    if "." in gold or "." in given:
        return abs(a - b) <= CLOSE * min(abs(a), Fraction(1))
    return a == b


def _differ(gold: str, given: str) -> bool:
    """What math-verify calls equal and is not."""
    for one, other in ((gold, given), (given, gold)):
        if re.fullmatch(r"\\\{.*\\\}", one, re.DOTALL) and re.fullmatch(
            r"[(\[][^()\[\]]*,[^()\[\]]*[)\]]", other, re.DOTALL
        ):
            return True
        if any(word in one and word not in other for word in (r"\forall", r"\exists")):
            return True
    bases = [BASED.fullmatch(SPACES.sub("", text)) for text in (gold, given)]
    return bool(bases[0] and bases[1] and bases[0][2] != bases[1][2])


def _heavy(text: str) -> bool:
    """True for what a computer algebra system might work on for ever, or beyond memory."""
    deepest = depth = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    if deepest > DEEPEST or NESTED_POWER.search(text) or CALCULUS.search(text) or len(text) > 1000:
        return True
    if any(not m[1].isdigit() or int(m[1][:9]) > LARGEST_FACTORIAL for m in FACTORIAL.finditer(text)):
        return True
    if any(int(m[1][:12]) > LARGEST_FACTORIAL for m in LARGE_BINOMIAL.finditer(text)):
        return True
    if any(int(m[1][:12]) > 30 for m in SUM_POWER.finditer(text)):
        return True
    exponents = [int(m[1][:12]) for m in EXPONENT.finditer(text)]
    return max(exponents, default=0) > LARGEST_EXPONENT


def _algebra(gold: str, given: str) -> bool:
    """math-verify's answer under a limit of processor time."""
    with _cpu_limit():
        if "=" in given and "=" not in gold and not _true_equation(given):
            return False
        parsed = _parse(gold), _parse(given)
        return all(parsed) and _math_verify().verify(*map(list, parsed), timeout_seconds=0)
    return False


def _true_equation(text: str) -> bool:
    """False where two sides are numbers and differ, as in 3 + 2 = 4."""
    sides = [
        side[0] for part in text.split("=") if (side := _parse(part.strip())) and getattr(side[0], "is_number", False)
    ]
    return all(_numeric_equal(sides[0], side, 0, 0) or (sides[0] - side).simplify() == 0 for side in sides[1:])


@lru_cache(maxsize=1)
def _math_verify() -> Any:
    """The library, with our comparison of numbers. A second to import: paid by whoever compares."""
    import math_verify
    from math_verify import grader

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it has no time limit, which is ours
    grader.sympy_numeric_eq = _numeric_equal
    return math_verify


@lru_cache(maxsize=4096)
def _parse(text: str) -> tuple[Any, ...]:
    """The formula as sympy reads it; nothing where it cannot be read whole."""
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig

    library = _math_verify()
    units_stay = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False
    )
    latex = [library.LatexExtractionConfig(normalization_config=units_stay)]  # ours are gone by now; 5m is a product
    return tuple(library.parse(f"${text}$", latex, fallback_mode="no_fallback", parsing_timeout=0))


def _numeric_equal(a: Any, b: Any, _rounding: int, _precision: int) -> bool:
    """Two sympy expressions without free symbols: exact where both are exact, else to 1e-6 as in `equal`; matrices by entry."""
    from sympy import Basic, Float, MatrixBase, MatrixExpr

    if isinstance(a, MatrixBase | MatrixExpr) or isinstance(b, MatrixBase | MatrixExpr):
        a, b = a.doit(), b.doit()
        same = isinstance(a, MatrixBase) and isinstance(b, MatrixBase) and a.shape == b.shape
        return same and all(
            _numeric_equal(x, y, _rounding, _precision) or (x - y).simplify() == 0
            for x, y in zip(a.flat(), b.flat(), strict=True)
        )
    if not isinstance(a, Basic) or not isinstance(b, Basic) or a.free_symbols or b.free_symbols:
        return False
    a, b = a.doit(), b.doit()
    if a == b:
        return True
    if not (getattr(a, "is_number", False) and getattr(b, "is_number", False)):
        return False
    if a.is_Rational and b.is_Rational:
        return False
    difference, size = (a - b).evalf(50), abs(a).evalf(50)
    if a.has(Float) or b.has(Float):
        return bool(abs(difference) <= 1e-6 * min(1, size))
    return bool(abs(difference) <= size * 10**-40) if size > 0 else bool(abs(difference) == 0)


class _TooLong(BaseException):
    """Not an Exception, which the libraries swallow."""


@contextmanager
def _cpu_limit() -> Iterator[None]:
    """Leave the block after `CPU_LIMIT_S` of processor time; in a thread, where no signal comes, without a limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S, 0.2)
    try:
        yield
    except (_TooLong, RecursionError):
        pass
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
