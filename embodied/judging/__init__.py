"""How good rewards are: figures from labelled episodes and canaries, a verdict, and a page of it."""
