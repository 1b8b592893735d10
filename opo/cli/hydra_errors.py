"""Hydra's errors in one sentence each: the key, what is allowed, what is near."""

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException

from opo.config.read import shown
from opo.errors import near


def one_line(error: Exception, known_keys: Callable[[], Sequence[str]]) -> str:
    """What is wrong and what is allowed; `known_keys` gives every dotted key of the config as far as it composes."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        options = sorted(error.options or _options(group))
        if not group:
            return f"--config-name {choice}: no such file"
        return f"{group}={choice}: not one of {', '.join(options)}{near(choice, options)}"
    if match := re.search(r"Could not override '([^']+)'", text):
        key = match.group(1)
        keys = [known for known in known_keys() if known != key]
        group = key.rpartition(".")[0]
        beside = [known.rpartition(".")[2] for known in keys if known.rpartition(".")[0] == group]
        allowed = f"; allowed {f'in {group}' if group else 'at the top'} are {', '.join(beside)}" if beside else ""
        return f"{key}: unknown key{_near_key(key, keys, beside)}{allowed}"
    if match := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '([^']+)'", text):
        return f"{match.group(1)}: several values are several runs, which need -m; one value with a comma needs quotes"
    if match := re.search(r"An item is already at '([^']+)'", text):
        return f"+{match.group(1)}: the key exists; leave out the +"
    if match := re.search(r"Multiple values for (\S+)\. To override a value use 'override [^:]+: ([^']*)'", text):
        key, choice = match.groups()
        return f"+{key}={choice}: {key} has a choice already; leave out the +"
    if match := re.search(r"full_key: hydra\.runtime\.choices\.(\S+)", text):
        return one_choice(match.group(1))
    first = text.splitlines()[0]
    if (match := re.match(r"Error merging override (.+)", first)) and error.__cause__:
        return f"{match.group(1)}: {str(error.__cause__).splitlines()[0]}"
    if match := re.search(r"full_key: (\S+)", text):
        missing = first.startswith("Missing mandatory value")
        return f"{match.group(1)}: {'a value is needed and there is no default' if missing else first}"
    return shown(" ".join(text.split())) if first.endswith(":") else first  # a list of what is allowed follows


def one_choice(group: str) -> str:
    """What to say of a list of choices."""
    return f"{group}: one choice is needed, without brackets; several are several runs, which need -m {group}=a,b"


def _options(group: str) -> list[str]:
    """The choices of a group, where Hydra is composing; for one choice of a list it does not say them itself."""
    composing = GlobalHydra.instance()
    return composing.config_loader().get_group_options(group) if composing.is_initialized() else []


def unreadable(override: str) -> str:
    """What to say of an argument that Hydra's grammar does not know."""
    return f"{shown(override)}: cannot be read; write key=value, with quotes around a value of spaces, brackets or equals signs"


def _near_key(key: str, keys: Sequence[str], beside: Sequence[str]) -> str:
    """A key of the same group with a similar spelling, or one anywhere with this name or these initials (lr: learning_rate)."""
    group, _, last = key.rpartition(".")
    if guess := get_close_matches(last, beside, n=1):
        return f" (did you mean {f'{group}.{guess[0]}'.lstrip('.')}?)"
    names = [(known, known.rpartition(".")[2]) for known in keys]
    alike = [known for known, name in names if last in (name, "".join(word[0] for word in name.split("_")))]
    alike.sort(key=lambda known: not known.startswith(f"{group}."))
    return f" (did you mean {alike[0]}?)" if alike else ""
