"""The section of a report that an evaluation fills: pass@k against k, measures of every policy, paired differences."""

from analysis.evaluation.result import Evaluation
from analysis.evaluation.text import INTERVALS, difference_rows, difference_title, policies_rows, sentence
from analysis.plots.evaluation import rates_against_k
from analysis.report.blocks import Block, Section, figure, fold, table, text

MOST_COLUMNS = 4  # policies side by side: more do not fit on paper
READING = (
    "pass@k is the chance that k responses include a correct one, maj@k the expected reward of the most frequent answer among k; both are "
    "unbiased from more than k responses. mean is the mean reward; tokens, distinct, self_bleu and repetition describe the responses."
)


def section(found: Evaluation, said: bool = False) -> Section:
    """The finding (unless the page has `said` it), the figure, a table of the policies, and their differences, folded."""
    blocks: list[Block] = [*([] if said else [text(sentence(found))]), text(READING)]
    ks = {name for policy in found.policies for name in policy["measures"] if name.startswith("pass@")}
    if len(ks) > 1:
        caption = f"pass@k against the number of responses k, with {INTERVALS}."
        blocks.append(figure(rates_against_k(found.policies), caption))
    for start in range(0, len(found.policies), MOST_COLUMNS):
        part = Evaluation(found.settings, found.policies[start : start + MOST_COLUMNS], [])
        columns, rows = policies_rows(part)
        asked = f"{found.settings['prompts']} prompts × {found.settings['responses']} responses, split {found.settings['split']}"
        blocks.append(table(f"{asked}; value [{INTERVALS}]", columns, rows))
    if found.differences:
        columns, rows = difference_rows(found)
        blocks.append(fold("Differences, prompt by prompt", [table(difference_title(found), columns, rows)]))
    return Section("evaluation", "Evaluation", blocks)


def limits(found: Evaluation) -> list[str]:
    """What a reader cannot conclude from an evaluation."""
    return [
        f"The evaluation asked {found.settings['prompts']} prompts; its intervals are for other prompts of the kind, not for other tasks or other "
        "ways to sample.",
    ]
