"""A tile, the square that the vision tower sees: its size, and the tokens that it becomes."""

from __future__ import annotations

from dataclasses import dataclass

from protos.checkpoint.section import Section

# Edge, in patches, of the square that pixel shuffle folds into one token: 1 / downsample_ratio.
SHUFFLE_FACTOR = 2
# What an InternVisionConfig has without the key.
DEFAULT_IMAGE_SIZE = 224
DEFAULT_PATCH_SIZE = 14


@dataclass(frozen=True)
class Tile:
    """A tile's edge and a patch's, in pixels."""

    size: int
    patch_size: int

    @classmethod
    def of_model(cls, model: Section) -> Tile:
        """Reads a whole config.json: `force_image_size`, else `vision_config.image_size`.

        Raises:
            CheckpointError: the tile does not divide into squares of patches.
        """
        tower = model.section("vision_config", {})
        patch_size = tower.size("patch_size", default=DEFAULT_PATCH_SIZE)
        factor = SHUFFLE_FACTOR * patch_size
        # A 0 is none, too: the reference's code says "or".
        if model.values.get("force_image_size"):
            return cls(model.multiple("force_image_size", factor), patch_size)
        return cls(tower.multiple("image_size", factor, DEFAULT_IMAGE_SIZE), patch_size)

    @property
    def patches_per_edge(self) -> int:
        """Patches along an edge (32 for 448 and 14)."""
        return self.size // self.patch_size

    @property
    def token_count(self) -> int:
        """Tokens, which are rows of the embedding (256 for 448 and 14)."""
        return (self.patches_per_edge // SHUFFLE_FACTOR) ** 2
