"""Whose outputs an objective is defined on: what decides its proposal, and which stored groups it takes."""

from enum import Enum, auto


class Origin(Enum):
    """Whose outputs a method is defined on.

    Attributes:
        OPEN: nobody knows; those of the updated proposal unless the recipe says else.
        PROPOSAL: of any proposal whose log-probabilities are known, updated unless the recipe says else.
        ANY: anybody's; its paper trains on the prior's, so that the proposal is fixed unless the recipe says else.
        PRIOR_BY_NAME: of the prior, as its name says; the loss would be the same on any others.
        PRIOR: of the prior, which it relies on: RSO's acceptance, q' = p, or a proposal that stays as it is.
    """

    OPEN = auto()
    PROPOSAL = auto()
    ANY = auto()
    PRIOR_BY_NAME = auto()
    PRIOR = auto()

    @property
    def is_prior(self) -> bool:
        """Whether outputs of newer versions contradict the definition."""
        return self in (Origin.PRIOR_BY_NAME, Origin.PRIOR)

    @property
    def is_fixed(self) -> bool:
        """Whether all rounds are sampled from the prior unless the recipe says else."""
        return self is Origin.ANY or self.is_prior

    @property
    def relies_on_proposal(self) -> bool:
        """Whether it relies on the distribution that outputs were drawn from: texts that nobody sampled will not do."""
        return self in (Origin.PROPOSAL, Origin.PRIOR)
