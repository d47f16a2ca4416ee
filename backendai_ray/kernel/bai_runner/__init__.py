"""The kernel runner: runs a user's code next to it and talks to the agent through one Unix socket.

Everything here must run on any Python from 3.7 on, with the standard library and pyzmq alone, and must start
fast: a module that a plain ``print`` does not need is imported where it is used.
"""

PROTOCOL_VERSION = 1
