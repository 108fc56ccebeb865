"""Deployment between real sites on Flower: the algorithms and loop of the simulator with another exchange."""
