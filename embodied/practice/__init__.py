"""A robot practises a task and its undoing by turns: RoboFuME's loop, what it reads, keeps and is judged by."""
