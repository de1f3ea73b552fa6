"""A small diffusion model that makes images of a class it is told, from the diffusers library."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from repertory.core.randomness import seeded
from repertory.core.state import Counts
from repertory.errors import DataError, OptionError, UserError, check_number
from repertory.transforms.dfu_ensemble.generators import INSTALL, check_images

_GROUPS = 8
"""Channels are normalised in so many groups."""
_SMALL = 16
"""Images up to this side are halved once, larger ones twice."""
_CHUNK = 256


class Diffusion:
    """A class-conditional U-Net that takes noise off images step by step, trained on noised examples.

    It is the `UNet2DModel` of diffusers, which is told the class; it learns to predict the noise of the cosine schedule
    of its `DDPMScheduler`, from batches in which every class is as frequent, and images are made by its `DDIMScheduler`
    without further noise. Each channel is scaled to [-1, 1] by the least and the largest value that it has in training.

    Args:
        steps: updates of its weights.
        width: channels of the first of its two or three levels, a multiple of 8.
        batch: images a step.
        lr: learning rate of Adam, which falls to 0 along a cosine.
        timesteps: degrees of noise.
        sampling_steps: evaluations of the network to make an image, at most `timesteps`.
        device: where it is trained.

    Attributes:
        counts: examples that went through its network, and updates, so far.
        progress: from the counts to the share of the training that is done; set it to end otherwise than by `steps`.

    Raises:
        OptionError: if an option is out of range.
        UserError: if diffusers is not installed.

    >>> draws = torch.Generator().manual_seed(0)
    >>> images, labels = torch.rand(4, 1, 4, 4, generator=draws), torch.tensor([0, 0, 1, 1])
    >>> model = Diffusion(steps=2, width=8, batch=4, sampling_steps=2).fit(images, labels, draws)
    >>> model.sample(1, 3, draws).shape, model.counts
    (torch.Size([3, 1, 4, 4]), Counts(forward=14, backward=8, steps=2))

    Reference: Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", 2020, https://arxiv.org/abs/2006.11239;
    Song, Meng, Ermon, "Denoising Diffusion Implicit Models", 2021, https://arxiv.org/abs/2010.02502.
    """

    def __init__(
        self,
        steps: int = 1000,
        width: int = 32,
        batch: int = 64,
        lr: float = 1e-3,
        timesteps: int = 200,
        sampling_steps: int = 10,
        device: str | torch.device = "cpu",
    ) -> None:
        check_number("steps", steps, minimum=1, integer=True)
        check_number("width", width, minimum=_GROUPS, integer=True)
        check_number("batch", batch, minimum=1, integer=True)
        check_number("lr", lr, above=0)
        check_number("timesteps", timesteps, minimum=2, integer=True)
        check_number("sampling_steps", sampling_steps, minimum=1, maximum=timesteps, integer=True)
        if width % _GROUPS:
            raise OptionError(f"width={width} is not allowed: width must be a multiple of {_GROUPS}")
        try:
            import diffusers
        except ModuleNotFoundError:
            raise UserError(f"generator 'diffusion' needs diffusers; {INSTALL}") from None
        self.width = width
        self.batch = batch
        self.lr = lr
        self.sampling_steps = sampling_steps
        self.device = torch.device(device)
        self.counts = Counts()
        self.progress: Callable[[Counts], float] = lambda counts: counts.steps / steps
        self._library: Any = diffusers
        self._schedule = {"num_train_timesteps": timesteps, "beta_schedule": "squaredcos_cap_v2"}

    def fit(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Diffusion:
        """Train on images `(n, channels, height, width)` of classes `(n,)`.

        Args:
            images: float32, in any unit.
            labels: int64.
            generator: CPU generator of the initial weights and all draws.

        Raises:
            DataError: if these are no images, do not go together with the labels, or are not finite.
        """
        check_images(images, labels)
        if images.ndim != 4:
            raise DataError(
                f"a diffusion model makes images (n, channels, height, width), but the examples are "
                f"{tuple(images.shape)}; choose generator 'gaussian' or 'smote'"
            )
        self._names = {label: place for place, label in enumerate(labels.unique().tolist())}
        places = labels.cpu().unique(return_inverse=True)[1]
        images = images.cpu().float()
        self._size = images.shape[1:]
        low, high = (images.amin((0, 2, 3))[:, None, None], images.amax((0, 2, 3))[:, None, None])
        self._middle, self._half = (high + low) / 2, ((high - low) / 2).clamp(min=torch.finfo(torch.float32).tiny)
        levels = 2 if max(self._size[1:]) <= _SMALL else 3
        self._padding = [-side % 2 ** (levels - 1) for side in self._size[1:]]
        scaled = self._padded((images - self._middle) / self._half)
        self._network = self._built(tuple(scaled.shape[1:]), levels, generator).to(self.device)
        noiser = self._library.DDPMScheduler(**self._schedule)
        optimizer = torch.optim.Adam(self._network.parameters(), lr=self.lr)
        evenly = 1 / places.bincount()[places]
        counts = Counts()
        self._network.train()
        while (share := self.progress(counts)) < 1:
            rows = torch.multinomial(evenly, self.batch, replacement=True, generator=generator)
            noise = torch.randn(self.batch, *scaled.shape[1:], generator=generator)
            times = torch.randint(len(noiser.betas), (self.batch,), generator=generator)
            noisy = noiser.add_noise(scaled[rows], noise, times)
            predicted = self._predict(noisy.to(self.device), times.to(self.device), places[rows].to(self.device))
            optimizer.zero_grad()
            functional.mse_loss(predicted, noise.to(self.device)).backward()
            optimizer.param_groups[0]["lr"] = self.lr * (1 + math.cos(math.pi * share)) / 2
            optimizer.step()
            counts.forward += self.batch
            counts.backward += self.batch
            counts.steps += 1
        self.counts = counts
        return self

    @torch.no_grad()
    def sample(self, label: int, count: int, generator: torch.Generator) -> Tensor:
        """Return new images of a class `(count, channels, height, width)`, float32, in the units learnt from.

        Raises:
            DataError: if it learnt of no such class.
        """
        if label not in self._names:
            raise DataError(
                f"label={label} is no class that was learnt from ({', '.join(map(str, self._names))}); fit it first"
            )
        self._network.eval()
        remover = self._library.DDIMScheduler(**self._schedule)
        remover.set_timesteps(self.sampling_steps)
        size = [side + more for side, more in zip(self._size[1:], self._padding)]
        found = []
        for part in torch.randn(count, self._size[0], *size, generator=generator).split(_CHUNK):
            images = part.to(self.device)
            labels = torch.full((len(part),), self._names[label], device=self.device)
            for time in remover.timesteps:
                noise = self._predict(images, time.to(self.device), labels)
                images = remover.step(noise, time, images).prev_sample
            found.append(images.cpu()[..., : self._size[1], : self._size[2]])
        self.counts.forward += count * len(remover.timesteps)
        made = torch.cat(found) if found else torch.zeros(0, *self._size)
        return made.clamp(-1, 1) * self._half + self._middle

    def _built(self, size: tuple[int, ...], levels: int, generator: torch.Generator) -> nn.Module:
        seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
        with seeded(seed, "diffusion"):
            made: nn.Module = self._library.UNet2DModel(
                sample_size=size[1:],
                in_channels=size[0],
                out_channels=size[0],
                layers_per_block=1,
                block_out_channels=(self.width, *[2 * self.width] * (levels - 1)),
                down_block_types=("DownBlock2D",) * levels,
                up_block_types=("UpBlock2D",) * levels,
                norm_num_groups=_GROUPS,
                num_class_embeds=len(self._names),
            )
        return made

    def _predict(self, images: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        found: Tensor = self._network(images, times, class_labels=labels).sample
        return found

    def _padded(self, images: Tensor) -> Tensor:
        """Images with edges repeated below and on the right, so that their sides can be halved."""
        return functional.pad(images, (0, self._padding[1], 0, self._padding[0]), mode="replicate")
