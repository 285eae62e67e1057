"""Robots that are not simulated in this process, behind the Gymnasium interface: limits, rate, watchdogs, stops."""
