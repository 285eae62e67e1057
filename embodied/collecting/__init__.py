"""Episodes made: by experts, by turns of them and of failures, by a policy, or put together against the outcome."""

from pathlib import Path

COLLECTED = Path("runs", "collect")  # where datasets go that have a name and no folder
COUNTERFACTUAL = "counterfactual"
POLICIES = ("expert", "mixed", COUNTERFACTUAL, "random")  # of a dataset's name
