"""rlaif: from a constitution file to preferences, a reward model, a DPO policy and a report."""

__version__ = "0.1.0"
