"""What token ids mean to a model, from its tokenizer and config; no weights are read."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from opo.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Reader:
    """What token ids mean to a model."""

    source: str
    tokenizer: "PreTrainedTokenizerBase"
    positions: int
    vocabulary: int
    ends: tuple[int, ...]  # tokens that end a response

    @classmethod
    def of(cls, source: str) -> "Reader":
        """From a folder or hub id; no weights are read. Raises UserError where there is no tokenizer or config."""
        from transformers import (
            AutoConfig,
            AutoTokenizer,
            GenerationConfig,
        )  # which a file that is refused does not need

        try:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            config = AutoConfig.from_pretrained(source, trust_remote_code=False).get_text_config()
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(f"model.path={source}: {(str(error).splitlines() or ['cannot be read'])[0]}") from error
        try:
            given = GenerationConfig.from_pretrained(source).eos_token_id
        except (OSError, ValueError):
            given = None
        more = [given] if isinstance(given, int) else list(given or [])
        ends = dict.fromkeys(end for end in (tokenizer.eos_token_id, *more) if end is not None)
        positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2**20
        return cls(source, tokenizer, int(positions), int(config.vocab_size), tuple(ends))
