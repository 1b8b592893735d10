"""From text, ids and messages to the token ids that the policy saw, before any model is loaded."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.study.external.groups import Group
from analysis.study.external.messages import (
    as_messages,
    restored,
    said_by_assistant,
    special_tokens,
    turn_end,
    without_markers,
)
from analysis.study.external.notes import Notes
from analysis.study.external.reader import Reader
from analysis.study.external.record import LARGEST, Messages, Record, own_tokens
from opo.errors import UserError

if TYPE_CHECKING:
    from opo.batch import Rollouts

UNLIKE_SHARE = 0.1  # of texts that the tokenizer may change before the file is refused
PEAK = 3.0  # times as many responses as at other lengths: the greatest length may have been the limit


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt and its responses as token ids."""

    prompt_id: str
    text: str
    prompt_ids: list[int]
    texts: list[str]
    response_ids: list[list[int]]
    rewards: list[float]  # NaN: unscored
    logprobs: list[list[float] | None]
    produced: list[list[bool]]  # tokens of the policy's own

    @property
    def scored(self) -> int:
        return sum(not math.isnan(reward) for reward in self.rewards)

    def rollouts(self) -> "Rollouts":
        """As one record of P = 1; log-probabilities are NaN where the file has none."""
        import torch

        from opo.batch import Rollouts

        made = Rollouts.from_lists([self.prompt_ids], [self.response_ids], [self.rewards])
        if not all(all(row) for row in self.produced):
            own_NT = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in self.produced], batch_first=True)
            made = made.with_(mask_NT=own_NT, present_NT=made.mask_NT)
        if not any(self.logprobs):
            return made
        logprobs_NT = torch.full(made.mask_NT.shape, math.nan, dtype=torch.float64)
        for n, row in enumerate(self.logprobs):
            if row is not None:
                logprobs_NT[n, : len(row)] = torch.tensor(row, dtype=torch.float64)
        return made.with_(logprobs_NT=logprobs_NT)


class Encoder:
    """Encodes groups one after another and counts what it had to do."""

    def __init__(self, reader: Reader, notes: Notes, append_eos: bool = True, limit: int | None = None) -> None:
        self.reader, self.append_eos, self.limit, self.notes = reader, append_eos, limit, notes
        self.lengths = Counter[int]()  # tokens of responses that got an end
        self.special = {*special_tokens(reader.tokenizer).values()}
        self.texts = self.mismatched = self.unended = 0
        self.first_mismatch = self.first_unended = ""
        self.unmarked = ""

    def encode(self, group: Group, rewards: list[float]) -> EncodedPrompt | None:
        """The group as ids, or None where no usable response is left. Raises UserError naming the row at fault."""
        rows, keep = group.records, self._kept(group.records)
        if not keep:
            return None
        first = rows[keep[0]]
        found, chat = self._prompt(first)
        prompt_ids = self._known(found, first, "prompt")
        end = self._end(chat)
        encoded = EncodedPrompt(group.name, self._shown(prompt_ids), prompt_ids, [], [], [], [], [])
        for n in keep:
            given, text = self._response(rows[n], end)
            if not given:
                self.notes.left_out["without a token"] += 1
                continue
            ids = self._known(given, rows[n], "response")
            self._fits(rows[n], len(prompt_ids), len(ids))
            encoded.response_ids.append(ids)
            encoded.texts.append(self._decoded(ids) if text is None else text)
            encoded.rewards.append(rewards[n])
            encoded.logprobs.append(self._logprobs(rows[n], ids))
            encoded.produced.append([True] * len(ids) if rows[n].produced is None else own_tokens(rows[n]))
            self.notes.turns += not all(encoded.produced[-1])
        return encoded if encoded.response_ids else None

    def finish(self) -> None:
        """Raise UserError where too many texts do not survive the tokenizer; else say what was unlike."""
        notes = self.notes
        if notes.unlike > UNLIKE_SHARE * max(1, self.texts):
            raise UserError(
                f"rollouts: {notes.unlike} of {self.texts} texts do not survive the tokenizer of {self.reader.source} "
                f"(such as {notes.unlike_example}), more than {UNLIKE_SHARE:.0%}; is this the model that sampled them?"
            )
        longest = max(self.lengths, default=0)
        usual = notes.ends_added / max(1, len(self.lengths))
        if self.limit is None and self.lengths[longest] > max(2, PEAK * usual):
            notes.warnings.append(
                f"{self.lengths[longest]} responses have the greatest length, {longest} tokens; where that was the limit they were cut, "
                f"and rollout.max_new_tokens={longest} adds no end to them"
            )
        if self.unended:
            notes.warnings.append(
                f"{self.unended} responses have a log-probability for each token of their text and none for an end ({self.first_unended}), so they are taken as cut"
            )
        if self.mismatched:
            notes.warnings.append(
                f"the log-probabilities of {self.mismatched} responses are left out, since they are not as many as tokens ({self.first_mismatch})"
            )
        if self.unmarked:
            notes.warnings.append(
                f"prompts look like a chat template without its markers ({self.unmarked}) and could not be put back in this "
                "model's template: the policy that sampled saw others, so log-probabilities and scores are of another prompt"
            )

    def _kept(self, records: list[Record]) -> list[int]:
        reasons = [
            "without a response" if r.response is None else "without a prompt" if r.prompt is None else None
            for r in records
        ]
        self.notes.left_out.update(why for why in reasons if why)
        return [n for n, why in enumerate(reasons) if not why]

    def _prompt(self, record: Record) -> tuple[Any, Messages | None]:
        """Token ids of a prompt (as the file has them, where it has ids), and its messages where it is a conversation."""
        tokenizer, content = self.reader.tokenizer, record.prompt
        messages = as_messages(content, record.where, "prompt")
        form = "messages in the model's chat template"
        if messages is None and isinstance(content, str) and without_markers(content, tokenizer):
            messages = restored(content, tokenizer)
            form = "text of a chat template without its markers, put back and checked"
            if messages is None:
                self.unmarked = self.unmarked or record.where
        if messages is not None:
            self.notes.prompt_form[form] += 1
            return self._templated(messages, record), messages
        if isinstance(content, str):
            self.notes.prompt_form["text"] += 1
            ids = list(tokenizer.encode(self._sound(content, record, "prompt")))
            if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
                ids = ids[1:]
            self._survives(content, ids, record, "prompt")
        else:
            self.notes.prompt_form["token ids"] += 1
            ids = content
        if not ids:
            raise UserError(
                f"{record.where} has an empty prompt, and the tokenizer of {self.reader.source} puts no token before it"
            )
        return ids, None

    def _templated(self, messages: Messages, record: Record) -> list[int]:
        from jinja2.exceptions import TemplateError

        tokenizer = self.reader.tokenizer
        if not tokenizer.chat_template:
            raise UserError(
                f"{record.where} has messages as prompt, and the tokenizer of {self.reader.source} has no chat template; give text or token ids"
            )
        if record.tools:
            raise UserError(
                f"{record.where} has definitions of tools, which are part of the prompt; give its prompt and response as token ids"
            )
        begun = messages[-1]["role"] == "assistant"  # the policy goes on with what it is given
        try:
            text = tokenizer.apply_chat_template(
                messages, add_generation_prompt=not begun, continue_final_message=begun, tokenize=False
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise UserError(
                f"{record.where}: the chat template of {self.reader.source} does not take its messages: {error}"
            ) from error
        return list(tokenizer.encode(self._sound(str(text), record, "prompt"), add_special_tokens=False))

    def _end(self, chat: Messages | None) -> list[int]:
        """The token that ends a response: of a turn where the template has one that the model stops at, else end of text."""
        tokenizer, ends = self.reader.tokenizer, self.reader.ends
        if not ends or not self.append_eos:
            return []
        while chat and chat[-1]["role"] == "assistant":
            chat = chat[:-1]
        if chat is not None and (turn := turn_end(tokenizer, chat)) in ends:
            return [turn]
        return [ends[0]]  # the tokenizer's, where it has one

    def _response(self, record: Record, end: list[int]) -> tuple[Any, str | None]:
        """Token ids and text of a response (ids of the file have none); an end is added to text that has none and was not cut."""
        tokenizer, content = self.reader.tokenizer, record.response
        messages = as_messages(content, record.where, "response")
        if messages is not None:
            content = said_by_assistant(messages, record.where)
        if not isinstance(content, str):
            self.notes.cut += bool(record.truncated)
            return content, None
        ids = list(tokenizer.encode(self._sound(content, record, "response"), add_special_tokens=False))
        self._survives(content, ids, record, "response")
        self.notes.specials += any(i in self.special for i in ids[:-1])
        if ids and ids[-1] in self.reader.ends:
            self.notes.ends_there += 1
            return ids, content
        at_limit = record.truncated is None and self.limit is not None and len(ids) >= self.limit
        if record.truncated or at_limit:
            self.notes.cut += 1
            return ids, content
        if isinstance(record.logprobs, list) and len(record.logprobs) == len(ids) and end:
            self.notes.cut += 1
            self.unended += 1
            self.first_unended = (
                self.first_unended or f"{record.where}: {len(ids)} log-probabilities, {len(ids)} tokens"
            )
            return ids, content
        if end:
            self.notes.ends_added += 1
            self.notes.ends_unsure += record.truncated is None and self.limit is None
            self.lengths[len(ids)] += 1
        return ids + end, content

    def _sound(self, text: str, record: Record, what: str) -> str:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"{record.where} has half a surrogate pair in its {what}, which is no text") from error
        return text

    def _survives(self, text: str, ids: list[int], record: Record, what: str) -> None:
        tokenizer = self.reader.tokenizer
        self.texts += 1
        back = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        for mark in map(str, filter(None, (tokenizer.bos_token, tokenizer.eos_token))):
            if not text.startswith(mark):
                back = back.removeprefix(mark)
            if not text.endswith(mark):
                back = back.removesuffix(mark)
        if back.lstrip(" ") != text.lstrip(" "):
            self.notes.unlike += 1
            if not self.notes.unlike_example:
                place = next((k for k, (a, b) in enumerate(zip(back, text, strict=False)) if a != b), 0)
                window = slice(max(0, place - 8), place + 8)
                self.notes.unlike_example = f"{record.where}, {what}: {text[window]!r} becomes {back[window]!r}"

    def _fits(self, record: Record, prompt: int, response: int) -> None:
        if prompt + response > self.reader.positions:
            raise UserError(
                f"{record.where}: prompt and response have {prompt} + {response} = {prompt + response} tokens; {self.reader.source} has "
                f"{self.reader.positions} positions"
            )

    def _known(self, ids: Any, record: Record, what: str) -> list[int]:
        """The ids, which may be whole floats. Raises UserError where the model has no such token."""
        for i in ids:
            if not 0 <= i < self.reader.vocabulary:
                raise UserError(
                    f"{record.where} has token {i} in its {what}; the vocabulary of {self.reader.source} is 0 to {self.reader.vocabulary - 1}"
                )
        return [int(i) for i in ids]

    def _logprobs(self, record: Record, ids: list[int]) -> list[float] | None:
        """One a token, or None where the file has none that fit."""
        values = record.logprobs
        if values is None:
            return None
        if not isinstance(values, list) or not all(isinstance(v, int | float) for v in values):
            raise UserError(
                f"{record.where} has logprobs that are no list of numbers; one for each token of the response is needed, or null"
            )
        for v in values:
            if not -LARGEST < v <= 1e-4:
                raise UserError(
                    f"{record.where} has a log-probability of {str(v)[:12]}; finite ones up to 0 are needed"
                )
        if len(values) != len(ids):
            text = f"{record.where}: {len(values)} log-probabilities, {len(ids)} tokens"
            if isinstance(record.response, list):
                raise UserError(text)
            self.mismatched += 1
            self.first_mismatch = self.first_mismatch or text
            return None
        self.notes.with_logprobs += 1
        return [float(v) for v in values]

    def _decoded(self, ids: list[int]) -> str:
        return str(self.reader.tokenizer.decode(ids, skip_special_tokens=True))

    def _shown(self, ids: list[int]) -> str:
        return str(self.reader.tokenizer.decode(ids))
