"""The domain, pure: no Ray, no HTTP, no Docker, no clock, no randomness.

Time, ids and seeds come in as arguments. Everything here is a frozen record or a function over frozen
records, so the same code serves the live system, the dry run, the explanation and the simulator.
"""
