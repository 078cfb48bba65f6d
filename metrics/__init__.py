"""Distances between sets of images: features, statistics, distance; one function for the loop and the command."""
