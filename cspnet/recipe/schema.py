"""The recipe: every setting of a run, typed, bounded and frozen. The text under a field is its help.

The defaults are the default recipe: cspdarknet53 as the CspDarknet53 model page trains it (SGD 0.9, lr 0.1 divided by
ten every 30 epochs, 224 px). Source: DeepSpark's cspdarknet53 (train.py defaults and README command).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

__all__ = [
    "AdversarialRecipe",
    "AugmentRecipe",
    "CheckpointRecipe",
    "DarknetRecipe",
    "DataRecipe",
    "EmaRecipe",
    "EvalRecipe",
    "LogRecipe",
    "LossRecipe",
    "MixRecipe",
    "ModelRecipe",
    "OptimRecipe",
    "Recipe",
    "ScheduleRecipe",
    "TrainRecipe",
]

# strict: "64" is not a number, 1 is not a yes. The text under a field becomes its description.
_CONFIG = ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # YAML has lists, frozen values have tuples


_Number = TypeVar("_Number", int, float)


def _finite(value: float) -> float:
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError("expected a finite number")
    return value


def _ordered(pair: tuple[_Number, _Number]) -> tuple[_Number, _Number]:
    if pair[0] > pair[1]:
        raise ValueError("expected [smallest, largest]")
    return pair


Pixels = Annotated[int, Field(ge=8, le=4096)]
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0), AfterValidator(_finite)]
Positive = Annotated[float, Field(gt=0), AfterValidator(_finite)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
AtMostOne = Annotated[float, Field(gt=0, le=1)]
Rgb = Annotated[tuple[Share, Share, Share], BeforeValidator(_as_tuple)]
PositiveRgb = Annotated[tuple[AtMostOne, AtMostOne, AtMostOne], BeforeValidator(_as_tuple)]
Range = Annotated[tuple[Positive, Positive], BeforeValidator(_as_tuple), AfterValidator(_ordered)]
ShareRange = Annotated[tuple[AtMostOne, AtMostOne], BeforeValidator(_as_tuple), AfterValidator(_ordered)]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True, config=_CONFIG)
class ModelRecipe:
    """The network."""

    name: str = "cspdarknet53"
    """A name of cspnet.list_models(), cfg/<Darknet cfg file>, or timm/<name> or torchvision/<name>."""
    num_classes: PositiveCount | None = None
    """Outputs of the classifier; null takes the number of classes of the data."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the network, such as {activation: mish, drop_rate: 0.2}; added to those below, null takes one away."""
    pretrained: Annotated[str, Field(min_length=1)] | None = None
    """A weight file to start from; the classifier is replaced if its number of classes differs."""
    pretrained_source: Literal["auto", "cspnet", "timm", "mmpretrain", "deepspark", "darknet"] = "auto"
    """Whose weight file it is; auto finds out."""
    pretrained_classes: PositiveCount | None = None
    """Number of classes in a Darknet .weights file, which does not say it; null: those of the data, or 1000."""
    freeze: Count | Literal["backbone"] = 0
    """So many parts of the network, counted from the picture (a stem, its stages ...), keep their weights and BatchNorm
    statistics. backbone: all but the last part, which holds the classifier."""


@dataclass(frozen=True, config=_CONFIG)
class DataRecipe:
    """The pictures and how they are read."""

    root: str | None = None
    """Folder of the data set."""
    format: Literal["auto", "folder", "list", "shards"] = "auto"
    """folder: train/ and val/ hold a folder a class. list: train_list.txt and val_list.txt hold `path label` lines.
    shards: train/*.tar and val/*.tar, or *train*.tar and *val*.tar, hold <key>.jpg and <key>.cls. auto: what is
    there."""
    train: str = "auto"
    """Folder, list file or pattern of shards (imagenet1k-train-*.tar) of the training pictures, relative to root; auto
    goes by format."""
    val: str | None = "auto"
    """The same of the validation pictures; null means none."""
    outside_root: bool = False
    """Whether the entries of a list may lie outside of root and of the list's own folder (absolute paths, ../)."""
    cache_dir: str = "~/.cache/cspnet"
    """Where the index of a scanned data set is kept."""
    train_px: Pixels = 224
    """Side of a training picture."""
    val_px: Pixels | None = None
    """Side of a validation picture; null is train_px."""
    start_px: Pixels | None = None
    """Progressive size: side of a training picture at the start; null trains at train_px throughout."""
    ramp_epochs: Annotated[tuple[Count, Count], BeforeValidator(_as_tuple), AfterValidator(_ordered)] = (0, 0)
    """Progressive size: it grows from start_px to train_px between these two epochs, in steps of 32 px."""
    train_crop: Literal["random_resized", "random_pad", "darknet"] = "random_resized"
    """random_resized: a random area, resized. random_pad: resized, padded by pad_px, shifted at random. darknet: the
    affine sampling and colours of the group darknet."""
    train_scale: ShareRange = (0.08, 1.0)
    """random_resized: share of the picture's area, smallest and largest."""
    train_aspect: Range = (3 / 4, 4 / 3)
    """random_resized: width / height of the area, smallest and largest."""
    pad_px: Count = 4
    """random_pad: border on each side."""
    pad_with: Literal["black", "reflect"] = "black"
    """random_pad: reflect is the picture itself, mirrored at its edges."""
    flip: Literal["random", "alternate"] = "random"
    """random: with flip_prob. alternate: each picture in every second epoch, so that two epochs show both sides of it
    (arXiv 2404.00498); which one first is drawn."""
    flip_prob: Share = 0.5
    """Probability of a horizontal flip."""
    train_interpolation: Interpolation = "bilinear"
    """How training pictures are resized (antialiased); Darknet's are always sampled bilinearly, without that."""
    val_interpolation: Interpolation = "bilinear"
    """How validation pictures are resized (antialiased)."""
    crop_ratio: Annotated[float, Field(ge=0.1, le=1)] = 0.875
    """Validation: the shorter side is resized to val_px / crop_ratio, then val_px are cut from the centre."""
    mean: Rgb = (0.485, 0.456, 0.406)
    """Mean of red, green and blue, on a scale of 0 to 1."""
    std: PositiveRgb = (0.229, 0.224, 0.225)
    """Standard deviation of red, green and blue, on a scale of 0 to 1."""
    exif: Literal["apply", "ignore"] = "apply"
    """Whether a picture is turned as its EXIF orientation says (as viewers do) or read as stored (as timm does)."""
    decoder: Literal["fast", "pillow", "gpu"] = "fast"
    """fast: of a JPEG what is needed, by libjpeg-turbo, and the rest by Pillow. pillow: everything whole, by Pillow.
    gpu: JPEGs of random_resized training pictures whole, on a CUDA GPU, and the rest as fast; the pixels differ a
    little."""
    shrink: bool = True
    """random_resized: decode a JPEG at half, a quarter or an eighth of its size where the area is large enough; of the
    decoders only fast does."""
    bad_images: Literal["replace", "raise"] = "replace"
    """A picture that cannot be read: replace it by the next readable one and count it, or stop the run."""
    workers: Annotated[int, Field(ge=0, le=1024)] | None = None
    """Reading processes per training process; null takes min(8, cores per training process), of a
    container those it is given."""
    prefetch: Annotated[int, Field(ge=1, le=1024)] = 4
    """Batches each worker keeps ready."""
    timeout_s: Annotated[float, Field(ge=1, le=604800)] = 180.0
    """How long the run waits for pictures without a sign of life of what reads them: then it ends and says which file
    it is at."""


@dataclass(frozen=True, config=_CONFIG)
class DarknetRecipe:
    """How Darknet's classifier shows its training pictures, with data.train_crop darknet."""

    min_crop_px: PositiveCount = 128
    """The shorter side of the picture is scaled to a size from min_crop_px ..."""
    max_crop_px: PositiveCount = 448
    """... to max_crop_px, and train_px of it are shown; where the size is smaller, the rest is black."""
    angle_deg: Annotated[float, Field(ge=0, le=180)] = 7.0
    """Largest rotation, in degrees, to either side."""
    aspect: AtMostOne = 0.75
    """Width against height, from aspect to 1 or from 1 to 1 / aspect."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Largest shift of the hue, to either side, as a share of the circle."""
    saturation: AtMostOne = 0.75
    """Factor of the saturation, from this to 1 or from 1 to 1 / this."""
    exposure: AtMostOne = 0.75
    """Factor of the brightness, from this to 1 or from 1 to 1 / this."""


@dataclass(frozen=True, config=_CONFIG)
class AugmentRecipe:
    """More ways to vary training pictures, from torchvision and timm."""

    policy: str | None = None
    """rand-m9-mstd0.5-inc1 and the like (timm's spelling of RandAugment), 3a (timm's 3-Augment), or trivial
    (torchvision's TrivialAugment)."""
    color_jitter: NonNegative = 0.0
    """Brightness, contrast and saturation times 1 - this to 1 + this."""
    erase_prob: Share = 0.0
    """Random erasing: share of the pictures in which a rectangle becomes noise."""
    erase_count: PositiveCount = 1
    """Random erasing: largest number of rectangles in a picture."""
    repeats: PositiveCount = 1
    """Repeated augmentation: how often each picture of a step is in it, every time with other draws."""


@dataclass(frozen=True, config=_CONFIG)
class MixRecipe:
    """Pictures mixed with each other: in the usual way (CutMix, Mixup) or in Darknet's."""

    cutmix_alpha: NonNegative = 0.0
    """CutMix: the pasted share of the area comes from Beta(alpha, alpha); 0 turns it off."""
    mixup_alpha: NonNegative = 0.0
    """Mixup: the share of the other picture comes from Beta(alpha, alpha); 0 turns it off."""
    prob: Share = 1.0
    """CutMix and Mixup: share of the batches they are applied to."""
    switch_prob: Share = 0.5
    """Share of the mixed batches that get CutMix, where Mixup is on too."""
    darknet: Literal["none", "mixup", "cutmix", "mosaic", "cutmix_mosaic"] = "none"
    """Darknet's mixing, of half of the groups of four pictures; cutmix_mosaic: either of them, picture by picture."""
    blur_px: Count = 0
    """Darknet's blur of a quarter of the pictures: the kernel's size, odd, from 9 on; 1 means 15; 0 turns it off."""
    off_epoch: Count = 0
    """After this many epochs nothing is mixed or blurred any more; 0: mixed to the end."""

    @property
    def is_on(self) -> bool:
        """Whether pictures are mixed or blurred at all."""
        return bool(self.cutmix_alpha or self.mixup_alpha or self.darknet != "none" or self.blur_px)


@dataclass(frozen=True, config=_CONFIG)
class LossRecipe:
    """What is minimised."""

    name: Literal["cross_entropy", "bce"] = "cross_entropy"
    """cross_entropy: over all classes. bce: binary cross entropy, each class on its own."""
    smoothing: ShareBelowOne = 0.0
    """Label smoothing: this much of the target is spread evenly ..."""
    smoothing_over: Literal["all", "others"] = "all"
    """... over all classes (torch, timm) or over the other ones (Darknet)."""
    bce_threshold: ShareBelowOne | None = None
    """bce: a class counts as present, with target 1, if its share of the target is above this; null takes the share."""


@dataclass(frozen=True, config=_CONFIG)
class AdversarialRecipe:
    """Darknet's self-adversarial training: pictures changed against the network's own confidence."""

    lr: NonNegative = 0.0
    """Step of the change at the end of the run (it grows in proportion to the steps done), on pictures of 0 to 1;
    0 turns it off."""


@dataclass(frozen=True, config=_CONFIG)
class OptimRecipe:
    """The optimizer."""

    name: Literal["sgd", "rmsprop_tf", "adamw", "lamb"] = "sgd"
    """sgd and adamw: torch's. rmsprop_tf (RMSprop as TensorFlow has it) and lamb: timm's."""
    lr: Positive = 0.1
    """Peak learning rate."""
    lr_base_size: PositiveCount | None = None
    """If set, lr is meant for this many pictures a step and is scaled in proportion to the global batch."""
    momentum: ShareBelowOne = 0.9
    """sgd, rmsprop_tf: momentum."""
    nesterov: bool = False
    """sgd: Nesterov's form of the momentum."""
    alpha: ShareBelowOne = 0.9
    """rmsprop_tf: share of the squared gradients' average that is kept."""
    betas: Annotated[tuple[ShareBelowOne, ShareBelowOne], BeforeValidator(_as_tuple)] = (0.9, 0.999)
    """adamw, lamb: shares of the gradients' and squared gradients' averages that are kept."""
    eps: Positive | None = None
    """rmsprop_tf, adamw, lamb: added to the denominator; null takes 1e-3, 1e-8, 1e-6."""
    weight_decay: NonNegative = 1e-4
    """Weight decay: added to the gradient (sgd, rmsprop_tf), to the step before its trust ratio (lamb), or taken off
    the weights (adamw)."""
    layer_decay: AtMostOne = 1.0
    """Learning rate of each part of the network (as model.freeze counts them) in those of the part behind it; the last
    one, with the classifier, has the whole."""
    decay_norm_and_bias: bool = True
    """Whether norm scales and biases decay too (torch, mmpretrain, DeepSpark: yes; Darknet: no)."""
    clip_norm: Positive | None = None
    """Largest norm of the gradient; null does not clip (lamb: clips to 1 by itself as well)."""


@dataclass(frozen=True, config=_CONFIG)
class ScheduleRecipe:
    """The learning rate as a function of the step."""

    name: Literal["step", "multistep", "exponential", "cosine", "poly", "darknet_poly", "constant"] = "step"
    """step: times gamma every step_epochs. multistep: times gamma at each of the milestones. exponential: as step, in
    a smooth curve. cosine. poly: (1 - t) ** power. darknet_poly: Darknet's burn-in and poly, to the iteration."""
    step_epochs: Positive = 30.0
    """step, exponential: epochs in which lr falls by the factor gamma."""
    milestones_epochs: Annotated[tuple[Positive, ...], BeforeValidator(_as_tuple)] = ()
    """multistep: epochs of the drops, in rising order."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """step, multistep, exponential: factor of a drop."""
    power: Positive = 4.0
    """poly, darknet_poly: exponent."""
    min_lr: NonNegative = 0.0
    """Lowest learning rate of the decay."""
    warmup_epochs: NonNegative = 0.0
    """Length of the warm-up in epochs."""
    warmup_steps: Count = 0
    """Length of the warm-up in steps; give one of the two."""
    warmup_lr: NonNegative = 0.0
    """Learning rate the warm-up starts from."""
    warmup_power: Positive = 1.0
    """Shape of the warm-up: 1 is a line, 4 nearly Darknet's burn-in; darknet_poly takes schedule.power."""
    decay_from: Literal["start", "warmup_end"] = "start"
    """Where the decay's clock starts: at step 0 (timm, Darknet) or where the warm-up ends (torchvision)."""


@dataclass(frozen=True, config=_CONFIG)
class EmaRecipe:
    """A moving average of the weights, validated and saved beside them."""

    decay: ShareBelowOne = 0.0
    """Share of the average that is kept at each step; 0 turns it off."""
    warmup: bool = False
    """Use min(decay, (1 + step) / (10 + step)), for short runs."""


@dataclass(frozen=True, config=_CONFIG)
class TrainRecipe:
    """The run."""

    batch_size: PositiveCount | Literal["auto"] = 64
    """Pictures per process in one forward pass. auto: the smallest that trains about as fast as any, tried at the start
    of a run, which keeps it for good; lr is not adapted unless optim.lr_base_size is set."""
    accumulate: PositiveCount = 1
    """Forward passes per step; the global batch is batch_size * accumulate * processes."""
    global_batch: PositiveCount | None = None
    """Pictures per step, over all processes, however many there are: batch_size is then the most that a forward pass
    takes, and accumulate what is left to do. null: as batch_size and accumulate say."""
    micro_batch: PositiveCount | Literal["auto"] | None = None
    """The most that a forward pass takes, for memory's sake: the pictures of a step, their crops and lr stay the same,
    and each process takes its share of them in as many passes of equal size as that needs. auto: the most that fits on
    the GPU, tried at each start. Mixing partners and BatchNorm's batches, which lie inside a pass, depend on it. null:
    as the settings above say."""
    epochs: PositiveCount = 120
    """Length of the run in passes over the training pictures; steps, where given, come before it."""
    steps: PositiveCount | None = None
    """Length of the run in steps, instead of epochs."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 where the hardware is faster with it, else fp16 on a GPU, else fp32. fp32: a GPU's convolutions may
    take TF32, as is torch's default."""
    channels_last: bool = True
    """Keep pictures and weights in NHWC memory order."""
    compile: bool = False
    """Compile the network that takes the training steps (torch.compile): a minute or more at each start, less time in
    each step. If that fails it runs as it is, and this is said. What is validated and saved is the network itself."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"
    """torch.compile's: reduce-overhead takes CUDA graphs, max-autotune those and the fastest of several kernels."""
    grad_checkpointing: bool = False
    """Keep less for the backward pass and compute it again: slower, and larger batches fit."""
    sync_bn: bool = False
    """BatchNorm statistics over all processes (GPU only)."""
    max_skipped: PositiveCount = 10
    """A step whose loss or gradient is not finite changes nothing. After so many in a row the run goes back to its last
    good checkpoint, once; after as many again it ends."""
    deterministic: bool = False
    """Equal bits in every run on the same hardware with the same versions (and, on a CPU, number of threads); slower.
    What cannot be computed so is an error. On a CPU it changes nothing but that."""
    timeout_s: Annotated[float, Field(ge=1, le=604800)] = 300.0
    """Of several processes: how long they wait for one in the loop before they end and name it; it has to be enough for
    writing a checkpoint. Until the loop begins they wait for half an hour."""
    seed: Count = 42
    """Seed of everything that is drawn."""


@dataclass(frozen=True, config=_CONFIG)
class EvalRecipe:
    """Validation during the run."""

    batch_size: PositiveCount | None = None
    """Pictures per process; null is train.batch_size, or what a forward pass takes where train.micro_batch is set."""
    every_epochs: PositiveCount = 1
    """Epochs between two validations; the last epoch is always validated."""


@dataclass(frozen=True, config=_CONFIG)
class LogRecipe:
    """What is written, and how often."""

    every_steps: PositiveCount = 50
    """Steps between two records."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    pictures: Annotated[int, Field(ge=0, le=256)] = 12
    """TensorBoard: so many pictures of each of the first three batches, as the network gets them, with their targets,
    and so many of the validation, each time, with what they are taken for; 0: none."""
    histograms: bool = False
    """TensorBoard: histograms of all weights behind each epoch."""
    graph: bool = False
    """TensorBoard: the network's operations, as a graph."""


@dataclass(frozen=True, config=_CONFIG)
class CheckpointRecipe:
    """What is saved, and how often. The end of an epoch is always saved."""

    every_steps: Count = 1000
    """Steps between two checkpoints inside an epoch; 0 saves at the ends of epochs only."""
    keep: PositiveCount | Literal["all"] = 3
    """How many of the newest checkpoints stay, besides last.pt and best.pt; all: every one."""
    keep_best: PositiveCount = 1
    """How many of the checkpoints with the best validated accuracy stay; best.pt is the first of them."""
    max_failures: Count = 3
    """Saves in a row that may fail, each told in a line, before the run stops. The last one of a run must not fail."""


@dataclass(frozen=True, config=_CONFIG)
class Recipe:
    """Every setting of a run."""

    model: ModelRecipe = Field(default_factory=ModelRecipe)
    data: DataRecipe = Field(default_factory=DataRecipe)
    darknet: DarknetRecipe = Field(default_factory=DarknetRecipe)
    augment: AugmentRecipe = Field(default_factory=AugmentRecipe)
    mix: MixRecipe = Field(default_factory=MixRecipe)
    loss: LossRecipe = Field(default_factory=LossRecipe)
    adversarial: AdversarialRecipe = Field(default_factory=AdversarialRecipe)
    optim: OptimRecipe = Field(default_factory=OptimRecipe)
    schedule: ScheduleRecipe = Field(default_factory=ScheduleRecipe)
    ema: EmaRecipe = Field(default_factory=EmaRecipe)
    train: TrainRecipe = Field(default_factory=TrainRecipe)
    eval: EvalRecipe = Field(default_factory=EvalRecipe)
    log: LogRecipe = Field(default_factory=LogRecipe)
    checkpoint: CheckpointRecipe = Field(default_factory=CheckpointRecipe)
