"""The progress of a run, which its status and its live line show."""

from pydantic import BaseModel, ConfigDict
from rich.table import Table


class StatusPart(BaseModel):
    """An immutable part of a status."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # a newer version may have more fields


class Progress(StatusPart):
    """The progress of training. Rates are output tokens per second over the last minute."""

    round: int
    rounds: int
    step: int
    steps: int
    version: int
    sampled: int  # groups so far, like the next two
    scored: int
    trained: int
    sampled_rate: float
    scored_rate: float
    trained_rate: float
    staleness: int | None  # versions between the oldest proposal of the last step's groups and the newest
    left_seconds: float | None  # remaining training time at the present pace; None before the first step
    reward: float | None  # of the last step, like the next two
    kl: float | None
    ess: float | None

    def figures(self) -> list[tuple[str, str]]:
        """Return names and values, as they are shown."""
        rates = (self.sampled_rate, self.scored_rate, self.trained_rate)
        return [
            ("round", f"{self.round}/{self.rounds}"),
            ("version", str(self.version)),
            ("step", f"{self.step}/{self.steps}"),
            ("staleness", "-" if self.staleness is None else str(self.staleness)),
            ("groups sampled/scored/trained", f"{self.sampled}/{self.scored}/{self.trained}"),
            ("tokens/s", "/".join(f"{rate:.0f}" for rate in rates)),
            *((name, _short(value)) for name, value in (("reward", self.reward), ("KL", self.kl), ("ESS", self.ess))),
            ("left", _time(self.left_seconds)),
        ]


def as_table(figures: list[tuple[str, str]]) -> Table:
    """Return one row of figures below their names."""
    table = Table(box=None, padding=(0, 1))
    for name, _ in figures:
        table.add_column(name, justify="right", header_style="dim")
    table.add_row(*(value for _, value in figures))
    return table


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:z.2f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
