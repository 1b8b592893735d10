"""What a reader is told of every algorithm and preset of conf/algo, read from docstrings and YAML files. Without torch.

`opo algorithms`, the generated conf/algo/README.md and the gallery of `opo zoo` all show these.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from opo.catalogue import FOLDER, Entry, catalogue
from opo.config.parts import OPTIONS

PARTS = FOLDER.parent / "parts"
DOUBTS = re.compile(r"unverified|from memory|not read again|could not be checked", re.IGNORECASE)


@dataclass(frozen=True)
class Account:
    """One file of conf/algo, with the algorithm and the parts that it names."""

    name: str
    title: str  # its first line
    notes: Sequence[str]  # the other comments at its head
    body: Sequence[str]  # its keys as they stand
    values: Mapping[str, Any]
    entry: Entry
    text: str  # the algorithm's docstring
    parts: Mapping[str, str]  # kind and name of each part -> its docstring

    @property
    def base(self) -> str:
        """The algorithm it is built around; its own name where it is no preset."""
        return self.entry.name

    @property
    def formula(self) -> str:
        """The formulas of the docstrings, part first."""
        blocks = [found for text in (*self.parts.values(), self.text) for found in formulas(text)]
        return "\n\n".join(blocks)

    @property
    def source(self) -> str:
        """Where it is from; of a preset its own source, else the algorithm's."""
        own = [note for note in self.notes if "arXiv" in note] if self.base != self.name else []
        return " ".join(own) or sources(self.text)

    @property
    def unbiased_for(self) -> str:
        """What its first update on a batch estimates without bias, or `no` and why."""
        said = [str(OPTIONS[kind][name].unbiased_for) for kind, name in map(str.split, self.parts)]
        words = "; ".join(said).replace("as the algorithm", self.entry.unbiased_for) or self.entry.unbiased_for
        kl, coef = float(self.values.get("kl_coef") or 0.0), float(self.values.get("entropy_coef") or 0.0)
        return (
            words
            + (f"; the reward less {kl:g} KL" if kl else "")
            + (f"; and {coef:g} times the entropy" if coef else "")
        )

    @property
    def properties(self) -> list[str]:
        entry = self.entry
        found = [
            "one update per rollout batch only"
            if entry.on_policy_only
            else "has an importance ratio: several updates per batch",
            "a prompt's weights depend on the other prompts" if entry.couples_prompts else "each prompt by itself",
            "weights differ between tokens" if entry.token_level else "one weight a response",
        ]
        return [*found, *([f"needs {', '.join(entry.needs)}"] if entry.needs else [])]

    @property
    def unverified(self) -> list[str]:
        """Sentences that say what could not be read in the source."""
        paragraphs = [self.title, *self.notes] if self.notes else [self.title]
        whole = " ".join(paragraphs), *(" ".join(t.split()) for t in (self.text, *self.parts.values()))
        sentences = [s for text in whole for s in re.split(r"(?<=[.;])\s+", text)]
        return list(dict.fromkeys(s.strip(" ;.") for s in sentences if DOUBTS.search(s)))


@cache
def accounts() -> Mapping[str, Account]:
    """Every file of conf/algo by its name."""
    folder = Path(import_module("conf").__path__[0], "algo")
    return {file.stem: account_of(file) for file in sorted(folder.glob("*.yaml"))}


def account_of(file: Path) -> Account:
    lines = file.read_text(encoding="utf-8").splitlines()
    head = [line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), lines)]
    values = yaml.safe_load("\n".join(lines))
    text = ast.get_docstring(ast.parse((FOLDER / f"{values['name']}.py").read_text(encoding="utf-8"))) or ""
    parts: dict[str, str] = {}
    for kind in OPTIONS:
        if chosen := values.get(kind):
            name = chosen["name"] if isinstance(chosen, Mapping) else chosen
            parts[f"{kind} {name}"] = part_text(OPTIONS[kind][name].__name__)
    body = [line for line in lines if not line.startswith("#")]
    title = re.sub(r"\. [A-Z].*", ".", head[0].partition(": ")[2] or head[0])
    return Account(file.stem, title, head[1:], body, values, catalogue()[values["name"]], text, parts)


@cache
def part_text(options: str) -> str:
    """The docstring of the part with these options, with its file's where it has no formula of its own."""
    for file in sorted(PARTS.glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and f"options.{options}" in map(ast.unparse, node.bases):
                own, whole = ast.get_docstring(node) or "", ast.get_docstring(tree) or ""
                return own if formulas(own) or not formulas(whole) else f"{whole}\n\n{own}"
    raise ValueError(f"opo/parts: no class with options.{options}")


def formulas(text: str) -> list[str]:
    """The indented blocks of a docstring, without their indentation."""
    blocks = re.findall(r"(?:^    .*\n?)+", text, re.MULTILINE)
    return ["\n".join(line[4:] for line in block.rstrip().splitlines()) for block in blocks]


def sources(text: str) -> str:
    """What follows `Source:` in a docstring, on one line."""
    found = re.search(r"\bSources?: (.*?)(?:\n\n|\Z)", text, re.DOTALL)
    return " ".join(found.group(1).split()) if found else ""
