"""Run engine: find the cells of a request, attack the samples without records, and compute scores.

A cell is one combination of model, attack, dataset and eps.
"""
