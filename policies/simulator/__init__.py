"""Replays a trace in virtual time through the same ``decide`` as the live system; pure and deterministic."""
