"""Parts that compose with any algorithm: filters, samplers, regularisers, gradient estimators and reward shapers.

A line of the config asks for one: `algo.filter=best_worst`, or with options `algo.filter={name: power, exponent: 2}`; null is none.
One file a kind, one class a part; its keyword arguments are its options. A part with a memory gives it to the checkpoint by `state`
and takes it back by `load`.
"""
