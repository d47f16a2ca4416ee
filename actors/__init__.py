"""The long-lived Ray actors. Classes here are plain and undecorated: they can be built and tested without Ray.

:mod:`backendai_ray.cluster` is the one place that turns them into named actors.
"""
