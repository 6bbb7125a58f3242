"""Progress bars of the command line."""

from typing import Any

from tqdm import tqdm

from ddpm_jax.host import processes


class _Bar:
    """A bar that is made when it is known how long it is."""

    _bar: Any = None

    def say(self, message: str) -> None:
        tqdm.write(message)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class Bar(_Bar):
    """A progress bar with loss, images/s and the time that remains."""

    def start(self, first_step: int, num_steps: int) -> None:
        self._bar = tqdm(
            total=num_steps, initial=first_step, unit="step", dynamic_ncols=True, disable=not processes.is_first()
        )

    def step(self, step: int) -> None:
        self._bar.update(step - self._bar.n)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self._bar.set_postfix_str(f"loss {values['loss']:.4f}, {values['images_per_second']:.0f} images/s")


class NllBar(_Bar):
    """A progress bar with the bits/dim so far."""

    def start(self, first_image: int, num_images: int) -> None:
        self._bar = tqdm(total=num_images, initial=first_image, unit="image", dynamic_ncols=True)

    def images(self, num_images: int, bits_per_dim: float) -> None:
        self._bar.set_postfix_str(f"{bits_per_dim:.4f} bits/dim", refresh=False)
        self._bar.update(num_images - self._bar.n)


class LearnBar(_Bar):
    """One bar after another: the teacher's images, then updates with the held-out error."""

    def start(self, what: str, total: int, unit: str) -> None:
        self.close()
        self._bar = tqdm(desc=what, total=total, unit=unit, dynamic_ncols=True)

    def advance(self, by: int, said: str = "") -> None:
        self._bar.set_postfix_str(said, refresh=False)
        self._bar.update(by)


class EvaluateBar(_Bar):
    """One bar after another: the pictures, then those of the reference."""

    def start(self, what: str, first_image: int, num_images: int) -> None:
        self.close()
        self._bar = tqdm(desc=what, total=num_images, initial=first_image, unit="image", dynamic_ncols=True)

    def images(self, num_images: int) -> None:
        self._bar.update(num_images - self._bar.n)
