"""Every error that vlmops raises on purpose.

VlmopsError                 exit code 1: something failed; the message names the thing, the value and the way out
├── BadInput                exit code 2: what was asked for cannot be right; retrying changes nothing
│   ├── ConfigError         a config file, with every problem in it
│   ├── RunConflict         the run directory holds another run
│   ├── SourceRefused       a model source that may not be used: unknown scheme, pickle, code, symlink
│   ├── DataRejected        more of the data set is unusable than the config allows
│   └── MachineUnfit        wrong Python, port taken, disk or memory too small
├── Unreachable             a service does not answer; carries its address
├── AlreadyRunning          another process runs this step of this run; it ends, and then a retry may
├── DownloadFailed          a file did not arrive whole; another run goes on from what is there
├── StepFailed              a step's process ended badly; carries the step and its exit code
├── TrainingFailed          no quantised experts, nothing trainable, a loss that is not a number
│   └── OutOfMemory         a micro-batch does not fit the device
├── ExportRejected          the exported files are not what they should be
├── EngineFailed            vLLM did not start, died, or answered what it must not
├── EvaluationInvalid       the measurement lost requests: no score is kept
└── PromotionFailed         the new model does not serve; says what serves instead
"""

from __future__ import annotations

DONE, FAILED, BAD_INPUT, REJECTED = 0, 1, 2, 3
"""Exit codes of every command: done, failure, bad input, the gate said no."""


class VlmopsError(Exception):
    """Something failed for a reason we can name."""

    exit_code = FAILED


class BadInput(VlmopsError):
    """What was asked for cannot be right; a retry changes nothing."""

    exit_code = BAD_INPUT


class ConfigError(BadInput):
    """A config with problems, all of them listed."""


class RunConflict(BadInput):
    """The run directory already holds a run with another config."""


class SourceRefused(BadInput):
    """A model source that may not be used."""


class DataRejected(BadInput):
    """More of the data set is unusable than the config allows."""


class MachineUnfit(BadInput):
    """This machine cannot do what is asked."""


class Unreachable(VlmopsError):
    """A service does not answer."""

    def __init__(self, service: str, address: str, why: object) -> None:
        super().__init__(f"{service} at {address} cannot be reached: {why}; start it, or correct its address")
        self.address = address


class AlreadyRunning(VlmopsError):
    """Another process runs this step of this run."""


class DownloadFailed(VlmopsError):
    """A file did not arrive whole."""


class StepFailed(VlmopsError):
    """A step's process ended badly."""

    def __init__(self, step: str, code: int) -> None:
        super().__init__(f"{step} ended with exit code {code}; its log is above")
        self.step = step
        self.exit_code = code if code in (FAILED, BAD_INPUT) else FAILED


class TrainingFailed(VlmopsError):
    """Fine-tuning cannot go on."""


class OutOfMemory(TrainingFailed):
    """A micro-batch does not fit the device."""


class ExportRejected(VlmopsError):
    """The exported files are not what they should be."""


class EngineFailed(VlmopsError):
    """vLLM did not start, died, or answered what it must not."""


class EngineBusy(EngineFailed):
    """Its queue is full: it takes no further request now."""


class EvaluationInvalid(VlmopsError):
    """The measurement lost requests or changed under way; it says nothing about the model."""


class PromotionFailed(VlmopsError):
    """The new model does not serve."""
