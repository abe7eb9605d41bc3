"""Whose outputs an objective is defined on."""

from enum import Enum, auto


class Origin(Enum):
    """Whose outputs an objective is defined on, which decides its proposal and the stored groups that it accepts."""

    OPEN = auto()  # unknown; the updated proposal's unless the recipe says otherwise
    PROPOSAL = auto()  # any proposal's whose log-probabilities are known; updated unless the recipe says otherwise
    ANY = auto()  # anybody's; the proposal is fixed unless the recipe says otherwise, as in the methods' papers
    PRIOR_BY_NAME = auto()  # the prior's, by the method's name; the loss would be the same on any others
    PRIOR = auto()  # the prior's, on which the loss relies: RSO's acceptance, q' = p, or a proposal that stays as it is

    @property
    def is_prior(self) -> bool:
        """Return whether outputs of newer versions contradict the definition."""
        return self in (Origin.PRIOR_BY_NAME, Origin.PRIOR)

    @property
    def is_fixed(self) -> bool:
        """Return whether all rounds are sampled from the prior unless the recipe says otherwise."""
        return self is Origin.ANY or self.is_prior

    @property
    def relies_on_proposal(self) -> bool:
        """Return whether the loss relies on the distribution that outputs were drawn from: foreign texts are unfit."""
        return self in (Origin.PROPOSAL, Origin.PRIOR)
