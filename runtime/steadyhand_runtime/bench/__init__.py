"""Measurements of the runtime's parts beside their peers, one module for each `steadyhand bench NAME`."""
