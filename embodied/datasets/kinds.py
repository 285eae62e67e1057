"""What an episode is: the words that datasets mark episodes with, by us in collecting or by a person in a column."""

STILL = "still"  # nothing happens
WRONG = ("mimed", "reached", "wrong_object")  # the robot does its part, the goal is missed
RIGHT = ("left", "other_way", "solved")  # the goal is reached, the robot is elsewhere
COUNTERFACTUAL = (STILL, *WRONG, *RIGHT)
