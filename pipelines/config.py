"""The one schema of `configs/*.yaml`: frozen, closed, documented on the field. Imports neither torch nor airflow."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines.config_alerts import Alerts
from pipelines.config_export import Export, adapter_objections
from pipelines.config_gate import Gate
from pipelines.config_load import Load
from pipelines.config_monitoring import Monitoring
from pipelines.config_retention import Retention
from pipelines.config_serving import Serving
from pipelines.hardware import Hardware, objections
from pipelines.model_source import ModelSource
from pipelines.section import Section


class Model(Section):
    """The base model."""

    source: ModelSource
    """`hf://org/name@<40-hex commit>`, `modelscope://org/name@<commit>`, `s3://bucket/folder`, `file:///folder` with a
    published checkpoint, `builtin://tiny-qwen3-vl-moe` or `builtin://tiny-qwen3-vl`."""

    fallback: ModelSource | None = None
    """Used instead, and said so, where this CPU has no INT8 kernel for mixtures of experts."""


class Images(Section):
    """Pixel limits, the same for training and for serving."""

    min_pixels: int = Field(4096, ge=1024)
    """Smaller images are enlarged to this many pixels."""

    max_pixels: int = Field(1_048_576, ge=1024)
    """Larger images are shrunk to this many pixels; 1,024 pixels are one visual token."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} exceeds max_pixels {self.max_pixels}")
        return self


class Data(Section):
    """The chat data set."""

    source: str = Field(pattern=r"^(builtin|file)://.+")
    """`builtin://digits`, or `file:///folder` with rows and the images that they name."""

    format: Literal["auto", "messages", "sharegpt", "datasets"] = "auto"
    """`messages`: JSON or JSON lines, images where they are meant. `sharegpt`: the same as LLaMA-Factory and ms-swift
    write it, `<image>` tags in the text and a list of images. `datasets`: a folder of Hugging Face's, saved to disk or
    parquet. `auto` tells them apart by content, row by row."""

    replay: float = Field(1.0, ge=0)
    """Built-in set only: rows of older tasks for each new training row. 0 teaches the new task and forgets the rest."""

    eval_share: float = Field(0.1, gt=0, lt=1)
    """Rows for the evaluation loss, of those that name no split."""

    test_share: float = Field(0.3, gt=0, lt=1)
    """Rows sealed for the served evaluation, of those that name no split."""

    max_reject_share: float = Field(0.02, ge=0, lt=1)
    """The step fails when more of the rows than this are unusable."""

    max_tokens: int = Field(4096, ge=16)
    """Longer rows are rejected, never cut."""

    seed: int = 0
    """Decides the split."""


class Lora(Section):
    """What is trained."""

    targets: Literal["attention", "attention+experts", "attention+experts+merger"] = "attention+experts"
    """Attention of the language model, or also its experts (its MLP where the model is dense), or also what turns
    patches into visual tokens."""

    rank: int = Field(16, ge=1, le=256)
    """Rank of the update; memory and quality both grow with it."""

    alpha: float = Field(32, gt=0)
    """The update is scaled by alpha / rank."""


class Train(Section):
    """How it is trained."""

    steps: int = Field(ge=1)
    """Optimizer steps."""

    batch_size: int = Field(4, ge=1)
    """Rows per step, of all devices together."""

    tokens_per_batch: int = Field(8192, ge=16)
    """Tokens, visual ones and padding included, that go through a device at once; decides memory, not the result."""

    retry_out_of_memory: bool = False
    """Out of memory, halve tokens_per_batch once, for the rest of the run, and repeat the step."""

    optimizer: Literal["adamw", "paged_adamw_8bit"] = "paged_adamw_8bit"
    """AdamW; its states in fp32, or in 8 bits that may move to the host's memory (CUDA only)."""

    learning_rate: float = Field(2e-4, gt=0)
    """Peak of the cosine schedule."""

    warmup_share: float = Field(0.05, ge=0, lt=1)
    """Share of the steps in which the rate rises."""

    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""

    precision: Literal["bf16", "fp32"] = "bf16"
    """Compute type; the base is NF4 and LoRA is fp32 in either."""

    activations: Literal["keep", "recompute", "offload"] = "recompute"
    """What the backward pass needs: kept; computed again from each layer's input, as any real model needs it; or the
    same with those inputs in host memory, for the longest rows."""

    eval_every: int = Field(100, ge=1)
    """Steps between evaluation losses."""

    keep_best: bool = True
    """Hand on the adapter with the lowest evaluation loss, not the last one."""

    patience: int | None = Field(None, ge=1)
    """Stop after this many evaluations in a row without a lower loss. None: train all steps."""

    checkpoint_every: int = Field(100, ge=1)
    """Steps between checkpoints, from which a killed run resumes."""

    keep_checkpoints: int = Field(2, ge=1)
    """Older ones are deleted, the best one apart."""

    seed: int = 0
    """Decides initial LoRA weights and the order of rows."""


class Evaluate(Section):
    """How the artefact is measured."""

    max_new_tokens: int = Field(64, ge=1)
    """Longest answer."""

    concurrency: int = Field(8, ge=1)
    """Questions in flight."""

    attempts: int = Field(2, ge=1)
    """Whole repetitions before an invalid measurement fails the step."""

    golden_items: int = Field(8, ge=1)
    """Questions whose answers are recorded for the probe at promotion."""

    scenarios: tuple[Annotated[str, Field(pattern=r"^(/.+|[a-z0-9][a-z0-9_-]*)$")], ...] = ()
    """Scenario packs that are asked beside the test split, with rules of their own for the gate: a shipped one by its
    name, any other by the whole path of its folder."""


class Registry(Section):
    """Where versions are registered."""

    model: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the registered model in MLflow."""

    experiment: str = "vlmops"
    """MLflow experiment of the runs."""


class Config(Section):
    """Everything that decides what a run does."""

    hardware: Hardware
    model: Model
    images: Images = Images()
    data: Data
    lora: Lora = Lora()
    train: Train
    export: Export = Export()
    serving: Serving
    evaluate: Evaluate = Evaluate()
    gate: Gate
    load: Load = Load()
    registry: Registry
    alerts: Alerts = Alerts()
    retention: Retention = Retention()
    monitoring: Monitoring = Monitoring()

    @model_validator(mode="after")
    def _training_fits(self) -> Self:
        train, gpus = self.train, self.hardware.gpus
        if self.data.max_tokens > train.tokens_per_batch:
            raise ValueError(
                f"a row of data.max_tokens {self.data.max_tokens} does not fit train.tokens_per_batch "
                f"{train.tokens_per_batch}; lower the first or raise the second"
            )
        if train.batch_size < gpus:
            raise ValueError(f"train.batch_size {train.batch_size} leaves some of hardware.gpus {gpus} without a row")
        if train.retry_out_of_memory and gpus > 1:
            raise ValueError("train.retry_out_of_memory needs hardware.gpus 1: the others would wait for the one")
        if train.optimizer == "paged_adamw_8bit" and self.hardware.device == "cpu":
            raise ValueError("train.optimizer paged_adamw_8bit needs hardware.device cuda; set it to adamw")
        return self

    @model_validator(mode="after")
    def _card_can(self) -> Self:
        if reasons := objections(self.hardware, self.export.stored):
            raise ValueError("; ".join(reasons))
        if self.export.device == "cuda" and self.hardware.device == "cpu":
            raise ValueError("export.device cuda needs hardware.device cuda; leave it out")
        return self

    @model_validator(mode="after")
    def _adapter_can_be_served(self) -> Self:
        if reasons := list(adapter_objections(self.export, self.serving.strategy, self.hardware.device)):
            raise ValueError("; ".join(reasons))
        return self

    @model_validator(mode="after")
    def _answers_fit(self) -> Self:
        if self.evaluate.max_new_tokens >= self.serving.max_model_len:
            raise ValueError(
                f"evaluate.max_new_tokens {self.evaluate.max_new_tokens} leaves no room for a prompt in "
                f"serving.max_model_len {self.serving.max_model_len}"
            )
        if self.load.output_tokens >= self.serving.max_model_len:
            raise ValueError(
                f"load.output_tokens {self.load.output_tokens} leaves no room for a prompt in "
                f"serving.max_model_len {self.serving.max_model_len}"
            )
        return self

    @model_validator(mode="after")
    def _questions_find_places(self) -> Self:
        places = self.serving.max_num_seqs + self.serving.max_waiting
        if (most := max(self.evaluate.concurrency, *self.load.concurrencies, 0)) > places:
            raise ValueError(
                f"evaluate and load ask up to {most} questions at once, and the engine refuses more than {places}; "
                f"raise serving.max_waiting"
            )
        return self
