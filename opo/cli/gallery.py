"""`opo algorithms [NAME]`: the algorithms and presets of conf/algo, or one of them in full. Without torch, so at once."""

from collections.abc import Sequence

from opo.accounts import Account, accounts
from opo.errors import UserError, near
from opo.systems import LEFT_OUT


def gallery(arguments: Sequence[str]) -> str:
    """The table, or the account of one algorithm. Raises UserError for a name that does not exist."""
    known = accounts()
    if list(arguments) == ["--readme"]:
        from opo.cli.readme import write_readme

        return f"{write_readme()}: tables and accounts written anew"
    if not arguments:
        return _table(list(known.values()))
    name = arguments[0]
    if len(arguments) > 1 or name not in known:
        wrong = name if len(arguments) == 1 else " ".join(arguments)
        raise UserError(
            f"opo algorithms {wrong}: no such algorithm{near(name, known)}; choose one of {', '.join(known)}"
        )
    return account_text(known[name])


def _table(all_of_them: list[Account]) -> str:
    width = max(len(account.name) for account in all_of_them)
    return "\n".join(
        [
            *(f"  {a.name:<{width}}  {a.title}{' *' if a.unverified else ''}" for a in all_of_them),
            "",
            "  * something of it could not be verified in its source; NAME says what",
            f"  not here: {', '.join(name for name, *_ in LEFT_OUT)}; conf/algo/README.md says why",
            "  opo algorithms NAME   formula, source, bias and hyperparameters",
            "  opo train algo=NAME   train with it",
        ]
    )


def account_text(account: Account) -> str:
    """What it is, its properties and its defaults; for a preset its parts and the algorithm that it is built around, too."""
    head = [account.name, account.title, *account.notes, ""]
    for part, words in account.parts.items():
        head += [f"{part}:", "", words, ""]
    head += [f"built around {account.base}:", ""] if account.base != account.name else []
    tail = ["", f"unbiased for: {account.unbiased_for}", "; ".join(account.properties)]
    tail += [f"unverified: {sentence}" for sentence in account.unverified]
    return "\n".join([*head, account.text, *tail, "", f"conf/algo/{account.name}.yaml:", *account.body])
