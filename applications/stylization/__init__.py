"""Moving a trained generator to another style: by a text, by example images, or by a dataset (paper section 4.3)."""
