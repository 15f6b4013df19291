"""Errors a user can cause, and the exit code each one ends with.

A message says what was found, what was expected, where the setting came from, and the cure.
"""

from __future__ import annotations


class RlcliError(Exception):
    """Base of every error printed without a traceback."""

    exit_code = 1


class UsageError(RlcliError):
    """A command line, setting or combination of settings that cannot be run."""

    exit_code = 2


class MissingResourceError(UsageError):
    """Something this machine lacks and another may have: a dry run goes on, with a warning."""


class ConfigError(UsageError):
    """A setting that is unknown, malformed or contradicts another."""


class LaunchError(ConfigError, MissingResourceError):
    """Machines, processes or GPUs that were meant to train together, and cannot."""


class DeviceNotFoundError(ConfigError, MissingResourceError):
    """A device that this machine does not have."""


class DataError(UsageError):
    """A data file that is missing, empty or malformed: names file, row, field and cure."""


class DataNotFoundError(DataError, MissingResourceError):
    """A data file that is not on this machine."""


class ModelError(UsageError):
    """A model directory that cannot be trained: missing, no tokenizer, wrong architecture."""


class ModelNotFoundError(ModelError, MissingResourceError):
    """A model that is neither on this machine nor to be had."""


class RewardError(UsageError):
    """A reward that cannot run: a file with a syntax error, a function that is not there."""


class RewardServiceError(RewardError):
    """A judge or a reward model's server that does not answer now, and may later."""


class MissingJudgeError(RewardError, MissingResourceError):
    """A judge's key or client library that this machine does not have."""


class RunDirError(UsageError):
    """An output directory that is taken, locked or not writable."""


class CheckpointError(UsageError):
    """No checkpoint in the run directory can be trusted."""


class TrainingError(RlcliError):
    """Training cannot go on: non-finite gradients three times in a row, no disk to save to."""


class SamplerError(RlcliError):
    """A sampler that failed twice, or whose weights are not the trainer's."""


class RankError(RlcliError):
    """Another rank ended with an error of its own: training cannot go on."""


class RankLostError(RlcliError):
    """Another rank is gone without a word, or rank 0 is: a fresh start may help."""

    exit_code = 70


class Paused(RlcliError):
    """The run stopped itself and can be resumed: a reward service is down or a budget is spent."""

    exit_code = 75
