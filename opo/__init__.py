"""Launch, track and reproduce on-policy RL of language models with OPO and other algorithms."""
