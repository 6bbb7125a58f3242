"""Classifier guidance of the unconditional digits: is a sample the digit that was asked for, and what does that cost?

Run:       ddpm-jax train
           ddpm-jax train --task classifier --workdir runs/digits_classifier
           python experiments/digits_classifier_guidance.py runs/digits runs/digits_classifier
Needs:     2 CPU cores, about 10 minutes, most of them the two trainings
Expect:    no paper; at least 95 % at the best scale
Prints:    for each way to guide and each scale: the share of 300 samples, thirty of each digit, that a judge takes
           for the digit asked for, and 1-nearest-neighbour two-sample accuracy as in digits_report.py (0.5 is perfect).
           The judge is a support vector machine (C = 10, gamma = 0.02) on 1400 real digits in [-1, 1].
Measured:  2 CPU cores, Python 3.11, seed 0; the judge is right on 99.0 % of the other 397 real digits
             score, DDIM of 50 steps, scale 1, 2, 4, 8: 81.7 %, 98.0 %, 100 %, 100 % as asked for;
             1-nearest-neighbour accuracy 0.543, 0.522, 0.602, 0.742 (standard error about 0.02)
             scale 0, of 1000 samples: 11.1 % as asked for, 0.540
             mean, DDPM of 100 steps: not run yet
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from ddpm_jax import guidance, keys, opening, samplers
from ddpm_jax.evaluate.samples import two_sample
from ddpm_jax.samplers.catalogue import make_table

N, FITTED = 300, 1400
SCALES = (0.0, 1.0, 2.0, 4.0, 8.0)
WAYS = {
    "score, DDIM of 50 steps": (guidance.score_shifted, "ddim", 50),
    "mean, DDPM of 100 steps": (guidance.mean_shifted, "ddpm_large", 100),
}


def main(run: str, classifier_run: str) -> None:
    """Print the table."""
    trained, classifier = opening.open(run, print), opening.classifier(classifier_run)
    classifier.check_guides(trained)
    real, labels = load_digits(return_X_y=True)
    real = np.asarray(real / 8 - 1)
    order = np.random.default_rng(0).permutation(len(real))
    judge = SVC(C=10, gamma=0.02)  # pyright: ignore[reportArgumentType]
    judge.fit(real[order[:FITTED]], labels[order[:FITTED]])
    held_out = judge.score(real[order[FITTED:]], labels[order[FITTED:]])
    print(f"the judge is right on {held_out:.1%} of the other {len(real) - FITTED} real digits")
    y = np.arange(N, dtype=np.int32) % classifier.num_classes
    for name, (shifted, sampler, num_steps) in WAYS.items():
        table = make_table(sampler, trained.schedule, num_steps, variance=trained.variance)

        @jax.jit
        def draw(params, classifier_params, y, scale, shifted=shifted, table=table):
            gradient = classifier.log_prob_gradient(y, classifier_params)
            denoise = shifted(trained.denoiser(trained.model_fn(params)), gradient, scale=scale)
            return samplers.sample(denoise, table, keys.make(0), (N, *trained.image_shape))

        for scale in SCALES:
            drawn = draw(trained.params, classifier.params, y, jnp.float32(scale))
            x = np.clip(np.asarray(drawn), -1, 1).reshape(N, -1)
            asked, accuracy = np.mean(judge.predict(x) == y), two_sample.accuracy(x, real[order[:N]]).value
            print(
                f"{name}, scale {scale:g}: {asked:.1%} as asked for, 1-nearest-neighbour accuracy {accuracy:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
