"""TFDS builders of the published spike-guided deblurring data sets."""
