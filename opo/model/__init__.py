"""The policy: loading a model, its log-probabilities, and the gradient of a loss on them."""
