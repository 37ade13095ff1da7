"""Processes that work for this one, and are trusted as it is: in this process, on this machine, or on a Ray cluster.

What travels between them is pickled, seeds among it. None of it ever comes from a party: what a party sends is parsed
and checked before a worker hears of it (docs/threat-model.md).
"""
