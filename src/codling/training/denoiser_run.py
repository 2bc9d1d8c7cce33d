"""Training of the small denoiser: how much better than the Wiener filter it is, at every noise level."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from codling.models.activity import activity
from codling.models.denoiser import Denoiser
from codling.models.wiener import fit_spectrum
from codling.nn.spectral import to_spectrum
from codling.pictures import to_image_array
from codling.rcc.plan import LEVELS
from codling.training.draws import noise_like, step_generator
from codling.training.recipes import DenoiserTraining
from codling.training.run import Run
from codling.training.validation import centre_squares, denoising_gain, fixed_noise
from codling.training.walks import Walks

# Ratio of power to noise from which a frequency counts as coded in validation.
VALIDATION_RATIO = 0.7
VALIDATION_NOISE = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.1)
# Sides of the cells of activity in pixels, in turn; the codec's, its middle size twice.
CELL_SIDES = (32, 64, 64, 128)
# Noise fractions of the sheet.
SAMPLED = (0.9, 0.6)


class DenoiserRun(Run[DenoiserTraining]):
    """A denoiser, and the spectrum of photographs that its filter has from the start."""

    shape = ("widths", "blocks", "embedding", "filter")

    def __init__(self, config: DenoiserTraining, device: torch.device):
        torch.manual_seed(config.seed)
        model = Denoiser(config.model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        super().__init__(config, device, model, nn.Module())
        self.walks = Walks.of(config.walk_as) if config.walk_share else None

    def prepare(self, pictures: Callable[[], list[np.ndarray]]) -> None:
        """Give the filter the spectrum of pictures."""
        images = [torch.from_numpy(to_image_array(picture)) for picture in pictures()]
        self.model.filter.log_power.copy_(fit_spectrum(images, self.config.model.filter.knots))

    def compile(self) -> None:
        self.model.correction = torch.compile(self.model.correction)

    def loss(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error over the filter's own, picture by picture, so that no noise level and no texture rules."""
        config, places = self.config, np.array(self.places[: len(image)])
        generator = step_generator(config.seed, self.step)
        noise, least, slope, walk = (
            draw[places].to(self.device)
            for draw in (
                noise_levels(config.batch, generator),
                least_ratios(config.batch, config.hidden_share, generator),
                slopes(config.batch, config.local_share, generator),
                torch.rand(config.batch, generator=generator),
            )
        )
        walking = walk < config.walk_share
        errors = []
        if not walking.all():
            rest = ~walking
            s, kept = noise[rest].view(-1, 1, 1, 1), places[rest.cpu().numpy()]
            x = (1 - s) * image[rest] + s * noise_like(image[rest], kept, seed=config.seed, step=self.step)
            with torch.no_grad():
                x = self.hidden(x, image[rest], noise[rest], least[rest], slope[rest])
            errors.append(self.errors(x, noise[rest], image[rest])[0])
        if walking.any():
            errors.append(self.errors_of_walks(image[walking], places[walking.cpu().numpy()]))
        after, before = torch.cat(errors, 1).mean(1)
        # Two means, not their ratio: these are means over processes too.
        return after, {"error": after, "error of the filter": before.detach()}

    def errors(self, x: Tensor, noise: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted squared errors of the model and of the filter, (2, B), and the model's estimates, (B, 3, H, W).

        A share of the filter's expected error is added below the line: flat pictures would weigh too much without it.
        """
        with torch.no_grad():
            base = self.model.filter(x, noise).contiguous(memory_format=torch.channels_last)
            scale = self.model.scale(noise)
        with self.autocast():
            correction = self.model.correction(x.contiguous(memory_format=torch.channels_last), base, noise)
        estimate = base + scale * correction.float()
        before = (base - image).square().mean((1, 2, 3))
        after = (estimate - image).square().mean((1, 2, 3))
        weight = 1 / (before + 0.15 * scale.view(-1).square())
        return torch.stack([after * weight, before * weight]), estimate.detach()

    def errors_of_walks(self, image: Tensor, places: np.ndarray) -> Tensor:
        """As `errors`, (2, B): means over the states of a walk to each picture."""
        assert self.walks is not None
        seed = (self.config.seed, self.step)
        walks = [
            self.walks.draw(one, np.random.default_rng((*seed, int(place))))
            for one, place in zip(image.cpu().numpy(), places, strict=True)
        ]
        first = walks[0].chain
        with torch.no_grad(), self.autocast():
            # Walks begin alike: at noise that says nothing.
            level = torch.tensor([first.level / LEVELS], device=self.device)
            estimate = self.model(first.seen().to(self.device), level).float().expand_as(image)
        total, count = torch.zeros(2, len(image), device=self.device), [len(walk.left) for walk in walks]
        active = list(range(len(walks)))
        while active:
            for number, row in zip(active, estimate.float().cpu().numpy(), strict=True):
                walks[number].chain.estimate = row
                walks[number].step()
            chains = [walks[number].chain for number in active]
            x = torch.cat([chain.seen() for chain in chains]).to(self.device)
            noise = torch.tensor([chain.level / LEVELS for chain in chains], device=self.device)
            found, estimate = self.errors(x, noise, image[active])
            total = total.index_add(1, torch.tensor(active, device=self.device), found)
            going = [place for place, number in enumerate(active) if walks[number].left]
            estimate, active = estimate[going], [active[place] for place in going]
        return total / torch.tensor(count, device=self.device)

    def hidden(self, x: Tensor, image: Tensor, noise: Tensor, least: Tensor, slope: Tensor) -> Tensor:
        """States without what is not worth coding: where slopes are 0 by frequency, elsewhere by activity too."""
        local = slope > 0
        out = self.model.filter.hide(x, noise, least)
        if local.any():
            cells = max(1, self.config.crop // CELL_SIDES[self.step % len(CELL_SIDES)])
            power = self.model.filter.power(*x.shape[-2:])
            octaves = activity(to_spectrum(image[local])[:, :1], power[:1], cells, cells)
            out[local] = self.model.filter.hide_places(x[local], noise[local], least[local], octaves, slope[local])
        return out

    def new_model(self) -> nn.Module:
        return Denoiser(self.config.model)

    @torch.no_grad()
    def validate(self, pictures: list[np.ndarray]) -> dict[str, float]:
        """PSNR above the filter's in dB, at noise fractions: of whole states, and where only what is coded is known."""
        model = self.averaged_model()
        images = centre_squares(pictures, self.config.crop, device=self.device)

        def estimate(x: Tensor, noise: Tensor) -> Tensor:
            with self.autocast():
                return model(x, noise)

        def what_is_coded(x: Tensor, noise: Tensor) -> Tensor:
            return model.filter.hide(x, noise, torch.full_like(noise, VALIDATION_RATIO))

        scores = {}
        for level in VALIDATION_NOISE:
            scores[f"gain at {level:g}"] = denoising_gain(estimate, model.filter, images, level)
            scores[f"coded gain at {level:g}"] = denoising_gain(
                estimate, model.filter, images, level, see=what_is_coded
            )
        return scores

    @torch.no_grad()
    def samples(self, pictures: list[np.ndarray]) -> Sequence[Tensor]:
        """For each noise fraction of `SAMPLED`: the state, the filter's estimate, the model's; first the pictures."""
        model, columns = self.averaged_model(), [centre_squares(pictures, self.config.crop, device=self.device)]
        for level in SAMPLED:
            x = (1 - level) * columns[0] + level * fixed_noise(columns[0].shape, device=self.device)
            noise = x.new_full((len(x),), level)
            with self.autocast():
                columns += [x, model.filter(x, noise), model(x, noise)]
        return columns


def slopes(count: int, local_share: float, generator: torch.Generator) -> Tensor:
    """Octaves (count,) by which power is thought to rise with one of activity: 0.5 to 1.1, or 0 for none."""
    values = 0.5 + 0.6 * torch.rand(count, generator=generator)
    return torch.where(torch.rand(count, generator=generator) < local_share, values, torch.zeros(count))


def noise_levels(count: int, generator: torch.Generator) -> Tensor:
    """Noise fractions (count,) to train on: three in four where few bytes lead, the rest down to almost none."""
    u = torch.rand(count, generator=generator)
    low = torch.rand(count, generator=generator) < 0.25
    return torch.where(low, 0.02 + 0.38 * u, 0.4 + 0.595 * u)


def least_ratios(count: int, hidden_share: float, generator: torch.Generator) -> Tensor:
    """Ratios of power to noise (count,) below which frequencies are hidden: 0 for some, else 2^-2.5 to 2^1.5."""
    ratios = 2 ** (4 * torch.rand(count, generator=generator) - 2.5)
    return torch.where(torch.rand(count, generator=generator) < hidden_share, ratios, 0.0)
