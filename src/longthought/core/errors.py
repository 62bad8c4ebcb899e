"""Every error that longthought raises on purpose.

    LongthoughtError
    ├── SettingsError         an option is unknown, of the wrong type, out of range, or changes nothing
    ├── DataError             a prompt, problem or file of problems cannot be used
    ├── CheckpointError       a model folder is missing, damaged, or of a kind that we cannot run
    ├── RunError              a run folder cannot be used as asked
    │   ├── RunLocked         another process is working in it
    │   ├── RunDamaged        a file in it is truncated or altered, and no older good state is left
    │   └── RunMismatch       it was made with other settings
    ├── NotReady              the base model cannot learn by RL: the readiness gate failed
    ├── LogprobGap            the learner and the sampler disagree about the log-probabilities of a rollout
    ├── NotFinite             a loss or gradient is NaN or infinite; the weights were left as they are
    └── Alarm                 a monitor of the run crossed a bound that ends it

Messages say what is wrong, where, and what to do. The command line prints them without a traceback.
"""


class LongthoughtError(Exception):
    """Base of all errors that a user can act upon."""


class SettingsError(LongthoughtError):
    """An option is unknown, of the wrong type, out of range, or changes nothing."""


class DataError(LongthoughtError):
    """A prompt, a problem or a file of problems cannot be used."""


class CheckpointError(LongthoughtError):
    """A model folder is missing, damaged, or of a kind that we cannot run."""


class RunError(LongthoughtError):
    """A run folder cannot be used as asked."""


class RunLocked(RunError):
    """Another process is working in the run folder."""


class RunDamaged(RunError):
    """A file of the run folder is truncated or altered, and no older good state is left."""


class RunMismatch(RunError):
    """The run folder was made with other settings."""


class NotReady(LongthoughtError):
    """The readiness gate failed: reinforcement learning from this base cannot work."""


class LogprobGap(LongthoughtError):
    """Learner and sampler disagree about the log-probabilities of a rollout."""


class NotFinite(LongthoughtError):
    """A gradient is NaN or infinite; the weights were left as they are."""


class Alarm(LongthoughtError):
    """A monitor of the run crossed a bound that ends it."""
