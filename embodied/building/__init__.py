"""From a config to the objects that it describes: worlds, goals, rewards with what only this floor knows."""
