"""The errors that a user meets: one clear sentence each, and never a traceback."""


class UserError(Exception):
    """Something that the user can put right.

    The message is one sentence (or a short list) that says what is wrong, where, and what to do. The command line
    prints it alone and exits with status 2.
    """


class DamagedPartError(UserError):
    """A file of the sample store is torn, truncated, altered or foreign."""


class PipelineError(Exception):
    """A part of the running pipeline failed: names the part, what it did, and the log file to read.

    The command line prints it alone and exits with status 1; the run can be resumed.
    """
