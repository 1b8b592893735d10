r"""Whether two answers are equal as mathematics: math-verify (https://github.com/huggingface/Math-Verify) with an exact comparison of
numbers in place of its rounding, and refusals where it says yes too easily.

What is decided here and not there:

- Numbers: exact, or where one side is a decimal within 1e-6 of the smaller of one and the gold number. math-verify rounds both to six
  digits, so that 1/2004! equals 1/2006!.
- Units that both sides name must agree (5 cm is not 5 m, \$5 not 5 cents); a unit on one side alone does not matter, nor does a
  percent sign, while words that are no unit do (`opo.tasks.units`).
- Infinity equals only itself, with its sign; what is undefined equals nothing.
- A set in braces is not a tuple in parentheses; a quantifier on one side alone is a different statement; a false equation (4 = 3) is
  no answer, and neither is one that defines a name by itself (x = 2x).
- Digits with two different bases as subscripts are different numbers. The base may be left out where the gold answer names it; where
  it does not, 57_8 is 47 and not 57.
- Values without names answer `x = 1, y = 2` in the order of the names.
- Dates, times (12:30), ranges and telephone numbers, ellipses, numbers side by side and 0^0 are compared as text, ratios of three and
  more part by part. A ratio that could be a time, as 3:20, is taken for one.
- Words are compared as words.
- Answers that nobody writes for a right one (towers of powers, factorials of millions, nesting deeper than 50) are compared as text,
  since evaluating them would take the machine.

Known to be missed, scored 0: \frac{1}{\sqrt n} against \sqrt{1/n} (equal for n > 0 alone), an interval against an inequality where the
gold answer is the interval, plural against singular in answers of words, 3:20 against \frac{3}{20}.
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

from opo.tasks.answers import TEXT, compact, normalise, number
from opo.tasks.units import split_unit, units_agree

CPU_LIMIT_S = 2.0  # processor time of one comparison: an answer that takes longer is not equal
DEEPEST = 50  # nested brackets
LARGEST_EXPONENT = 100_000
LARGEST_FACTORIAL = 10_000
CLOSE = Fraction(1, 10**6)

BASED = re.compile(r"\(?(\w+)\)?_\{?\(?(\d+)\)?\}?")
CLOCK = re.compile(r"0?(\d{1,2}(?::[0-5]\d){1,2})")
# Numbers side by side, ellipses, primes, double signs, 0^0; ratios of three; dates: math-verify works them out.
NOT_ARITHMETIC = re.compile(
    r"(?<![\d_^.])\d[\d.]* \d|\\[lc]?dots|\d(?:'|\^\{?(?:\\prime|'))|(?:^|[(\[{,=])[-+]{2}|(?<![\d.])0\)?\^\{?0\}?(?![\d.])"
    r"|:.*:|^\d{1,4}([-/])\d{1,2}\1\d{1,4}$",
    re.DOTALL,
)
RANGE = re.compile(r"\d+(?:-\d+)+")  # as a gold answer, which is no difference left to be worked out
AND = re.compile(r"[,;]|\\text\{\s*and\s*\}|\band\b")
WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*")
FACTORIAL = re.compile(r"(\d+|[)}])\s*!")
LARGE_BINOMIAL = re.compile(r"\\[dt]?binom\{(\d+)\}")
NESTED_POWER = re.compile(r"\^\{?[^{}^]*\^\{?[^{}^]*\^")
EXPONENT = re.compile(r"\^\s*\{?\s*(\d+)")
SUM_POWER = re.compile(r"\)\s*\^\s*\{?\s*(\d+)")
CALCULUS = re.compile(r"\\(?:i{0,3}int|oint|sum|prod|lim)(?![A-Za-z])")


def equal(gold: str, given: str) -> bool:
    """True where `given` says what `gold` says. Never raises for what `given` is; bounded by `CPU_LIMIT_S`."""
    if not (text := normalise(given)):
        return False
    if _as_text(normalise(gold)) == _as_text(text):
        return True
    (gold, gold_unit), (given, given_unit) = split_unit(gold), split_unit(given)
    if not units_agree(gold_unit, given_unit):
        return False
    if (a := number(gold)) is not None and (b := number(given)) is not None:
        return _numbers_equal(gold, given, a, b)
    if _spelling(gold) == _spelling(given):
        return True
    if re.fullmatch("[A-Z]", gold) and (choice := re.fullmatch(r"\(([A-Z])\)(.+)", compact(TEXT.sub(r"\1", given)))):
        return choice[1] == gold and number(choice[2]) is not None
    parts = list(zip(gold.split(":"), given.split(":"), strict=False))
    if len(parts) > 2 and gold.count(":") == given.count(":"):
        return all(equal(*part) for part in parts)
    if is_words(gold) or _differ(gold, given) or _heavy(given) or _heavy(gold):
        return False
    return _algebra(*_in_order(gold, given))


def readable(gold: str) -> bool:
    """True where `equal` can say yes to something else than a copy: a number, a few words, or a formula that parses."""
    text, _ = split_unit(gold)
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
    return compact(TEXT.sub(r"\1", text)).casefold()


def _spelling(text: str) -> str:
    """As text, a time without its leading zero."""
    text = _as_text(text)
    return clock[1] if (clock := CLOCK.fullmatch(text)) else text


def _in_order(gold: str, given: str) -> tuple[str, str]:
    """Assignments to different names, and values without names, as two tuples; anything else as it is."""
    parts = [part.partition("=") for part in AND.split(gold)]
    names = {name.strip() for name, equals, value in parts if equals and "=" not in value}
    if len(parts) < 2 or len(names) < len(parts) or "=" in given:
        return gold, given
    values = AND.sub(",", given.strip())
    return f"({','.join(value for *_, value in parts)})", values if re.fullmatch(
        r"\([^()]*\)", values
    ) else f"({values})"


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
    texts = [compact(TEXT.sub(r"\1", text)) for text in (gold, given)]
    if RANGE.fullmatch(texts[0]) or any(NOT_ARITHMETIC.search(text) or CLOCK.fullmatch(text) for text in texts):
        return True
    bases = [BASED.fullmatch(text) for text in texts]
    if bases[0] and bases[1]:
        return bases[0][2] != bases[1][2]
    return bool(bases[1] and not _same_in_ten(bases[1][1], bases[1][2]))


def _same_in_ten(digits: str, base: str) -> bool:
    """True where the digits are worth the same in the base as in ten."""
    try:
        return int(digits, int(base)) == int(digits)
    except ValueError:
        return False


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
    """False where two sides are numbers and differ, as in 3 + 2 = 4, and where a name is explained by itself, as in x = 2x."""
    name, _, value = text.partition("=")
    if (left := _parse(name.strip())) and getattr(left[0], "is_Symbol", False):
        right = _parse(value.strip())
        if right and left[0] in getattr(right[0], "free_symbols", ()):
            return False
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
    from sympy import Basic, Float, MatrixBase, MatrixExpr, nan, oo, zoo

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
    if a.has(nan, zoo) or b.has(nan, zoo):
        return False
    if a == b:
        return True
    if a.has(oo, -oo) or b.has(oo, -oo):
        return False
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
