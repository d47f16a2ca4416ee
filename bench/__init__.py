"""Measuring: ``python -m bench NAME [--json FILE]``. Peers run in the same call, alternating with ours."""
