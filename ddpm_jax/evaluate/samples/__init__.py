"""How good a set of images is, from their features: metrics of two sets [N, D] and [M, D], in float64."""
