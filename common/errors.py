"""The errors that a user meets: one clear sentence each, and never a traceback."""


def first_line(error: Exception) -> str:
    """What a library's error says, without the pages that some add to it."""
    return str(error).strip().split("\n")[0]


class UserError(Exception):
    """Something that the user can put right.

    The message is one sentence (or a short list) that says what is wrong, where, and what to do. The command line
    prints it alone and exits with status 2.
    """


class DamagedPartError(UserError):
    """A file of the sample store is torn, truncated, altered or foreign."""


class PipelineError(Exception):
    """A part of the running pipeline failed: names the part, what it did, and the log file to read.

    The command line prints it and exits with status 1; a run can be resumed.
    """


class LearnerOutOfMemoryError(PipelineError):
    """A forward or backward pass of the learner does not fit into memory, and this process cannot repeat it.

    Attributes:
        smaller: the token budget to try instead.
    """

    def __init__(self, message: str, smaller: int) -> None:
        super().__init__(message, smaller)  # both, so that it survives its way through Ray
        self.smaller = smaller

    def __str__(self) -> str:
        return str(self.args[0])


class EngineLostError(PipelineError):
    """The engine below a service has died; the service cannot go on and must be started again."""


class DeliveryError(PipelineError):
    """A version did not get into an engine, for a reason that may pass: memory, a device, a file system, time.

    The service must be started again; what it was asked for is not to blame.
    """


def first_failure(failures: ExceptionGroup[Exception]) -> Exception:
    """The first single exception in a group of groups: what failed before the rest was cancelled."""
    failure: Exception = failures
    while isinstance(failure, ExceptionGroup):
        failure = failure.exceptions[0]
    return failure
