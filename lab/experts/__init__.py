"""Experts over workers: who holds which (`placement`), where routers send tokens (`routing`), what it costs (`costs`)."""
