"""Every error that pairsan raises on purpose. The command line prints the message and ends with the class's `exit_code`."""


class PairsanError(Exception):
    """Base of all errors that carry a message for the user."""

    exit_code = 1


class ConfigError(PairsanError):
    """A setting is unknown, out of range or contradicts another."""

    exit_code = 2


class DataError(PairsanError):
    """The input data cannot be found or read as asked."""

    exit_code = 3


class TooManyQuarantined(DataError):
    """More rows than allowed could not be scored; nothing was sealed."""


class CheckpointError(PairsanError):
    """Model weights cannot be loaded."""

    exit_code = 4


class UnsafeCheckpoint(CheckpointError):
    """Loading these weights could run code, so it was refused."""


class RunError(PairsanError):
    """A run folder is missing, damaged or in the wrong state."""

    exit_code = 5


class PlanMismatch(RunError):
    """The folder holds work that was begun under another plan."""


class NotSealed(RunError):
    """A round was asked for that carries no seal."""


class SchemaError(RunError):
    """A part was written under a newer schema, or lacks columns."""


class StageFailed(PairsanError):
    """Shards failed in a stage; the message names them."""

    exit_code = 6


class SplitRefused(PairsanError):
    """The split cannot be believed; the round stays unsealed."""

    exit_code = 7


class PlaceError(PairsanError):
    """A file, folder, port or address outside of pairsan does not do what is asked of it, or a package is missing."""

    exit_code = 9


class TrainingFailed(PairsanError):
    """The loss is not finite; the last checkpoint is kept."""

    exit_code = 8
