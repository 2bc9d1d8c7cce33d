"""Training configurations, and the recipes of the shipped models as rows that name only what differs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from codling.configuration import override, suggest
from codling.errors import ConfigError
from codling.models.cod import CoDConfig
from codling.models.condition_codec import ConditionCodecConfig
from codling.models.denoiser import DenoiserConfig
from codling.models.discriminator import DiscriminatorConfig
from codling.models.dit import TransformerConfig
from codling.models.oscar import OscarConfig
from codling.swd import SMALLEST_SIDE

KEEP = ("auto", "device", "memory", "stream")


def published_weights() -> dict[str, float]:
    """Weights of the published objective: the quantiser's loss counts 0.25, its codebook part 0.25 of that."""
    return {
        "flow": 1.0, "one_step": 1.0, "reconstruction": 1.0, "alignment": 0.5, "codec_alignment": 0.5,
        "commitment": 0.25, "codebook": 0.0625, "finished": 1.0, "sliced": 0.7, "lpips": 0.0, "lpips_alex": 0.0,
        "dists": 0.0,
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every training run has.

    data, validation: pictures, as `shards` reads them: a directory, or tar shards by path or URL. validation may be
        empty: then nothing is validated. keep: where decoded pictures wait, "device", "memory", "auto" (on the device
        if they fit), or "stream": read from shards again and again, `window` of them at a time while the next
        are read.
    crop: side of the training squares in pixels. scales: how much they are enlarged, least and most. batch: squares a
    step. steps: length of the run.
    learning_rate: after `warmup` steps constant, then linear to zero over the last `decay_share` of the steps, so
        that a run can be lengthened or brought to its end without starting over.
    average: decay of the weight average. clip: largest gradient norm.
    precision: "bfloat16" (autocast), "float32", or "auto", which is bfloat16 unless the CPU has to emulate it.
    compile: compile the networks (torch.compile).
    log_every, checkpoint_every, validate_every: in steps; None validates at every checkpoint. validation_pictures: how
        many of them at most.
    """

    data: str = ""
    validation: str = ""
    keep: str = "auto"
    window: int = 4
    crop: int = 256
    scales: tuple[float, float] = (0.7, 1.3)
    batch: int = 128
    steps: int = 400_000
    seed: int = 0
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    warmup: int = 200
    decay_share: float = 0.2
    average: float = 0.9999
    clip: float = 1.0
    precision: str = "auto"
    compile: bool = False
    log_every: int = 50
    checkpoint_every: int = 250
    validate_every: int | None = None
    validation_pictures: int = 24

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "bfloat16", "float32"):
            raise ConfigError(f'training: precision must be "auto", "bfloat16" or "float32", got {self.precision!r}')
        if self.keep not in KEEP:
            raise ConfigError(f"training: keep must be one of {', '.join(KEEP)}, got {self.keep!r}")
        for name in ("crop", "batch", "steps", "window", "warmup", "log_every", "checkpoint_every", "validate_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"training: {name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.scales[0] <= self.scales[1]:
            raise ConfigError(f"training: scales must be two ascending numbers above 0, got {self.scales}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(RunConfig):
    """Training of CoD.

    null_condition: share of samples that lose their condition. one_step_share: share of samples at t = 0.
        one_step_pass: add the term `one_step`, a second forward pass at t = 0 of every sample (published stage 3).
    finish: train the model's finisher, on what the rest decodes in one step, and nothing else.
    prior, finisher_prior: names or directories of the denoisers (or of OSCARs with one) that the model's convolution
        and its finisher begin as, where it has them; "" begins from nothing.
    teacher: whose features are aligned to, see `alignment`. align_block: after how many blocks of the trunk.
    autoencoder: of latent models: a directory in `diffusers` layout, or its name on the hub.
    codebook: "average" (running means, revival of unused codewords) or "gradient" (as published).
    reconstruction_layers: depth of the head that reads the picture off the condition (published: 3).
    quantise_from: step from which the features are quantised; before it the encoder learns what is worth keeping,
        instead of settling on the patch's mean colour. denoise_from: step from which the transformer is trained; before
        it the condition codec trains alone, at a fraction of the cost. freeze_encoder_from: step from which the encoder
        and the codebook stay as they are, so that indices are settled while the rest learns to read them; None: never.
    weights: of the loss terms, see `terms`; those of terms that the run does not have are not used.
    validation_steps, validation_noise: numbers of steps, and noise fractions, that validation measures.
    """

    model: CoDConfig = field(default_factory=CoDConfig)
    null_condition: float = 0.1
    one_step_share: float = 0.0
    one_step_pass: bool = False
    finish: bool = False
    prior: str = ""
    finisher_prior: str = ""
    teacher: str = "none"
    align_block: int = 8
    autoencoder: str = ""
    codebook: str = "gradient"
    reconstruction_layers: int = 3
    quantise_from: int = 0
    denoise_from: int = 0
    freeze_encoder_from: int | None = None
    weights: dict[str, float] = field(default_factory=published_weights)
    validation_steps: tuple[int, ...] = (1, 25)
    validation_noise: tuple[float, ...] = (0.9, 0.7, 0.5, 0.3)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codebook not in ("average", "gradient"):
            raise ConfigError(f'training: codebook must be "average" or "gradient", got {self.codebook!r}')
        if self.quantise_from >= self.steps:
            raise ConfigError(
                f"training: of {self.steps} steps none is quantised, as quantise_from is {self.quantise_from}, so the "
                "codebook would learn nothing; set quantise_from below steps"
            )
        if self.finish and self.model.finisher is None:
            raise ConfigError("training: finish needs a model with a finisher; set model.finisher, or finish=false")
        if self.finish and self.crop < 2 * SMALLEST_SIDE:
            raise ConfigError(f"training: finish needs a crop of at least {2 * SMALLEST_SIDE}, got {self.crop}")
        check_crop(self.crop, self.model.grid)


@dataclass(frozen=True, kw_only=True)
class DenoiserTraining(RunConfig):
    """Training of the small denoiser of DiffC.

    hidden_share: share of samples without the frequencies that are not worth coding at their noise level, as the
    decoder has not got them either. local_share: of all samples, those where that depends on the activity of the place.
    walk_share: share of pictures whose states are instead those of DiffC's own walk to them, see `walks`; each costs as
    many evaluations as its walk has steps. walk_as: name or directory of the model whose tables and settings plan it.
    """

    model: DenoiserConfig = field(default_factory=DenoiserConfig)
    hidden_share: float = 0.65
    local_share: float = 0.75
    walk_share: float = 0.0
    walk_as: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_crop(self.crop, self.model.grid)
        if not 0 <= self.walk_share <= 1:
            raise ConfigError(f"training: walk_share must be between 0 and 1, got {self.walk_share}")


def oscar_weights() -> dict[str, float]:
    """Weights of the terms of `oscar_run`: in stage 1 `alignment` and `commitment`, in stage 2 the others."""
    return {
        "alignment": 1.0, "commitment": 0.25,
        "squared": 1.0, "gradient": 0.0, "pixel": 0.0, "cosine": 0.0, "sampled": 0.0, "sliced": 0.0,
        "lpips": 0.0, "lpips_alex": 0.0, "dists": 0.0, "dists_edges": 0.0, "distribution": 0.0, "adversarial": 0.0,
    }  # fmt: skip


def published_oscar_weights() -> dict[str, float]:
    """The published weights of stage 2; stage 1 has ours."""
    second = {"squared": 0.0, "pixel": 1.0, "cosine": 2.0, "dists": 1.0, "dists_edges": 1.0, "adversarial": 5e-3}
    return {**oscar_weights(), **second}


@dataclass(frozen=True, kw_only=True)
class OscarTraining(RunConfig):
    """Training of OSCAR.

    prior: name or directory of the denoiser that ours begins as; "" begins from nothing. restore_from: step from
    which the denoiser is trained, on frozen tokens; before it, or always with None, the hyper-encoders learn alone
    (stage 1). adversarial_from: step from which the discriminator is trained and counts. adversarial_gradient:
    whether the generator gets the gradient of its adversarial term; in the published code it does not.
    level_shares: how often each level is drawn in stage 2, or () for evenly. freeze_denoiser: stage 2 trains what
    reads the tokens and nothing else, so that whatever else the denoiser restores stays as it is. jump_share: of
    stage 2's samples, those that are coarse images as DiffC's channel coder tells them instead of tokens, so that
    the denoiser restores these too; jump_as: the model, name or directory, whose streams these are like, a linear
    one, and with whose tables the model has such streams itself. finish_share: those that are what the models of
    finish_as, names or directories, have decoded, which this one is to finish, as many of each: streams of
    denoisers, and what CoD models decode in one step. sampled_from: name or directory of the denoiser whose
    sampling, in `sampled_steps` and with `sampled_roughness`, is distilled where `weights.sampled` is above 0, see
    `distillation`. distribution_base: name or directory of the model whose distribution restored pictures are moved
    to, where `weights.distribution` is above 0, see `distribution`; fake_learning_rate: that of the copy of it that
    learns them.
    """

    model: OscarConfig = field(default_factory=OscarConfig)
    prior: str = "diffc-xs"
    restore_from: int | None = 0
    adversarial_from: int = 0
    adversarial_gradient: bool = True
    level_shares: tuple[float, ...] = ()
    freeze_denoiser: bool = False
    jump_share: float = 0.0
    jump_as: str = "linear"
    finish_share: float = 0.0
    finish_as: tuple[str, ...] = ("diffc-xs", "cod-xs")
    sampled_from: str = "diffc-xs"
    sampled_steps: int = 6
    sampled_roughness: float = 0.1
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    discriminator_learning_rate: float = 2e-4
    distribution_base: str = "diffc-xs"
    fake_learning_rate: float = 1e-4
    weights: dict[str, float] = field(default_factory=oscar_weights)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_crop(self.crop, self.model.grid)
        if len(self.level_shares) not in (0, len(self.model.hyper.levels)):
            raise ConfigError(
                f"training: level_shares needs one number for each of {len(self.model.hyper.levels)} rate levels, or "
                f"none, got {self.level_shares}"
            )
        if self.level_shares and not (min(self.level_shares) >= 0 and sum(self.level_shares) > 0):
            raise ConfigError(f"training: level_shares must be 0 or more and not all 0, got {self.level_shares}")
        if not (min(self.jump_share, self.finish_share) >= 0 and self.jump_share + self.finish_share <= 1):
            raise ConfigError(
                "training: jump_share and finish_share must be 0 or more and no more than 1 together, got "
                f"{self.jump_share} and {self.finish_share}"
            )
        if self.freeze_denoiser and self.jump_share + self.finish_share:
            raise ConfigError(
                "training: with freeze_denoiser only what reads tokens learns, and nothing of other samples; set "
                f"jump_share=0 and finish_share=0, got {self.jump_share} and {self.finish_share}"
            )
        if self.freeze_denoiser and self.weights.get("sampled", 0) > 0:
            raise ConfigError(
                "training: with freeze_denoiser what reads tokens learns, and nothing where samples are distilled; "
                f"set weights.sampled=0, got {self.weights['sampled']}"
            )
        if self.finish_share and (not self.finish_as or len(set(self.finish_as)) < len(self.finish_as)):
            got = ", ".join(self.finish_as) or "none"
            raise ConfigError(f"training: finish_share needs models in finish_as, each of them once, got {got}")
        if self.sampled_steps < 1:
            raise ConfigError(f"training: sampled_steps must be at least 1, got {self.sampled_steps}")
        if self.jump_as in self.finish_as and min(self.jump_share, self.finish_share) > 0:
            raise ConfigError(f"training: jump_as and finish_as must be different models, got {self.jump_as} in both")
        if self.weights.get("sliced", 0) > 0 and self.crop < 2 * SMALLEST_SIDE:
            raise ConfigError(f"training: weights.sliced needs a crop of at least {2 * SMALLEST_SIDE}, got {self.crop}")


def check_crop(crop: int, grid: int) -> None:
    """Raises ConfigError unless a crop is something the model can see."""
    if crop % grid:
        raise ConfigError(f"training: crop {crop} must be a multiple of the model's grid of {grid} px")


COD_XS = CoDConfig(
    condition=ConditionCodecConfig(
        stride=16, codebook_size=2048, codebook_width=32, encoder_width=40, decoder_width=160, decoder_blocks=3,
        groups=8, stem_stride=4, shortcut=True,
    ),
    transformer=TransformerConfig(
        width=160, heads=5, blocks=4, head_blocks=2, head_width=16, head_mlp_ratio=2, linear_head=True
    ),
    finisher=DenoiserConfig(blocks=(2, 5)),
    finisher_noise=0.39,
    sigma_data=0.5,
    null="learned",
    tile=768,
    overlap=128,
    steps=4,
    guidance=1.5,
)  # fmt: skip

COD_S = CoDConfig(
    condition=ConditionCodecConfig(
        stride=16, codebook_size=4096, codebook_width=32, encoder_width=48, decoder_width=256, decoder_blocks=3,
        groups=16, stem_stride=4, shortcut=True,
    ),
    transformer=TransformerConfig(
        width=256, heads=8, blocks=8, head_blocks=2, head_width=32, head_mlp_ratio=2, linear_head=True
    ),
    finisher=DenoiserConfig(blocks=(2, 5)),
    finisher_noise=0.39,
    sigma_data=0.5,
    null="learned",
    tile=768,
    overlap=128,
    guidance=1.5,
)  # fmt: skip

COD_LATENT = CoDConfig(
    space="sd-vae", transformer=TransformerConfig(head="ddt", channels=4, patch=2, blocks=22, head_blocks=6)
)

# The published schedule: 256 px, 512 px, then unified post-training, where a second pass at t = 0 is added.
STAGE_256 = TrainingConfig(
    crop=256, scales=(1.0, 1.0), batch=128, steps=400_000, learning_rate=1e-4, decay_share=0.0, teacher="dinov2_vitb14",
)  # fmt: skip
STAGE_512 = replace(STAGE_256, crop=512, batch=64, steps=100_000, learning_rate=2e-5)
STAGE_UNIFIED = replace(STAGE_512, steps=50_000, one_step_pass=True)
PUBLISHED = {"256": STAGE_256, "512": STAGE_512, "unified": STAGE_UNIFIED}

XS_CODEC = TrainingConfig(
    model=COD_XS, crop=128, batch=32, steps=5200, learning_rate=2e-3, decay_share=0.5, average=0.999,
    null_condition=0.0, weight_decay=0.01, codebook="average", reconstruction_layers=1, quantise_from=300,
    denoise_from=5200, validation_steps=(1, 4), validation_pictures=8,
    weights={**published_weights(), "codebook": 0.0}, finisher_prior="oscar-s",
)  # fmt: skip
XS_FLOW = replace(
    XS_CODEC, crop=224, batch=16, steps=1950, learning_rate=1e-3, decay_share=0.447, average=0.996, null_condition=0.1,
    one_step_share=0.35, quantise_from=0, denoise_from=0, freeze_encoder_from=0,
)  # fmt: skip
XS_FINISH = replace(
    XS_FLOW, finish=True, crop=256, batch=10, steps=1000, warmup=20, learning_rate=5e-4, decay_share=0.7, average=0.99,
    null_condition=0.0, one_step_share=0.0,
)  # fmt: skip
# A last stage where weights of AlexNet can be had, from a model: `--from`.
XS_LPIPS = replace(XS_FINISH, steps=260, average=0.98, weights={**XS_FINISH.weights, "lpips_alex": 0.035})
S_256 = replace(
    XS_CODEC, model=COD_S, crop=256, batch=128, steps=60_000, learning_rate=5e-4, decay_share=0.2,
    average=0.999, null_condition=0.1, quantise_from=500, denoise_from=0, validation_steps=(1, 25),
    validation_pictures=24,
)  # fmt: skip
S_512 = replace(S_256, crop=512, batch=64, steps=10_000, learning_rate=1e-4, quantise_from=0)
S_FINISH = replace(XS_FINISH, model=COD_S, batch=64, steps=5_000, validation_steps=(1, 25), validation_pictures=24)

# The denoiser of diffc-xs, which this one begins as, has one block at stride 4 and two at stride 8, each way.
OSCAR_TOKENS = OscarTraining(
    model=OscarConfig(denoiser=DenoiserConfig(blocks=(2, 5)), noise_share=0.8), crop=256, scales=(0.85, 1.7), batch=16,
    steps=900, warmup=40, restore_from=None, learning_rate=2e-3, decay_share=0.5, average=0.998, weight_decay=0.01,
)  # fmt: skip
OSCAR_RESTORE = replace(
    OSCAR_TOKENS, batch=10, steps=1600, restore_from=0, learning_rate=7e-4, decay_share=0.6, average=0.99,
    jump_share=0.4, finish_share=0.3, weights={**oscar_weights(), "squared": 0.5, "sliced": 20.0},
)  # fmt: skip
OSCAR_LPIPS = replace(
    OSCAR_RESTORE, steps=330, warmup=20, learning_rate=5e-4, decay_share=0.7, average=0.98,
    weights={**OSCAR_RESTORE.weights, "squared": 0.7, "lpips_alex": 1.0},
)  # fmt: skip
# The published objective of stage 2, on our network and schedule: no level counts more than another, nothing but tokens
# is restored, and the adversary, though its score is in the loss, gives no gradient.
OSCAR_PUBLISHED = replace(
    OSCAR_RESTORE, weights=published_oscar_weights(), adversarial_gradient=False, jump_share=0.0, finish_share=0.0
)  # fmt: skip

RECIPES: dict[str, RunConfig] = {
    **{f"cod-pixel-{name}": stage for name, stage in PUBLISHED.items()},
    **{f"cod-latent-{name}": replace(stage, model=COD_LATENT) for name, stage in PUBLISHED.items()},
    "cod-s-256": S_256,
    "cod-s-512": S_512,
    "cod-s-unified": replace(S_512, steps=5_000, one_step_share=0.35, freeze_encoder_from=0),
    "cod-s-finish": S_FINISH,
    "cod-xs-codec": XS_CODEC,
    "cod-xs-flow": XS_FLOW,
    "cod-xs-finish": XS_FINISH,
    "cod-xs-lpips": XS_LPIPS,
    "diffc-xs": DenoiserTraining(
        crop=256, scales=(0.85, 1.7), batch=10, steps=8000, learning_rate=2e-3, decay_share=0.5, average=0.998,
        weight_decay=0.01, warmup=150,
    ),
    "oscar-s-tokens": OSCAR_TOKENS,
    "oscar-s-restore": OSCAR_RESTORE,
    "oscar-s-lpips": OSCAR_LPIPS,
    "oscar-s-restore-published": OSCAR_PUBLISHED,
}  # fmt: skip

# Recipes that train a model by several stages, one after the other, each from the weights of the one before.
CHAINS: dict[str, tuple[str, ...]] = {
    "cod-pixel": ("cod-pixel-256", "cod-pixel-512", "cod-pixel-unified"),
    "cod-latent": ("cod-latent-256", "cod-latent-512", "cod-latent-unified"),
    "cod-s": ("cod-s-256", "cod-s-512", "cod-s-unified", "cod-s-finish"),
    "cod-xs": ("cod-xs-codec", "cod-xs-flow", "cod-xs-finish"),
    "oscar-s": ("oscar-s-tokens", "oscar-s-restore"),
    "oscar-s-published": ("oscar-s-tokens", "oscar-s-restore-published"),
}


def stages_of(name: str) -> dict[str, RunConfig]:
    """The stages of a recipe by name, a single one of most. Raises ConfigError naming the nearest recipes."""
    if name in CHAINS:
        return {stage: RECIPES[stage] for stage in CHAINS[name]}
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}{suggest(name, (*CHAINS, *RECIPES))}")
    return {name: RECIPES[name]}


def override_stages(stages: Mapping[str, RunConfig], assignments: Iterable[str]) -> dict[str, RunConfig]:
    """Apply `key=value` to every stage, and `STAGE:key=value` to one."""
    chosen: dict[str, list[str]] = {name: [] for name in stages}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        stage, colon, rest = key.partition(":")
        if colon and stage not in stages:
            raise ConfigError(f"unknown stage {stage!r}{suggest(stage, stages)}")
        for name in [stage] if colon else stages:
            chosen[name].append(rest + equals + value if colon else assignment)
    return {name: override(config, chosen[name]) for name, config in stages.items()}
