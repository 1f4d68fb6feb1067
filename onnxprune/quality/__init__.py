"""How good a model is on data: metrics, comparison, gates. Whether a rewriting is right is what `verify` proves.

Knows models and data, not what was pruned.
"""
