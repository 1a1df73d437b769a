"""Explorables: pages that explain one idea of one paper, by a guess, a number to drag, a picture that moves and an exercise."""

from widgets.explorables.explorable import Explorable
from widgets.explorables.pieces import Exercise, Place, Prediction, Slip

__all__ = ["Exercise", "Explorable", "Place", "Prediction", "Slip"]
