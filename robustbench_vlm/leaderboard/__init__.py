"""Leaderboards: make, check, verify and dispute entries, rank the models, and build the tables and the site."""
