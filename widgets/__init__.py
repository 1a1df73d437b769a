"""Folds of events into pictures. Reads events and prices ledgers; never touches the tensors of a run."""

from widgets.boards import Board
from widgets.figures import bytes_sent, calendar, calendars, losses
from widgets.matrices import Grid, Matrix
from widgets.pictures import Bars, Calendar, Lines, Series
from widgets.routing_stability import RoutingStability, holdings
from widgets.tables import table
from widgets.training import progress, train_all
from widgets.view import View

__all__ = [
    "Bars",
    "Board",
    "Calendar",
    "Grid",
    "Lines",
    "Matrix",
    "RoutingStability",
    "Series",
    "View",
    "bytes_sent",
    "calendar",
    "calendars",
    "holdings",
    "losses",
    "progress",
    "table",
    "train_all",
]
