"""What weights of samples cost, counted in both ways in which that is done: what is really computed, and what ADAPT's paper charges.

With N parameters a token takes 6 N operations to train on and 2 N to go forward. A method that scores the batch in the hidden states of the
forward pass that is there anyway computes no more than its looks at the anchors. The paper's appendix is said to charge 8 N a token, as if
every sample went forward once more (arXiv 2605.05227; by way of a public review).
"""

from __future__ import annotations

from dataclasses import dataclass

from lab.recipes.weighting import Weighting


@dataclass(frozen=True)
class Scoring:
    """Operations of one worker in a run.

    training
        forward and backward passes: 6 N a token.
    looks, anchors
        how often it looks at the anchors, and what that takes.
    terms
        scores by terms (`lab.data.bm25`): one addition a token.
    charged
        what the paper charges for scores: 2 N a token of training for states; for terms, what they take.
    """

    training: float
    looks: int = 0
    anchors: float = 0.0
    terms: float = 0.0
    charged: float = 0.0

    @property
    def extra(self) -> float:
        """What is really computed beside training."""
        return self.anchors + self.terms

    @property
    def share(self) -> float:
        """Of training."""
        return self.extra / self.training

    @property
    def share_charged(self) -> float:
        return self.charged / self.training

    def to_dict(self) -> dict[str, float]:
        return {
            "training_flops": self.training,
            "looks": self.looks,
            "extra_flops": self.extra,
            "extra_share": self.share,
            "charged_flops": self.charged,
            "charged_share": self.share_charged,
        }


def scoring(
    weighting: Weighting,
    *,
    params: float,
    tokens: int,
    context: int,
    steps: int,
    training: float | None = None,
    rounds: int = 0,
) -> Scoring:
    """Of one worker.

    Parameters
    ----------
    params
        N: those that one token goes forward through.
    tokens, context
        of a local step; of an anchor.
    training
        operations of all local steps, if they are not 6 N a token (with adapters they are fewer).
    rounds
        that bring another client, who looks again.
    """
    of_training = 6.0 * params * tokens * steps if training is None else training
    if weighting.of_states:
        looks = weighting.turn(steps) + max(1, rounds)
        anchors = 2.0 * params * weighting.looked_at * context * looks
        return Scoring(of_training, looks, anchors, charged=2.0 * params * tokens * steps)
    if weighting.by == "bm25":
        terms = float(weighting.anchors * context + tokens * steps)
        return Scoring(of_training, terms=terms, charged=terms)
    return Scoring(of_training)
