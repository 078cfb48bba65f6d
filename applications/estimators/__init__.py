"""Estimators that need more than weights: a face detector, a fit of a head model."""
