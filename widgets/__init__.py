"""Folds of events into pictures. Reads events and prices ledgers; never touches the tensors of a run."""

from widgets.figures import bytes_sent, calendar, calendars, losses
from widgets.pictures import Bars, Calendar, Lines, Series
from widgets.tables import table
from widgets.training import progress, train_all

__all__ = [
    "Bars",
    "Calendar",
    "Lines",
    "Series",
    "bytes_sent",
    "calendar",
    "calendars",
    "losses",
    "progress",
    "table",
    "train_all",
]
