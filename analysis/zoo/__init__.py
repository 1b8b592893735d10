"""The zoo: every algorithm, with its parts, trained alike and measured on the same rollouts, and the gallery that shows it."""
