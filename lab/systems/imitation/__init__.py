"""How well can somebody's style be imitated, and which defences notice? Measured on authors that nobody is (`lab.data.tasks.authors`).

A bench for those who defend: it has no scraper, no text of a real person, and nothing that writes in the name of one. The question, and that
personal models are cheap, are from Iofinova et al. 2025 (arXiv 2502.06560); which defences are tried, and how, is our choice [inferred].
"""
