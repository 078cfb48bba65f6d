"""CLIP (Radford et al. 2021) from the user's weights: image and text features, without running anything of the file."""
