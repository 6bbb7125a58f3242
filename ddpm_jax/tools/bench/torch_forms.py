"""A network of PyTorch in the forms that its users run it in, and the loops around it.

torch is an argument: nothing here needs it to be installed, or JAX. A job returns when the device is done.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Job = Callable[[], Any]


class Form(NamedTuple):
    """How a network is run. Networks of forms are copies: none changes another."""

    network: Any
    memory_format: Any

    def placed(self, x: Any) -> Any:
        """Images in the layout of this form."""
        return x.contiguous(memory_format=self.memory_format)


def forms(torch: Any, network: Any, *, max_autotune: bool) -> dict[str, Callable[[], Form]]:
    """By name, made when they are asked for: as diffusers loads a network, channels last, compiled, both.

    Args:
      torch: the module.
      network: on its device.
      max_autotune: also the one that tries its kernels on the device before it chooses.
    """
    last, plain = torch.channels_last, torch.contiguous_format

    def form(memory_format: Any, **options: Any) -> Callable[[], Form]:
        def make() -> Form:
            own = copy.deepcopy(network).to(memory_format=memory_format)
            return Form(torch.compile(own, **options) if "mode" in options else own, memory_format)

        return make

    found = {
        "PyTorch eager": form(plain),
        "PyTorch channels-last": form(last),
        "torch.compile": form(plain, mode="default"),
        "torch.compile channels-last": form(last, mode="default"),
    }
    return found | ({"torch.compile max-autotune": form(last, mode="max-autotune")} if max_autotune else {})


def synchronized(torch: Any, job: Job) -> Job:
    """The job that returns when the accelerator is done too."""
    if not torch.cuda.is_available():
        return job

    def run() -> None:
        job()
        torch.cuda.synchronize()

    return run


def forward(torch: Any, form: Form, x: Any, t: Any) -> Job:
    """One call, without gradients."""
    x = form.placed(x)

    def run() -> Any:
        with torch.inference_mode():
            return form.network(x, t)

    return synchronized(torch, run)


def gradient(torch: Any, form: Form, x: Any, t: Any, dtype: Any) -> Job:
    """The gradient of the mean of net(x, t)^2 in all parameters; matrix products in dtype."""
    x = form.placed(x)

    def run() -> None:
        form.network.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            loss = torch.mean(form.network(x, t).float() ** 2)
        loss.backward()

    return synchronized(torch, run)


Rows = Sequence[tuple[float, float, float, Sequence[Sequence[float]]]]


def sample(torch: Any, network: Any, rows: Rows, x: Any) -> Any:
    """x_0 [B, C, H, W] from x_T, by a Python loop over the rows (time, alpha, sigma, update) of a table.

    x_0 = (x - sigma eps) / alpha, registers <- update @ [registers, x_0, eps]. Terms of weight 0 are left out, so a
    row of DDIM costs what it costs when written by hand.
    """
    times = torch.tensor([row[0] for row in rows], device=x.device)[:, None].expand(-1, len(x)).contiguous()
    dtype = next(network.parameters()).dtype
    registers = [x] + [torch.zeros_like(x) for _ in range(len(rows[0][3]) - 1)]
    with torch.inference_mode():
        for t, (_, alpha, sigma, update) in zip(times, rows, strict=True):
            eps = network(registers[0].to(dtype), t).to(x.dtype)
            basis = [*registers, (registers[0] - sigma * eps) / alpha, eps]
            registers = [_combination(basis, weights) for weights in update]
    return registers[0]


def _combination(basis: Sequence[Any], weights: Sequence[float]) -> Any:
    terms = [image if weight == 1 else weight * image for weight, image in zip(weights, basis, strict=True) if weight]
    total = terms[0] if terms else 0 * basis[0]
    for term in terms[1:]:
        total = total + term
    return total


def sampling(torch: Any, form: Form, rows: Rows, x_T: Any) -> Job:
    """All steps of a sampler that draws no noise."""
    x_T = form.placed(x_T)
    return synchronized(torch, lambda: sample(torch, form.network, rows, x_T))


def weights_into(torch: Any, network: Any, weights: Mapping[str, Any]) -> Any:
    """The network with these arrays by name, none missing or left over."""
    network.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()}, strict=True)
    return network
