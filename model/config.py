"""Configuration of the model and of its training: frozen dataclasses, set from `--set key=value`."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any, Literal

Multitask = Literal["shared_bottom", "mmoe", "cgc", "ple", "adatt"]
Architecture = Literal["farm", "shared_bottom", "mmoe", "cgc", "ple", "adatt"]
Spectrum = Literal["proportional", "count", "padded"]
StopOn = Literal["auc", "gauc", "auc+gauc"]
Precision = Literal["fp32", "tf32", "bf16"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class ModelConfig:
    """FARM's sizes and switches.  Defaults are the paper's (4.1.3) where it gives one."""

    # "farm", or a base model by the name of its head: masked means of both histories instead of FARM's modules
    arch: Architecture = "farm"
    # attention (Eq. 11, 12, 16, 17)
    heads: int = 4
    head_width: int = 16  # d; heads * head_width is the width of an attention
    residual: bool = True  # self- and cross-attention add to what asks (Eq. 12, 16); off: the equations to the letter
    match_logit: float = 6.0  # initial attention logit of two equal rows of a shared table; 0: all starts at random
    sink: bool = True  # a slot of value 0 in target and cross attentions: tells one matching event from many
    # frequency module (Eq. 1-5, 9, 10)
    video_frequency: bool = True  # ablation w/o V-FA when off
    live_frequency: bool = True  # ablation w/o L-FA
    cutoff: int = 5  # c, odd, one of 1, 3, 5, 7, 9 in the paper
    spectrum: Spectrum = "proportional"  # how c applies to a history shorter than L; see docs/paper.md
    gate_hidden: int = 32  # of the MLPs of Eq. 10
    # align (Eq. 13-15)
    align: bool = True  # ablation w/o C-PA
    align_width: int = 64  # of h_video and h_live
    align_weight: float = 0.3  # lambda
    temperature: float = 0.07  # tau
    align_normalise: bool = True  # cosine instead of the raw dot product
    align_detach: bool = False  # no gradient through h_live
    # fuse (Eq. 16, 17)
    fuse: bool = True  # ablation w/o C-PF
    # multi-task head (4.1.2); its parts are described in model/multitask.py
    multitask: Multitask = "ple"  # FARM's; that of a base model is `arch`
    levels: int = 2  # of ple, adatt and shared_bottom; mmoe and cgc have one
    task_experts: int = 1  # per task and level
    shared_experts: int = 2  # per level; shared_bottom's first layer is as wide as a level's experts together
    expert_width: int = 64
    tower_hidden: int = 32
    # regularisation
    dropout: float = 0.2  # after the first expert level and in the task towers
    field_missing_rate: float = 0.02  # a field of a sample read as missing: trains row 0, which degraded answers use
    id_missing_rate: float = 0.1  # the same for fields of kind "id"
    record_missing_rate: float = 0.02  # a whole history, or all of an author's attributes, read as missing

    def __post_init__(self) -> None:
        if self.cutoff < 1 or self.cutoff % 2 == 0:
            raise ValueError(f"cutoff: must be odd and positive, is {self.cutoff}")
        if self.temperature <= 0:
            raise ValueError(f"temperature: must be positive, is {self.temperature}")
        for name in ("heads", "head_width", "levels", "expert_width", "tower_hidden", "gate_hidden", "align_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, is {getattr(self, name)}")
        self._check_head()
        for name in ("dropout", "field_missing_rate", "id_missing_rate", "record_missing_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: must be from 0 to 1, is {getattr(self, name)}")

    @property
    def head(self) -> Multitask:
        """The multi-task head: a base model is named by its own."""
        return self.multitask if self.arch == "farm" else self.arch

    def _check_head(self) -> None:
        if self.multitask not in ("ple", self.head):
            raise ValueError(f"multitask: of arch=farm only; arch={self.arch} is the base model with that head")
        for name in ("task_experts", "shared_experts"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be at least 0, is {getattr(self, name)}")
        if self.head == "adatt" and self.task_experts == 0:
            raise ValueError("task_experts: adatt adds a task's own experts, so it must be at least 1, is 0")
        if self.task_experts + self.shared_experts == 0:
            raise ValueError("shared_experts: must be at least 1 when task_experts is 0, is 0")


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.  `farm prepare` recommends values for its source."""

    batch_size: int = 512
    learning_rate: float = 1e-3  # Adam (paper, 4.1.3)
    weight_decay: float = 0.0  # of the dense weights, decoupled
    table_weight_decay: float = 0.0  # of the embedding tables, decoupled
    table_std: float = 0.1  # of the normal that embedding tables start from
    epochs: int = 4
    patience: int = 1  # epochs without a better validation figure before training stops
    stop_on: StopOn = "auc"  # validation figure of the first task that chooses the epoch; "auc+gauc" is their mean
    seed: int = 0
    checkpoint_every: int = 0  # steps between checkpoints inside an epoch; 0: at the ends of epochs only
    # negative sampling
    negative_rate: float = 1.0  # share of the training samples without a positive label that an epoch keeps
    negative_weighting: bool = True  # those count 1 / negative_rate each in L_XTRs, so that probabilities stay unbiased
    # embedding tables
    table_rows: str = ""  # rows by table, such as "author_id:200000,user_id:50000"; the view's own where not named
    sparse_rows: int = 1_000_000  # a table of as many rows or more gets sparse gradients and SparseAdam
    # where and how the towers are computed
    device: Device = "auto"
    precision: Precision = "fp32"  # bf16: products in bfloat16, weights and losses in float32; tf32: on CUDA only
    compile: bool = False  # torch.compile, which needs a C++ compiler on a CPU

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "sparse_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, is {getattr(self, name)}")
        if self.checkpoint_every < 0:
            raise ValueError(f"checkpoint_every: must be at least 0, is {self.checkpoint_every}")
        if not 0 < self.negative_rate <= 1:
            raise ValueError(f"negative_rate: must be above 0 and at most 1, is {self.negative_rate}")


def split_settings(settings: dict[str, Any]) -> tuple[ModelConfig, TrainConfig]:
    """One flat mapping of settings as the two configurations; ValueError names a setting that does not exist."""
    model_names = {f.name for f in dataclasses.fields(ModelConfig)}
    train_names = {f.name for f in dataclasses.fields(TrainConfig)}
    unknown = sorted(set(settings) - model_names - train_names)
    if unknown:
        known = ", ".join(sorted(model_names | train_names))
        raise ValueError(f"unknown setting {unknown[0]!r}; known: {known}")
    model = ModelConfig(**{k: v for k, v in settings.items() if k in model_names})
    return model, TrainConfig(**{k: v for k, v in settings.items() if k in train_names})


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """`key=value` strings as typed settings; ValueError names the key and what it takes."""
    hints = typing.get_type_hints(ModelConfig) | typing.get_type_hints(TrainConfig)
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator:
            raise ValueError(f"--set {pair!r}: write key=value")
        if key not in hints:
            raise ValueError(f"--set {key}: unknown setting; known: {', '.join(sorted(hints))}")
        settings[key] = _parse(key, text, hints[key])
    return settings


def _parse(key: str, text: str, kind: Any) -> Any:
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if text not in choices:
            raise ValueError(f"--set {key}: one of {', '.join(choices)}, not {text!r}")
        return text
    if kind is bool:
        words = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}
        if text.lower() not in words:
            raise ValueError(f"--set {key}: true or false, not {text!r}")
        return words[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"--set {key}: takes {kind.__name__}, not {text!r}") from None
