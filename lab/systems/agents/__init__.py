"""Agents that answer questions together: who hears whom, what that costs in calls and tokens, and whether answers get better."""
