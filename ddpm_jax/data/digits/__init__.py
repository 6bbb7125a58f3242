"""The embedded data set: scikit-learn's handwritten digits as a TFDS builder named `digits`."""
