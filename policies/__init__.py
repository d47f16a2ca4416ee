"""Scheduling policies, pure: what starts next, and where. Found by entry point; see docs/howto/write-a-policy.md."""
