"""The versions of a run as users name them: best, newest, or a number."""

from brain_align.common.errors import UserError
from brain_align.common.policies import PolicyRegistry, ProposalVersion
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.summary import read_summary


def find_version(directory: RunDirectory, version: str, named: str, remedy: str) -> ProposalVersion:
    """Find a published version of a run, and check its files.

    Messages quote what the user wrote (`named`), and say how another version is named (`remedy`).

    Raises:
        UserError: the run has published none, or not this one; the best is not known yet; or its files are damaged.
    """
    registry = PolicyRegistry(directory.policies)
    versions = registry.versions()
    if not versions:
        raise UserError(f"The run in {directory.root} has not published a version yet.")
    if version == "newest":
        return registry.verify(versions[-1])
    if version == "best":
        summary = read_summary(directory)
        if summary is None:
            raise UserError(f"The run in {directory.root} has not ended, so no version is the best yet; {remedy}.")
        return registry.verify(summary["best_version"])
    if not version.isdigit() or int(version) not in versions:
        raise UserError(
            f"{named}: the run in {directory.root} has versions 0 to {versions[-1]}; give one of them, best or newest."
        )
    return registry.verify(int(version))
