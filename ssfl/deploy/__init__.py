"""A federation between real sites, on Flower: the simulator's algorithms and loop over another exchange."""
