"""The report of a study: human against AI labels on the same pairs."""
