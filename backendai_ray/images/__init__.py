"""Images that a cluster needs before anybody has pulled one: the default Python image, made locally if need be."""

from backendai_ray.images.default_image import DEFAULT_REFERENCE, ensure_default_image

__all__ = ["DEFAULT_REFERENCE", "ensure_default_image"]
