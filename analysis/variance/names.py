"""Which estimators there are, without their formulas: known without importing torch."""

from opo.catalogue import baseline_names, catalogue

COUPLED_BASELINES = {"shrinkage", "batch_mean", "batch_length_weighted"}  # whose groups are batches of prompts


def known_names() -> list[str]:
    """Every name that `analysis.variance.estimators.resolve` takes."""
    per_response = [name for name, algorithm in catalogue().items() if not algorithm.token_level]
    return sorted({*baseline_names(), "group_standardized", *per_response})


def couples_prompts(name: str) -> bool:
    """Whether the estimator's weights for one prompt depend on the other prompts of a batch."""
    return name in COUPLED_BASELINES or (
        name not in baseline_names() and name in catalogue() and catalogue()[name].couples_prompts
    )
