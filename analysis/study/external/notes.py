"""What was read, left out, added and assumed, counted, and the same as one paragraph."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

NEAR = 0.02  # nats a token: weights a few updates away


@dataclass
class Notes:
    """The import of one study. `result.json` holds it under `import`."""

    files: list[dict[str, Any]] = field(default_factory=list)  # path, format, rows
    steps: list[int] = field(default_factory=list)
    stepless: int = 0  # responses that say no step
    prompts: int = 0
    responses: int = 0
    reward: str = "as the format has it"
    left_out: Counter[str] = field(default_factory=Counter)  # responses, by reason
    prompts_left_out: Counter[str] = field(default_factory=Counter)
    ends_added: int = 0
    ends_there: int = 0  # text that brought its end of text
    ends_unsure: int = 0  # ends added to responses of which nobody says whether they were cut
    cut: int = 0  # the file says that they were cut: no end added
    with_logprobs: int = 0
    temperature: float | None = None  # as the file says
    temperature_unknown: int = 0  # responses that say none
    prompt_form: Counter[str] = field(default_factory=Counter)  # of prompts: text, token ids, messages ...
    turns: int = 0  # responses with tokens that the policy did not produce
    unlike: int = 0  # texts that the tokenizer does not give back
    unlike_example: str = ""
    specials: int = 0  # responses whose text holds special tokens
    warnings: list[str] = field(default_factory=list)
    measured_at: float | None = None
    gap_nats: float | None = None
    fit: dict[str, float] | None = None  # nats_per_token, z, p_value

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = dict(vars(self))
        return {key: dict(value) if isinstance(value, Counter) else value for key, value in plain.items()}

    def paragraph(self) -> str:
        """One paragraph for a reader."""
        sentences = [self.read()]
        forms = ", ".join(f"{count} as {form}" for form, count in self.prompt_form.items())
        sentences.append(f"Prompts: {forms}.")
        sentences.append(self._ends())
        if self.turns:
            sentences.append(
                f"{self.turns} responses hold tokens that the policy did not produce (tools, templates): they are read as context, "
                "without a score, and do not count as length."
            )
        if self.unlike:
            sentences.append(f"{self.unlike} texts do not survive the tokenizer (such as {self.unlike_example}).")
        if self.specials:
            sentences.append(f"{self.specials} responses have special tokens in their text, which are read as such.")
        at = "" if self.measured_at is None else f", measured at {self.measured_at:g}"
        known = "unknown" if self.temperature is None else f"{self.temperature:g}"
        if self.temperature is not None and self.temperature_unknown:
            known += f" (unknown for {self.temperature_unknown} responses, taken as the same)"
        sentences.append(f"Temperature of sampling: {known}{at}; truncation (top-p, top-k): unknown, taken as none.")
        sentences += [f"Warning: {warning}." for warning in self.warnings]
        sentences += self._fit()
        return " ".join(sentences)

    def read(self) -> str:
        """What was read and what was left out."""
        forms = sorted({entry["format"] for entry in self.files})
        name = self.files[0]["path"] if len(self.files) == 1 else f"{len(self.files)} files"
        said = [
            f"Read {name} as {' and '.join(forms)}: {self.prompts} prompts with {self.responses} responses"
            + self._steps()
            + f"; reward: {self.reward}."
        ]
        out = self.counted()
        said.append(f"Left out: {out}." if out else "Nothing was left out.")
        return " ".join(said)

    def _steps(self) -> str:
        if not self.steps:
            return " of unknown steps, taken as one policy's" if len(self.files) > 1 else ""
        unknown = f" (unknown for {self.stepless} responses)" if self.stepless else ""
        return f" of step {', '.join(map(str, self.steps))}{unknown}"

    def counted(self) -> str:
        """What was left out, with its counts."""
        out = [f"{count} responses {why}" for why, count in self.left_out.items()]
        out += [f"{count} prompts {why}" for why, count in self.prompts_left_out.items()]
        return "; ".join(out)

    def _ends(self) -> str:
        parts = [f"added to {self.ends_added} responses"]
        parts += [f"there already in {self.ends_there}"] if self.ends_there else []
        parts += [f"not added to {self.cut} that were cut"] if self.cut else []
        text = f"End of text: {', '.join(parts)}."
        if self.ends_unsure:
            text += f" The file does not say whether {self.ends_unsure} of them were cut at the limit (append_eos=false adds none)."
        return text

    def _fit(self) -> list[str]:
        if self.gap_nats is not None:
            sentences = [
                f"Log-probability gap to this model: {self.gap_nats:.2g} nats a token, over {self.with_logprobs} responses that bring theirs."
            ]
        else:
            sentences = ["Log-probability gap to this model: unknown, since the file has no log-probabilities."]
        if self.fit is None:
            return sentences
        z, p = self.fit["z"], self.fit["p_value"]
        z_score = (
            f"log-probability plus entropy, zero in the mean under the policy that sampled, is "
            f"{self.fit['nats_per_token']:+.3f} nats a token (z = {z:.1f} over prompts, p = {p:.2g})"
        )
        if self.doubtful:
            sentences.append(
                f"Warning: these responses were hardly sampled from this model as it was read here: {z_score}. "
                "Other weights, template, temperature or truncation?"
            )
        else:
            sentences.append(f"In line with sampling from this model, or one near it: {z_score}.")
        return sentences

    @property
    def doubtful(self) -> bool:
        """Whether the responses are unlike what the model samples."""
        return self.fit is not None and self.fit["p_value"] < 1e-3 and abs(self.fit["nats_per_token"]) > NEAR
