"""What one does with a trained network beside drawing: one file a use, functions of a denoiser, a table and images.

Images are x_0 in [-1, 1], [B, H, W, C]. Randomness is that of `samplers.run`: what sample i draws depends on the key
and on i, never on the batch. `batches` gives a use the denoiser of a `Trained`, batch after batch.
"""
