"""Leaderboards: make, check, verify and dispute entries, rank them, and build the tables and the site."""
