r"""The unit of an answer: `5 \text{ cm}` is the value 5 and the unit centimeter."""

import re

from opo.tasks.answers import normalise

UNITS = {
    "millimeter": "mm millimetre", "centimeter": "cm centimetre", "meter": "m metre", "kilometer": "km kilometre", "inch": "in inches",
    "foot": "ft feet", "yard": "yd", "mile": "mi", "gram": "g", "kilogram": "kg", "second": "s sec", "minute": "min", "hour": "h hr",
    "liter": "l litre", "milliliter": "ml millilitre", "degree": "^\\circ \\circ deg", "dollar": "usd", "pound": "lb",
    "unit": "units", "cent": "cents",
}  # fmt: skip
ALIASES = {alias: unit for unit, aliases in UNITS.items() for alias in (unit, *aliases.split())}
MULTIPLES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
# Words that no unit has: what they stand in says more than the number, or something else.
STATEMENT = re.compile(
    r"\b(?:is|are|was|not?|nor|never|and|or|if|mod|than|except|but|maybe|perhaps|probably|wrong|false|incorrect|invalid|impossible"
    r"|dozen|half|plus|minus|factorial|squared|cubed)\b"
)
UNIT = re.compile(
    r"(?P<value>.+?)(?:\s*\\(?:text(?:normal|rm|bf|it)?|mbox)\s*\{\s*(?P<text>[A-Za-z][A-Za-z. ]*?)\s*\}"
    r"|(?<=[\d})])\s*\\mathrm\s*\{\s*(?P<roman>[A-Za-z]{1,12})\s*\}"
    r"|(?<=[\d})])(?P<plain>\s*[A-Za-z][A-Za-z. ]*)|(?<=[\d})])\s*(?P<circle>\^\s*\{?\s*\\circ\s*\}?))\s*(?P<power>\^\s*\{?\s*[23]\s*\}?)?",
    re.DOTALL,
)


def split_unit(answer: str) -> tuple[str, str]:
    """An answer in normal spelling without its unit, and the unit by its usual name ("" where there is none).

    A percent sign stays with the value, which it changes; a dollar sign is a unit.
    """
    text = normalise(answer)
    value, unit = _named(text)
    if not unit and text.endswith(r"\%"):
        return text, "percent"
    if r"\$" in answer and unit not in UNITS and not is_statement(unit):
        return value, "dollar"
    return value, unit


def units_agree(gold: str, given: str) -> bool:
    """False for two units that differ, and for words on one side alone that are no unit."""
    return gold == given or not ((gold and given) or is_statement(gold) or is_statement(given))


def is_statement(unit: str) -> bool:
    return STATEMENT.search(unit) is not None


def _named(text: str) -> tuple[str, str]:
    match = UNIT.fullmatch(text)
    if not match:
        return text, ""
    name = match["text"] or match["roman"] or match["plain"] or "^\\circ"
    value, words = match["value"].strip(), name.lower().replace(".", "").split()
    spaced = match["plain"] is None or match["plain"][0].isspace()
    variable = (
        match["plain"]
        and (len(words[0]) == 1 or not spaced)
        and not (words[0] in ALIASES and (spaced or len(words[0]) > 1))
    )
    if variable:
        return text, ""
    if is_statement(" ".join(words)):
        return value, " ".join(words)
    if words[0] in MULTIPLES:
        value = rf"{value}\times10^{{{MULTIPLES[words[0]]}}}"
        words = words[1:]
    words = [ALIASES.get(word, ALIASES.get(word.removesuffix("s"), word.removesuffix("s"))) for word in words]
    if words[:2] == ["dollar", "per"]:
        words = words[:1]  # a price of what the question names
    power = "".join(re.findall(r"[23]", match["power"] or ""))
    for word, exponent in (("square", "2"), ("sq", "2"), ("cubic", "3"), ("cu", "3")):
        if word in words:
            words.remove(word)
            power = exponent
    return value, " ".join(words) + power
