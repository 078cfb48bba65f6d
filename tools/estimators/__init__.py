"""Training the embedded estimators on the synthetic dataset: its labels as tensors, augmentation, losses."""
