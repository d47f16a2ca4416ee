"""The runner that lives inside a container, and what an agent needs to put it there."""
