"""The schema of a config: one YAML file an architecture and data set, checked before anything runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, model_validator

from .budget import BudgetConfig as BudgetConfig
from .budget import CostKind as CostKind
from .budget import with_input_bits
from .repair import Repair as Repair
from .repair import RepairConfig as RepairConfig
from .repair import SearchRepair as SearchRepair
from .scalars import (
    Batch,
    Candidates,
    Count,
    Epochs,
    File,
    FileName,
    Fraction,
    Integer,
    MostSparsity,
    Names,
    Number,
    Section,
    Seed,
    Sparsity,
    Threads,
    Weight,
    Width,
)
from .training import FinetuneConfig as FinetuneConfig
from .training import FitConfig as FitConfig
from .training import GradualConfig as GradualConfig

Cut = Literal["inner", "sampled", "all"]
Factors = Literal["channel", "spatial"]
GridName = Literal["row", "shared"]
Crop = Literal["shifted", "resized"]


Bits = Annotated[Integer, Field(ge=2, le=16)]
BitsOrChoice = Bits | Annotated[list[Bits], Field(min_length=1, max_length=15)]

LARGE = 64  # pixels: images of this size and more are photographs, not thumbnails


class NetworkConfig(Section):
    """Which network is pruned, and where its weights come from."""

    name: str = Field(
        description="cifar_resnetN, digits_resnet, torchvision:NAME, timm:NAME or package.module:callable"
    )
    num_classes: Annotated[Integer, Field(ge=2, le=1_000_000)]
    kwargs: dict[str, JsonValue] = Field(default_factory=dict, description="plain data, handed to the constructor")
    weights: File | None = Field(
        default=None, description="safetensors, a checkpoint, or a folder of apply: compressed further"
    )
    pretrain: FitConfig | None = Field(default=None, description="train there and then, where there are no weights")

    @model_validator(mode="after")
    def _weights_or_training(self) -> NetworkConfig:
        if self.weights is None and (self.pretrain is None or self.pretrain.epochs == 0):
            raise ValueError(
                "an untrained network has nothing to keep: give network.weights (a file), "
                "or network.pretrain.epochs to train it first"
            )
        return self


class DataConfig(Section):
    """Images and how they are split. Calibration and search images come from the training side."""

    name: Literal["digits", "cifar10", "cifar100", "folder"]
    root: File | None = Field(default=None, description="folder of the data set; not needed for digits")
    mean: list[Number] = Field(default=[0.485, 0.456, 0.406], min_length=1)
    std: list[Annotated[Number, Field(gt=0.0)]] = Field(default=[0.229, 0.224, 0.225], min_length=1)
    image_size: Width | None = Field(default=None, description="resize and centre-crop to this many pixels")
    resize: Width | None = Field(
        default=None,
        description="pixels of the shorter side before the crop; none: 8/7 of image_size from 64 up (256 for 224)",
    )
    calibration: Count | None = Field(
        default=None, description="images that repair; none: 500, at most a sixth of the training side"
    )
    search: Count | None = Field(
        default=None, description="images that pay the reward; none: 1000, at most a third of the training side"
    )
    test: Count | None = Field(default=None, description="images looked at in the end; none means all of them")
    train: Count | None = Field(
        default=None, description="images to train on, those that repair among them; none means all of them"
    )
    batch_size: Batch | None = Field(
        default=None, description="images a forward pass; does not change any result; none: 100, fewer of large ones"
    )
    augment: bool = Field(default=True, description="random crops and flips while fine-tuning")
    crop: Crop | None = Field(
        default=None,
        description="shifted: by up to 4 pixels; resized: a part of random place, size and shape, resized; "
        "none: resized from 64 pixels up",
    )
    flip: bool = Field(default=True, description="flips are part of the augmentation (not for digits)")
    randaugment: Annotated[Integer, Field(ge=0, le=30)] = Field(
        default=0, description="magnitude of RandAugment's two operations an image (Cubuk et al. 2020); 0 for none"
    )
    split_seed: Seed = Field(default=0, description="draws the splits; apart from the run's seed, so that runs compare")

    @model_validator(mode="after")
    def _resized_before_cropped(self) -> DataConfig:
        if self.resize is not None and (self.image_size is None or self.resize < self.image_size):
            raise ValueError(
                f"resize={self.resize}, image_size={self.image_size}: the crop of image_size is cut from what was "
                "resized, so give both, and resize no less than image_size"
            )
        return self

    @model_validator(mode="after")
    def _channels(self) -> DataConfig:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} channels, std has {len(self.std)}: give one of each a channel")
        return self


class LayersConfig(Section):
    """Which layers may be compressed, and how far."""

    cut: Cut = Field(
        default="inner",
        description="channels: inner: residual trunks stay whole; sampled: they do, but the branches take only some of "
        "their channels; all: trunks are cut too",
    )
    ignore: list[str] = Field(
        default_factory=list, description="left whole: layers or modules by name, by pattern (layer4.*), or by type"
    )
    tie: list[list[str]] = Field(
        default_factory=list, description="layers (names or patterns) that keep the same number of units each"
    )
    round_to: Count | dict[str, Count] = Field(
        default=1, description="units kept are multiples of it (runtimes pad to 8 or 16); or one by pattern of layers"
    )
    max_sparsity: Annotated[Number, Field(gt=0.0, lt=1.0)] | None = Field(
        default=None, description="of any one layer; none: the method's own"
    )
    bounds: dict[str, tuple[Sparsity, MostSparsity]] = Field(
        default_factory=dict, description="least and most sparsity of layers by name or pattern"
    )
    pattern: Literal["2:4"] | None = Field(
        default=None, description="weights: of every four inputs in a row two are kept, as sparse tensor cores want it"
    )
    factors: Factors = Field(
        default="channel",
        description="lowrank: a k×k convolution becomes channel: a k×k and a 1×1, or spatial: a k×1 and a 1×k",
    )

    activation_bits: BitsOrChoice | dict[str, BitsOrChoice] | None = Field(
        default=None,
        description="bits: of the inputs of every layer whose weights are rounded; a list to choose from, layer by "
        "layer (or floats); or either by pattern of modules; none: they stay floats. Not said, with budget.bops: 8",
    )
    grid: GridName = Field(
        default="row",
        description="bits: row: whole numbers times a scale an output; shared: 2^bits values a tensor, by k-means",
    )
    branches: bool = Field(
        default=False,
        description="channels: a residual branch may go altogether (its layers keep 0): its mean is added instead",
    )

    @model_validator(mode="after")
    def _ranges(self) -> LayersConfig:
        for name, (low, high) in self.bounds.items():
            if low > high:
                raise ValueError(f"bounds of {name}: [{low:g}, {high:g}]: the least sparsity first, then the most")
        return self


class LatencyConfig(Section):
    """How latency is measured: that of a finished plan, and the table that a latency budget counts by."""

    batch: Width = Field(default=32, description="images a pass")
    threads: Threads | None = Field(default=None, description="torch's while measuring; none: the run's own number")
    repeats: Annotated[Integer, Field(ge=1, le=1_000)] = Field(
        default=5, description="passes of every network that the table is made from"
    )
    channels_last: bool = Field(default=False, description="the memory format of weights and images")
    runtime: str = Field(
        default="eager", description="eager, compile, onnxruntime, openvino, or package.module:callable"
    )
    precision: Literal["fp32", "int8"] = Field(default="fp32", description="int8: quantised by the runtime's own tools")


class ObjectiveConfig(Section):
    """What the network is for: what training lowers, what plans are paid by, what criteria look at."""

    name: str = Field(
        default="cross-entropy",
        description="cross-entropy, segmentation, regression, multilabel, or package.module:callable",
    )
    kwargs: dict[str, JsonValue] = Field(default_factory=dict, description="its settings: ignore, output")

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, given: object) -> object:
        return {"name": given} if isinstance(given, str) else given


class RewardConfig(Section):
    """Weights of the reward's terms; see `secateur.envs.LayerSparsityEnv`."""

    accuracy: Weight = 1.0
    reconstruction: Weight = 1.0
    flops: Weight = 0.0

    @model_validator(mode="after")
    def _some(self) -> RewardConfig:
        if self.accuracy == self.reconstruction == self.flops == 0.0:
            raise ValueError("every reward weight is 0: the agent would learn nothing; raise one")
        return self


class AgentConfig(Section):
    """The reinforcement learner and its schedule."""

    algorithm: Literal["ddpg", "td3", "sac"] = "ddpg"
    episodes: Candidates = 200
    warm_start: bool = Field(
        default=True,
        description="channels: the loss model begins as other networks have corrected it (allocator `policy`)",
    )
    budgets: tuple[Fraction, Fraction] | None = Field(
        default=None,
        description="least and most: every episode walks on a budget drawn from there; see `secateur plan`",
    )
    warmup: Annotated[Integer, Field(ge=0, le=100_000)] = Field(
        default=10, description="episodes that explore round the base plan"
    )
    noise_start: Annotated[Number, Field(gt=0.0)] = 0.15
    noise_end: Annotated[Number, Field(gt=0.0)] = Field(default=0.05, description="never 0: exploration does not die")
    action_penalty: Weight = Field(
        default=2.0, description="taken from the reward, times the action's square: what brings nothing fades"
    )
    rerank: Count = Field(
        default=10, description="best plans of a search, of any, that are measured again, repaired as in the end"
    )
    hidden: Annotated[list[Width], Field(max_length=8)] = Field(default=[64, 64])
    learning_rate: Annotated[Number, Field(gt=0.0)] = 1e-3
    tau: Fraction = 0.01
    batch_size: Batch = 64
    updates: Annotated[Integer, Field(ge=0, le=1_000)] = Field(
        default=1, description="gradient steps for every layer walked"
    )

    @model_validator(mode="after")
    def _range(self) -> AgentConfig:
        if self.budgets is not None and self.budgets[0] > self.budgets[1]:
            raise ValueError(f"agent.budgets = {list(self.budgets)}: the least first, then the most")
        return self


class CompareConfig(Section):
    """What the comparison evaluates by."""

    against: list[str] = Field(default=["uniform", "shallow", "deep", "random"])
    candidates: Candidates | None = Field(
        default=None, description="of every search; none: as many as the plan's search"
    )


class CorrelateConfig(Section):
    """How many random plans tell whether the search pays for what counts. Two always correlate perfectly."""

    plans: Annotated[Integer, Field(ge=3, le=100_000)] = 50
    finetune_plans: Annotated[Integer, Field(ge=3, le=100_000)] = Field(
        default=15, description="the first so many are fine-tuned"
    )
    finetune: Epochs = Field(default=0, description="epochs, 0 for no fine-tuning")


class Config(Section):
    """Everything a run needs. Values shown in `configs/*.yaml`; override with `--set section.key=value`.

    `network` and `data` may be absent where the caller brings a module and loaders of their own.
    """

    name: FileName
    seed: Seed = 0
    device: str = "cpu"
    threads: Threads | None = Field(
        default=None, description="torch's, of every worker too; none leaves torch's own choice, shared by the workers"
    )
    workers: Threads = Field(default=1, description="candidates evaluated at a time, each by a process of its own")
    ray_address: str | None = Field(
        default=None, description="the workers are actors of this Ray cluster: auto, host:port, local to start one"
    )
    cache: bool = Field(default=True, description="keep on disk what depends on the dense network alone")
    network: NetworkConfig | None = None
    data: DataConfig | None = None
    method: Names = Field(
        default="channels",
        description="channels, weights, lowrank, bits, or package.module:callable; or two in one search: "
        "[channels, bits], [channels, lowrank]",
    )
    criterion: Names | None = Field(
        default=None,
        description="ranks the units inside a layer, by name or package.module:callable; none: the method's own; of "
        "two methods a list of two",
    )
    objective: ObjectiveConfig = Field(
        default=ObjectiveConfig(), description="a name, or a section with name and kwargs"
    )
    layers: LayersConfig = LayersConfig()
    repair: RepairConfig = RepairConfig()
    budget: BudgetConfig
    latency: LatencyConfig = LatencyConfig()
    reward: RewardConfig = RewardConfig()
    agent: AgentConfig = AgentConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    gradual: GradualConfig = GradualConfig()
    compare: CompareConfig = CompareConfig()
    correlate: CorrelateConfig = CorrelateConfig()

    @model_validator(mode="before")
    @classmethod
    def _input_bits(cls, given: Any) -> Any:
        return with_input_bits(given)
