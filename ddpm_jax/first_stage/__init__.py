"""What trains a first stage: the loss of an autoencoder and its adversary, as pure functions."""

from ddpm_jax.first_stage.adversary import LOSSES as LOSSES
from ddpm_jax.first_stage.adversary import adaptive_weight as adaptive_weight
from ddpm_jax.first_stage.adversary import gradient_penalty as gradient_penalty
from ddpm_jax.first_stage.adversary import hinge as hinge
from ddpm_jax.first_stage.adversary import to_fool as to_fool
from ddpm_jax.first_stage.adversary import vanilla as vanilla
from ddpm_jax.first_stage.forward import Passed as Passed
from ddpm_jax.first_stage.forward import of_codebook as of_codebook
from ddpm_jax.first_stage.forward import of_kl as of_kl
from ddpm_jax.first_stage.forward import of_levels as of_levels
from ddpm_jax.first_stage.gradients import Found as Found
from ddpm_jax.first_stage.gradients import Gradients as Gradients
from ddpm_jax.first_stage.gradients import autoencoder_gradients as autoencoder_gradients
from ddpm_jax.first_stage.gradients import combined as combined
from ddpm_jax.first_stage.gradients import last_layer as last_layer
from ddpm_jax.first_stage.gradients import weight_of as weight_of
from ddpm_jax.first_stage.reconstruction import PIXELS as PIXELS
from ddpm_jax.first_stage.reconstruction import Reconstructed as Reconstructed
from ddpm_jax.first_stage.reconstruction import reconstruction as reconstruction
