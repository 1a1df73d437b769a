"""Folds of events into pictures. Reads events and prices ledgers; never touches the tensors of a run."""

from lab.runs.growing import Growing
from lab.runs.live import register_display
from lab.study.explorables import explorable
from widgets.agent_graph import AgentGraph
from widgets.boards import Board
from widgets.cockpits import cockpit
from widgets.communication_budget import CommunicationBudget
from widgets.drift import Drift
from widgets.fairness import Fairness
from widgets.federation_tree import FederationTree
from widgets.figures import bytes_sent, calendar, calendars, over_rounds
from widgets.iterations import Iterations
from widgets.knobs import Knobs
from widgets.mask_agreement import MaskAgreement
from widgets.matrices import Grid, Matrix
from widgets.panel import panel
from widgets.pictures import Bars, Lines, Series
from widgets.privacy_levels import PrivacyLevels
from widgets.pseudo_labels import PseudoLabels
from widgets.questions import Question
from widgets.rank_segments import RankSegments
from widgets.routing_stability import RoutingStability, holdings
from widgets.run_table import RunTable
from widgets.sample_weights import SampleWeights
from widgets.style_leak import StyleLeak
from widgets.sync_calendar import SyncCalendar
from widgets.tables import table
from widgets.timelines import Calendar, Marks
from widgets.training import events_of, progress, train_all, tune_rate
from widgets.training_losses import Losses, losses
from widgets.underperformers import Underperformers
from widgets.unlearning import Unlearning
from widgets.view import Control, View
from widgets.workers import Workers

__all__ = [
    "AgentGraph",
    "Bars",
    "Board",
    "Calendar",
    "CommunicationBudget",
    "Control",
    "Drift",
    "Fairness",
    "FederationTree",
    "Grid",
    "Growing",
    "Iterations",
    "Knobs",
    "Lines",
    "Losses",
    "Marks",
    "MaskAgreement",
    "Matrix",
    "PrivacyLevels",
    "PseudoLabels",
    "Question",
    "RankSegments",
    "RoutingStability",
    "RunTable",
    "SampleWeights",
    "Series",
    "StyleLeak",
    "SyncCalendar",
    "Underperformers",
    "Unlearning",
    "View",
    "Workers",
    "bytes_sent",
    "calendar",
    "calendars",
    "cockpit",
    "events_of",
    "explorable",
    "holdings",
    "losses",
    "over_rounds",
    "progress",
    "table",
    "train_all",
    "tune_rate",
]

register_display(panel)
