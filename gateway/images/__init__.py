"""Bytes of images from the world, safely: from the body, from files, from allowed addresses."""
