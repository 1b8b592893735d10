r"""From a response to its final answer, as text: which box counts, and one spelling for what is written in many ways.

No algebra here and nothing slow: votes (maj@k) are counted by `canonical` in the process that trains. Whether two answers are equal
as mathematics is `opo.tasks.equality`'s affair.
"""

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction

LONGEST = 2000  # characters of an answer; a longer one is no answer
MOST_BOXES = 50
BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
BETWEEN_BOXES = re.compile(
    r"(?:[\s,;$]|\\[,;:! ()\[\]]|\\quad|\\text\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)*", re.IGNORECASE
)
INLINE_MATH = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
MINUS = str.maketrans(dict.fromkeys("\u2212\u2013\u2012\ufe63\uff0d", "-"))  # minus signs and dashes that stand for one
NUMBER = re.compile(r"(?<![\d.])-?(?:\d+ (?=\d+\s?/\s?\d))?\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][+-]?\d+)?(?:\s?/\s?\d+)*")

FRACTION = re.compile(r"-?(?:\d+ ?)?\\[dtc]?frac(?:\{-?\d+\}|\d)(?:\{\d+\}|\d)")
# What follows a number that is only a part of a formula: 5x, 5\pi, 5^2.
FORMULA_GOES_ON = re.compile(r"[}^_]|[iknxyz]\b|\\(?!text|mathrm|circ|q?quad)[a-z]")
# What comes before a number or box that the response does not give as its answer.
DENIED = re.compile(
    r"(?:\bnot|n['\u2019]t|\bcannot|\bnever|(?<!\bno )\b(?:less|more|greater|fewer|other|rather) than|\binstead of|\bbetween\s+\S+\s+and)"
    r"(?:\s+(?:be|equals?|to|exactly))*[\s$\\(\[*:{]*$",
    re.IGNORECASE,
)
VALUE = r"(?:\$[^$]+\$|\\\(.+?\\\)|-?\d[\d.,/]*)"
OR_BEFORE = re.compile(rf"({VALUE})\s*,?\s*or\s*[\s$\\(\[*]*$", re.IGNORECASE)
OR_AFTER = re.compile(rf"[\s$\\)\]}},*]*or\s+\**({VALUE})", re.IGNORECASE)
THINKING = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")

SYMBOLS = {
    "π": r"\pi ", "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "±": r"\pm ", "≤": r"\le ",
    "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "°": r"^\circ ", "θ": r"\theta ", "∅": r"\emptyset ",
    "²": "^2", "³": "^3", "⁴": "^4", "⅓": r"\frac{1}{3}", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "。": ".", "，": ",",
}  # fmt: skip
PLAIN_LETTERS = re.compile(r"\\(?:mathrm|mathbf|mathit|mathsf|operatorname|bf|rm)\s*\{\s*([A-Za-z])\s*\}")
TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|textnormal|mbox|mathrm|mathbf|hbox)\s*\{([^{}]*)\}")
ORDINAL = re.compile(r"(?<=\d)(?:\^\{?\\text\{(?:st|nd|rd|th)\}\}?|(?:st|nd|rd|th))$")
SPACES = re.compile(r"(?<!\\)\\[,;:! ]|\\q?quad\b|~|\s+")
GROUPED = re.compile(r"(?:(?<![\d.])[1-9]\d{0,2}|(?<=\.)\d{3})(?:(?:\{,\}|\\,|\\ |[ \u00a0\u202f])\d{3})+(?!\d)")
INTEGER = r"\d+|\d{1,3}(?:,\d{3})+"
DECIMAL = rf"(?:{INTEGER})(?:\.\d*)?|\.\d+"
PLAIN = re.compile(rf"([+-]?)({DECIMAL})(?:(?:[eE]|(?:\*|\\times|\\cdot)10(?:\^|\*\*))\{{?([+-]?\d{{1,4}})\}}?)?")
RATIO = re.compile(r"([+-]?)(\d*)\\[dtc]?frac(?:\{(-?\d+)\}|(\d))(?:\{(\d+)\}|(\d))")
REPEATING = re.compile(r"([+-]?)(\d{0,100})\.(\d{0,100})\\(?:overline|bar)\{(\d{1,100})\}")
SLASH = re.compile(r"([+-]?)(?:(\d+) )?(\d+)/(\d+)")


def last_number(text: str) -> str | None:
    """The last number of a text, with its sign and, as in 3/4 and 1 1/2, its denominator; a minus after a digit is an operator.

    Thousands separators are dropped. Minus signs of Unicode count as such.
    """
    numbers = NUMBER.findall(text[-LONGEST:].translate(MINUS))
    return _without_separators(numbers[-1]) if numbers else None


def _without_separators(found: str) -> str:
    """A number without thousands separators; the space of 1 1/2 stays."""
    return re.sub(r"\s*/\s*", "/", found.replace(",", ""))


def final_answer(response: str) -> str | None:
    r"""What a response to a mathematical question answers; None where it answers nothing.

    Only what follows </think> counts, and nothing of a response that ends while it thinks.

    The last \boxed{} decides, together with the boxes that only commas, `and` or `or` separate from it: `\boxed{2}, \boxed{3}` is
    the list 2, 3. A box within a box belongs to the outer one. A last box that is empty, never closed or a box among other things is
    no answer. Without a box it is all of a short response without words, else the last formula ($...$, \(...\), \[...\]) or the last
    number, whichever ends later. What is denied right before (`not 5`, `between 4 and 5`) or is one of two values (`5 or 6`) is no
    answer.
    """
    tags = list(THINKING.finditer(response))
    if tags:
        if not tags[-1][1]:
            return None
        response = response[tags[-1].end() :]
    boxes = _boxes(response)
    if not boxes:
        return _unboxed(response[-LONGEST:])
    answers, follows = [], len(response)
    for start, inside, end in reversed(boxes):
        if answers and (end is None or not BETWEEN_BOXES.fullmatch(response[end + 1 : min(follows, end + 100)])):
            break
        answer = None if end is None else _unwrapped(response[inside:end])
        if not answer:
            return None
        if answer not in answers:
            answers.insert(0, answer)
        follows = start
    last = boxes[-1][2]
    return None if last is None or _doubted(response, follows, last + 1, ", ".join(answers)) else ", ".join(answers)


def _boxes(text: str) -> list[tuple[int, int, int | None]]:
    """(start, start of the inside, end) of the last boxes that are in no other box; the end is None where there is none."""
    found: list[tuple[int, int, int | None]] = []
    for box in list(BOX.finditer(text))[-MOST_BOXES:]:
        outer = found[-1][2] if found else None
        if outer is None or box.start() > outer:
            found.append((box.start(), box.end(), _closing(text, box.end())))
    return found


def _unwrapped(text: str) -> str | None:
    """What is in a box, without the box that is all of it; None where it has a box and other things."""
    text = text.strip()
    while (box := BOX.match(text)) and _closing(text, box.end()) == len(text) - 1:
        text = text[box.end() : -1].strip()
    return None if BOX.search(text) else text


def _doubted(text: str, start: int, end: int, answer: str) -> bool:
    """True where the words around an answer deny it or give another value beside it."""
    before, after = text[max(0, start - 60) : start], text[end : end + 60]
    if DENIED.search(before):
        return True
    other = OR_BEFORE.search(before) or OR_AFTER.match(after)
    return other is not None and canonical(other[1].strip(r"\()")) != canonical(answer)


def _closing(text: str, inside: int) -> int | None:
    """Where the brace closes that was opened just before `inside`."""
    depth = 1
    for i, character in enumerate(text[inside : inside + LONGEST]):
        if character in "{}" and text[inside + i - 1] != "\\":
            depth += 1 if character == "{" else -1
        if depth == 0:
            return inside + i
    return None


def _unboxed(text: str) -> str | None:
    whole = text.strip().lstrip("=").strip()
    if len(whole) <= 100 and not WORD.search(TEXT.sub("", whole)):
        return whole or None
    formulas = list(INLINE_MATH.finditer(text))
    numbers = [*NUMBER.finditer(text.translate(MINUS)), *FRACTION.finditer(text.translate(MINUS))]
    last = max(numbers, key=lambda found: (found.end(), -found.start()), default=None)
    if formulas and (last is None or last.end() <= formulas[-1].end()):
        last = formulas[-1]
        answer = next((part for part in last.groups() if part), "").strip()
    elif (
        last is None
        or text[last.start() - 1 : last.start()] in ("{", "^", "_", "/")
        or FORMULA_GOES_ON.match(text, last.end())
    ):
        return None  # a part of a formula
    else:
        answer = _without_separators(last[0])
    return None if not answer or _doubted(text, last.start(), last.end(), answer) else answer


def normalise(answer: str) -> str:
    r"""One spelling: symbols of Unicode as LaTeX, ASCII minus and digits, `1 000` and `70{,}000` without separators, no delimiters
    of formulas, no final full stop, no leading \approx, no th of 5th, \dfrac as \frac, \text of a letter or of a number without the \text.
    """
    text = answer.translate(MINUS)
    text = re.sub(r"√\s*(?:\(([^()]*)\)|(\d+|[a-zA-Z]))", lambda m: rf"\sqrt{{{m[1] or m[2]}}}", text)
    for symbol, latex in SYMBOLS.items():
        text = text.replace(symbol, latex)
    text = unicodedata.normalize("NFKC", text).strip()
    text = GROUPED.sub(lambda m: re.sub(r"\D", "", m[0]), text)
    text = text.replace("{,}", ",").replace(r"\$", "").replace("$", "").replace(r"\left", "").replace(r"\right", "")
    text = re.sub(r"^\\[(\[](.*)\\[)\]]$", r"\1", text.strip(), flags=re.DOTALL)
    text = text.replace(r"\displaystyle", "").replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")
    text = re.sub(r"(?<!\\)%", r"\\%", text)
    text = re.sub(r"\\(frac|binom)\s*(\d)\s+(\d)", r"\\\1{\2}{\3}", text)
    text = re.sub(r"\\[lc]dots\b|\.\.\.", r"\\dots", text)
    text = ORDINAL.sub("", re.sub(r"^\s*\\approx(?![A-Za-z])", "", text).strip())
    text = PLAIN_LETTERS.sub(r"\1", text).strip().rstrip(".,;").strip()
    if whole := TEXT.fullmatch(text):
        inner = re.sub(r"^\((\w)\)$", r"\1", whole[1].strip())
        if len(inner) == 1 or re.match(r"[-+.\d]", inner):
            text = inner
    text = re.sub(r"^\(([A-Z])\)$", r"\1", text)
    return text.strip("*").strip()


def number(text: str) -> Fraction | None:
    r"""The exact value of an integer, a decimal, a ratio or a mixed number, each with or without a percent sign, else None.

    7, 7.0, 07, 1,000, 6e23, 3/4, \frac{3}{4}, 2\frac{1}{2}, 1 1/4, 0.\overline{3} are numbers; `text` is normalised.
    """
    if text.endswith(r"\%"):
        value = number(text[:-2].strip())
        return None if value is None else value / 100
    text = compact(text)
    text = text[1:-1] if re.fullmatch(r"\{[^{}]*\}", text) else text
    if match := PLAIN.fullmatch(text):
        value = Fraction(Decimal(match[2].replace(",", ""))) * Fraction(10) ** int(match[3] or 0)
    elif match := RATIO.fullmatch(text):
        value = _mixed(match[2], match[3] or match[4], match[5] or match[6])
    elif match := SLASH.fullmatch(text):
        value = _mixed(match[2], match[3], match[4])
    elif match := REPEATING.fullmatch(text):
        fixed, repeated = match[2] + match[3], match[4]
        value = Fraction(int(fixed + repeated) - int(fixed or 0), 10 ** len(match[3]) * (10 ** len(repeated) - 1))
    else:
        return None
    return None if value is None else -value if match[1] == "-" else value


def compact(text: str) -> str:
    """A text without the spaces that say nothing: those between two digits stay, since 1 1/2 is not 11/2."""
    return re.sub(r"(?<!\d) | (?!\d)", "", " ".join(SPACES.sub(" ", text).split()))


def _mixed(whole: str | None, numerator: str, denominator: str) -> Fraction | None:
    if max(map(len, (whole or "", numerator, denominator))) > 300 or int(denominator) == 0:
        return None
    return int(whole or 0) + Fraction(int(numerator), int(denominator))


def canonical(answer: str) -> str:
    """The answer as votes count it: numbers by their value (7, 7.0 and 07 are one answer), the rest by its normalised text.

    A leading `x =` is dropped.
    """
    text = re.sub(r"^\\?[A-Za-z]\w*\s*=(?!=)\s*", "", normalise(answer))
    value = number(text)
    return str(value) if value is not None else compact(TEXT.sub(r"\1", text))
