"""The app proxy: apps inside sessions, reached by a port or a subdomain.

Reserved: terminals and code go through the front door; other apps of a session are not reachable yet.
"""
